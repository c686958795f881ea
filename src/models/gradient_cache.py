"""Gradient caching: contrastive batches of any size in the memory of one chunk, with the same gradients.

A contrastive loss needs the embeddings of the whole batch, its encoders' activations do not have to exist together:
each chunk is encoded without keeping any, and once more when its embeddings' gradients are known.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

from torch.utils.checkpoint import checkpoint

from src.batch import Embedding, TextBatch, VideoBatch

B = TypeVar("B", TextBatch, VideoBatch)
E = TypeVar("E", bound=Embedding)


def encode_in_chunks(encode: Callable[[B], E], batch: B, chunks: int) -> E:
    """`encode(batch)`; with more than one chunk, the activations of one of them exist at a time.

    Both passes over a chunk draw the same dropout and run under the same precision. The gradients are those of the
    plain call wherever an item's embedding does not depend on the other items; embeddings follow `Embedding.cat`.

    Args:
        encode: a model's `encode_text` or `encode_video`.
        batch: one item a row; chunks are equal up to one item.
        chunks: 1 encodes the batch as it is; more than its items leaves one item to a chunk.

    Source: GradCache (arXiv 2101.06983). Deviates: the loss's gradient flows into recomputed activations
        directly, not through a product of embeddings and stored gradients; the same numbers.
    """
    count = min(chunks, len(batch))
    if count <= 1:
        return encode(batch)
    bounds = [i * len(batch) // count for i in range(count + 1)]
    chunks_of = [_rows(batch, slice(start, stop)) for start, stop in pairwise(bounds)]
    pieces: list[E] = [checkpoint(encode, chunk, use_reentrant=False) for chunk in chunks_of]
    return type(pieces[0]).cat(pieces)


def _rows(batch: B, rows: slice) -> B:
    return batch.map(lambda tensor: tensor[rows])
