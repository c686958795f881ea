"""Margin ranking loss over the batch of all processes, and the concept loss beside it.

Shape suffixes: B pairs of this process, N pairs of all processes, K concepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from src.losses.gather import GatherMode, world_size
from src.losses.pairs import Direction, PairLoss

CostStyle = Literal["sum", "mean"]


class TripletLoss(PairLoss):
    """max(0, margin + s(query, other) − s(query, own)), over all others or the hardest one of each query.

    Captions are the queries of t2v (rows), videos those of v2t (columns); every other item of the batch is a
    negative, other captions of the same video too. Processes: see `PairLoss`.

    Args:
        margin: least lead of the own item; or one for each name given to `each`.
        max_violation: only the hardest negative of each query counts.
        cost_style: "sum" over the costs, or "mean": over the N queries with `max_violation`, otherwise over all N².
        direction: which queries count.
        gather: see `PairLoss`.

    Source: hybrid_space loss.py TripletLoss @ b934eff (VSE++, arXiv 1707.05612).
    """

    def __init__(
        self,
        margin: float | Mapping[str, float] = 0.2,
        max_violation: bool = True,
        cost_style: CostStyle = "sum",
        direction: Direction = "all",
        gather: GatherMode = "exact",
    ) -> None:
        super().__init__(gather, direction)
        self.margin = margin
        self.max_violation = max_violation
        self.cost_style = cost_style

    def _cost(self, s_BN: Tensor, own_B: Tensor, name: str) -> Tensor:
        if not s_BN.numel():
            return s_BN.sum()
        margin = self.margin if isinstance(self.margin, int | float) else self.margin[name]
        cost_BN = (margin + s_BN - s_BN.gather(1, own_B[:, None])).clamp(min=0)
        cost_BN = cost_BN.scatter(1, own_B[:, None], 0.0)
        # `max`, not `amax`: among equals one item takes the whole gradient, as published.
        return cost_BN.max(dim=1).values.sum() if self.max_violation else cost_BN.sum()

    def _mean(self, total: Tensor, num_pairs: int) -> Tensor:
        if self.cost_style == "sum":
            return total
        return total / max(num_pairs if self.max_violation else num_pairs**2, 1)


def concept_loss(p_BK: Tensor, y_BK: Tensor) -> Tensor:
    """Binary cross-entropy of concept probabilities with soft targets: mean over concepts, sum over the batch.

    This is the published factor B times the mean over B·K. With several processes the value is multiplied by their
    number, so that the mean that DDP takes is the sum over the whole batch.

    Args:
        p_BK: predicted probabilities; logarithms are cut at −100.
        y_BK: targets in [0, 1].

    Source: hybrid_space loss.py and model.py (`BCELoss` on both sides) @ b934eff.
    """
    return F.binary_cross_entropy(p_BK, y_BK, reduction="sum") / p_BK.shape[1] * world_size()
