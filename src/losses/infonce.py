"""Symmetric InfoNCE over the batch of all processes.

Shape suffixes: B pairs of this process, N pairs of all processes, T text rows, V video columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding, positives_mask
from src.errors import UserError
from src.losses.gather import gather_embedding, gather_sizes, world_size

SimilarityFn = Callable[[TextEmbedding, VideoEmbedding], Tensor]


class SymmetricInfoNCE:
    """Cross-entropy of each caption over all videos and of each video over all captions, averaged.

    Every process scores its own rows against the gathered gallery. The value on one process is
    W/N · (sum over its rows), so that the mean over processes, which DDP takes, is the loss of the
    whole batch even when local batches differ in size.

    Args:
        gather: "exact" as above; "upstream": every process computes the whole N×N loss and keeps the
            gradient of its own embeddings only.
        same_video_positives: leave other pairs of the same video out of the denominator. False keeps
            them as negatives, as published.

    Source: CLIP4Clip modules/until_module.py CrossEn and modeling.py forward @ 508ffa3, which equals
        the CLIP loss (arXiv 2103.00020, figure 3).
    """

    def __init__(self, gather: Literal["exact", "upstream"] = "exact", same_video_positives: bool = False) -> None:
        self.gather = gather
        self.same_video_positives = same_video_positives

    def __call__(self, similarity: SimilarityFn, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        """Return the scalar loss; row i of `text` describes row i of `video`."""
        return self.each({"loss": similarity}, text, video)["loss"]

    def each(
        self, similarities: Mapping[str, SimilarityFn], text: TextEmbedding, video: VideoEmbedding
    ) -> dict[str, Tensor]:
        """One loss per similarity function, all on the same gathered embeddings."""
        if len(text) != len(video):
            raise UserError(
                f"a training batch holds {len(text)} captions and {len(video)} videos, expected pairs; "
                "check the dataset's collate function"
            )
        if world_size() == 1:
            return {name: self._whole(score, text, video) for name, score in similarities.items()}
        sizes = gather_sizes(text)
        all_text = gather_embedding(text, self.gather, sizes)
        all_video = gather_embedding(video, self.gather, sizes)
        if self.gather == "upstream":
            return {name: self._whole(score, all_text, all_video) for name, score in similarities.items()}
        offset = sum(sizes[: torch.distributed.get_rank()])
        targets_B = torch.arange(offset, offset + len(text), device=text.ids.device)
        # sum of local rows · W / N: see the class docstring.
        scale = world_size() / max(sum(sizes), 1)
        losses = {}
        for name, score in similarities.items():
            text_rows_BN = self._without_same_video(score(text, all_video), text, all_video, targets_B)
            video_rows_BN = self._without_same_video(score(all_text, video), all_text, video, targets_B, columns=True).T
            rows = _cross_entropy_sum(text_rows_BN, targets_B) + _cross_entropy_sum(video_rows_BN, targets_B)
            losses[name] = rows * scale / 2
        return losses

    def local(self, similarity: SimilarityFn, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        """The loss of this process's batch alone, without negatives from other processes."""
        return self._whole(similarity, text, video)

    def _whole(self, score: SimilarityFn, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        targets_N = torch.arange(len(text), device=text.ids.device)
        s_TV = self._without_same_video(score(text, video), text, video, targets_N)
        return (_cross_entropy_sum(s_TV, targets_N) + _cross_entropy_sum(s_TV.T, targets_N)) / (2 * max(len(text), 1))

    def _without_same_video(
        self, s_TV: Tensor, text: TextEmbedding, video: VideoEmbedding, targets: Tensor, columns: bool = False
    ) -> Tensor:
        """Set pairs of the same video, except the pair itself, to −inf; `columns`: each column is a query."""
        if not self.same_video_positives:
            return s_TV
        other_TV = positives_mask(text, video)
        own = torch.arange(len(targets), device=targets.device)
        other_TV = other_TV.index_put((targets, own) if columns else (own, targets), other_TV.new_zeros(()))
        return s_TV.masked_fill(other_TV, float("-inf"))


def _cross_entropy_sum(logits_BN: Tensor, targets_B: Tensor) -> Tensor:
    """Summed cross-entropy in at least float32."""
    logits_BN = logits_BN if logits_BN.dtype is torch.float64 else logits_BN.float()
    return F.cross_entropy(logits_BN, targets_B, reduction="sum")
