"""Margin ranking loss over all negatives of the batch, as Collaborative Experts averages it.

Shape suffixes: B pairs of this process, N pairs of all processes.
"""

from __future__ import annotations

from torch import Tensor

from src.errors import UserError
from src.losses.gather import GatherMode
from src.losses.pairs import PairLoss


class MaxMarginLoss(PairLoss):
    """Mean over both directions of max(0, margin + s(query, other) − s(query, own)), every other item a negative.

    Args:
        margin: least lead of the own item.
        fix_norm: True: the mean over the 2·N·(N−1) pairs of a query and another item. False: over all 2·N² entries,
            those of the pairs themselves being `margin`: (N−1)/N of the first plus margin/N, as in the original MoEE.
        gather: see `PairLoss`.

    Source: collaborative-experts model/loss.py MaxMarginRankingLoss @ 7eb3b9d.
    Deviates: one pair alone has no negatives, which gave nan with `fix_norm`; here it is refused.
    """

    def __init__(self, margin: float = 0.2, fix_norm: bool = True, gather: GatherMode = "exact") -> None:
        super().__init__(gather)
        self.margin = margin
        self.fix_norm = fix_norm

    def _cost(self, s_BN: Tensor, own_B: Tensor, name: str) -> Tensor:
        cost_BN = (self.margin + s_BN - s_BN.gather(1, own_B[:, None])).clamp(min=0)
        return cost_BN.scatter(1, own_B[:, None], 0.0).sum() if self.fix_norm else cost_BN.sum()

    def _mean(self, total: Tensor, num_pairs: int) -> Tensor:
        """See `PairLoss`.

        Raises:
            UserError: with `fix_norm`, the batch of all processes holds fewer than two pairs.
        """
        if self.fix_norm and num_pairs < 2:
            raise UserError(
                f"a training batch holds {num_pairs} pair(s), expected at least 2, since the others are the negatives; "
                "choose dataset.batch_size so that the last batch of an epoch has more"
            )
        return total / (2 * num_pairs * (num_pairs - 1) if self.fix_norm else 2 * max(num_pairs, 1) ** 2)
