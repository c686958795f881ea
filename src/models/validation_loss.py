"""The loss of a validation, from embeddings that are there anyway, for recipes that select by it.

Shape suffixes: P pairs, Q captions, V videos.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.losses.gather import one_process

LossFn = Callable[[TextEmbedding, VideoEmbedding], Mapping[str, Tensor]]
ORDER_SEED = 0  # of the batches: neighbours in a list of videos often look alike


def validation_loss(loss: LossFn, text: TextEmbedding, video: VideoEmbedding, batch_size: int) -> Tensor:
    """Mean training loss of the videos with their first captions, in batches of at most `batch_size` pairs.

    Every process has the embeddings of all of them, and computes the same value by itself.

    Args:
        loss: of pairs, "loss" being the one that is minimised.
        text: captions of the validation, ordered by id.
        video: its videos, each once.
        batch_size: how many pairs a training step sees: the more negatives there are, the higher is a loss.

    Returns:
        Scalar.

    Raises:
        UserError: no caption describes any of the videos.

    Source: what frozen-in-time @ e1f13e1 logs as val_loss_0.
    Deviates: there every epoch shuffles the pairs, draws frames at random and, for some data sets, captions too, so
        equal weights differ from epoch to epoch. Here the batches are the same in every epoch, and of about equal size.
    """
    rows_P, columns_P = _first_pairs(text, video)
    if not len(rows_P):
        raise UserError("no caption of the validation describes one of its readable videos; run task=check_data")
    order_P = torch.randperm(len(rows_P), generator=torch.Generator().manual_seed(ORDER_SEED)).to(rows_P.device)
    losses = []
    with one_process():
        for places in order_P.tensor_split(-(-len(rows_P) // batch_size)):
            losses.append(loss(text[rows_P[places]], video[columns_P[places]])["loss"])
    return torch.stack(losses).mean()


def _first_pairs(text: TextEmbedding, video: VideoEmbedding) -> tuple[Tensor, Tensor]:
    """Rows of the first caption of each video that has one, and the rows of these videos."""
    ids_V, places_V = video.ids.sort()
    columns_Q = torch.searchsorted(ids_V, text.video_ids).clamp(max=len(ids_V) - 1)
    known_Q = ids_V[columns_Q] == text.video_ids
    first_V = torch.full_like(ids_V, len(text))
    rows_Q = torch.arange(len(text), device=ids_V.device)
    first_V.scatter_reduce_(0, columns_Q[known_Q], rows_Q[known_Q], "amin")
    has_V = first_V < len(text)
    return first_V[has_V], places_V[has_V]
