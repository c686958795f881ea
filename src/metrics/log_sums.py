"""log of a sum of exponentials for each item of a gallery, over queries that come in blocks and in several processes.

Shapes: N queries of a block, G items of the gallery.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from src.errors import UserError


class LogSums:
    """log Σ_n exp(x_ng) of every item g; nothing overflows, and of a block only two numbers per item stay.

    Args:
        size: G.

    Attributes:
        count: queries seen.
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self._most_G = torch.full((size,), -torch.inf, dtype=torch.float64)
        self._sum_G = torch.zeros(size, dtype=torch.float64)

    def add(self, scores_NG: Tensor, factor: float = 1.0) -> None:
        """Take in some queries; their exponents are factor · scores, and the factor is positive.

        Raises:
            UserError: a score is NaN, or all of an item are infinite.
        """
        if not len(scores_NG):
            return
        scores_NG = scores_NG.detach().to("cpu", torch.float64)
        most_G = scores_NG.amax(0)
        if not most_G.isfinite().all():  # NaN is the largest
            raise UserError(
                "re-scoring: found NaN or infinite scores, expected finite ones; "
                "look for a diverged checkpoint (NaN weights) or empty features"
            )
        self._include(factor * most_G, scores_NG.sub(most_G).mul_(factor).exp_().sum(0))
        self.count += len(scores_NG)

    def merge(self, other: LogSums) -> None:
        """Take in what another process saw."""
        if other.count:
            self._include(other._most_G, other._sum_G)
            self.count += other.count

    @classmethod
    def merged(cls, parts: Iterable[LogSums], size: int) -> LogSums:
        """All parts together; in whatever process, the same parts give the same bits."""
        whole = cls(size)
        for part in parts:
            whole.merge(part)
        return whole

    def _include(self, most_G: Tensor, sum_G: Tensor) -> None:
        common_G = torch.maximum(self._most_G, most_G)
        self._sum_G = self._sum_G * (self._most_G - common_G).exp() + sum_G * (most_G - common_G).exp()
        self._most_G = common_G

    @property
    def value_G(self) -> Tensor:
        """float64.

        Raises:
            UserError: there was no query.
        """
        if not self.count:
            raise UserError("re-scoring: found an empty bank, expected at least one query; choose another bank")
        return self._most_G + self._sum_G.log()
