"""Which of two values of a metric is the better one, by the metric's name."""

from __future__ import annotations

from typing import Literal

_LOWER = ("loss", "MdR", "MnR")


def better(metric: str) -> Literal["min", "max"]:
    """Whether the lowest or the highest value of `val/loss`, `val/t2v/R1`, `val/v2t/MnR` and the like is the best."""
    return "min" if metric.rsplit("/", 1)[-1] in _LOWER else "max"
