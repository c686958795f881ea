"""Symmetric InfoNCE on scores that are multiplied by their softmax over the queries (dual softmax).

Shape suffixes: B queries, N items.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.errors import UserError
from src.losses.gather import GatherMode
from src.losses.infonce import SymmetricInfoNCE


class DualSoftmaxLoss(SymmetricInfoNCE):
    """Each score times the share that its query has of the item, and the number of queries: then as `SymmetricInfoNCE`.

    s'(q, i) = s(q, i) · B · softmax over queries of s(·, i)/temperature. Since a query thus depends on the scores of
    all others, every process computes the loss of the whole batch from the rows of all.

    Args:
        gather: see `PairLoss`.
        same_video_positives: see `SymmetricInfoNCE`; such pairs have no share either.
        temperature: of the softmax over the queries.

    Source: InternVideo1 Downstream/Video-Text-Retrieval modules/until_module.py dual_softmax_loss @ 3965eef, which no
        published script switches on; idea of CAMoE (arXiv 2109.04290).
    """

    needs_all_queries = True

    def __init__(
        self, gather: GatherMode = "exact", same_video_positives: bool = False, temperature: float = 1000.0
    ) -> None:
        super().__init__(gather, same_video_positives)
        if temperature <= 0:
            raise UserError(f"model.dsl_temperature={temperature}, expected more than 0")
        self.temperature = temperature

    def _cost(self, s_BN: Tensor, own_B: Tensor, name: str) -> Tensor:
        s_BN = s_BN if s_BN.dtype is torch.float64 else s_BN.float()
        left_out_BN = s_BN.isneginf()  # −∞ times its share of 0 would be nan
        share_BN = torch.softmax(s_BN / self.temperature, dim=0)
        dual_BN = (s_BN.masked_fill(left_out_BN, 0.0) * share_BN * len(s_BN)).masked_fill(left_out_BN, float("-inf"))
        return super()._cost(dual_BN, own_B, name)
