"""The best few items of every query, kept up to date while tiles of scores come by."""

from __future__ import annotations

import torch
from torch import Tensor


class RunningTop:
    """Best K items of N queries.

    Attributes:
        scores_NK: float64, best first; -inf where nothing was kept yet.
        items_NK: int64 positions; -1 where nothing was kept yet.
    """

    def __init__(self, queries: int, kept: int, device: torch.device | str = "cpu") -> None:
        self.scores_NK = torch.full((queries, kept), -torch.inf, dtype=torch.float64, device=device)
        self.items_NK = torch.full((queries, kept), -1, dtype=torch.int64, device=device)

    def merge(self, at: slice, tile: Tensor, best: Tensor, positions: Tensor) -> None:
        """Take in the scores of some queries with some items.

        Args:
            at: the queries, M of them.
            tile: (M, I) scores.
            best: (M,) the highest score of each row; rows that bring nothing new are not looked at.
            positions: int64 (I,) of the items.
        """
        scores, items = self.scores_NK[at], self.items_NK[at]
        kept = scores.shape[1]
        if not kept:
            return
        better = best > scores[:, -1]  # the merge below leaves the worst kept score last
        if better.any():
            values, columns = tile[better].topk(min(kept, tile.shape[1]), dim=1)
            values = torch.cat([scores[better], values.double()], dim=1)
            scores[better], chosen = values.topk(kept, dim=1)
            items[better] = torch.cat([items[better], positions[columns]], dim=1).gather(1, chosen)


def in_order(items: Tensor, scores: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Sort each row, best first and the lower position first among equals, and cut it after `kept`."""
    by_item = items.argsort(dim=1, stable=True)
    by_score = scores.gather(1, by_item).argsort(dim=1, descending=True, stable=True)
    chosen = by_item.gather(1, by_score)[:, :kept]
    return items.gather(1, chosen), scores.gather(1, chosen)
