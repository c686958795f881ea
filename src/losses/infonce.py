"""Symmetric InfoNCE over the batch of all processes.

Shape suffixes: B queries, N items, T text rows, V video columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding, positives_mask
from src.losses.gather import GatherMode
from src.losses.pairs import PairLoss, SimilarityFn


class SymmetricInfoNCE(PairLoss):
    """Cross-entropy of each caption over all videos and of each video over all captions, averaged.

    Args:
        gather: see `PairLoss`.
        same_video_positives: leave other pairs of the same video out of the denominator. False keeps
            them as negatives, as published.

    Source: CLIP4Clip modules/until_module.py CrossEn and modeling.py forward @ 508ffa3, which equals
        the CLIP loss (arXiv 2103.00020, figure 3).
    """

    def __init__(self, gather: GatherMode = "exact", same_video_positives: bool = False) -> None:
        super().__init__(gather)
        self.same_video_positives = same_video_positives

    def _scores(
        self, score: SimilarityFn, text: TextEmbedding, video: VideoEmbedding, pairs: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Similarities, −inf for other pairs of the same video where these are no negatives."""
        s_TV = score(text, video)
        if not self.same_video_positives:
            return s_TV
        other_TV = positives_mask(text, video)
        return s_TV.masked_fill(other_TV.index_put(pairs, other_TV.new_zeros(())), float("-inf"))

    def _cost(self, s_BN: Tensor, own_B: Tensor, name: str) -> Tensor:
        """Summed cross-entropy in at least float32."""
        logits_BN = s_BN if s_BN.dtype is torch.float64 else s_BN.float()
        return F.cross_entropy(logits_BN, own_B, reduction="sum")

    def _mean(self, total: Tensor, num_pairs: int) -> Tensor:
        return total / (2 * max(num_pairs, 1))
