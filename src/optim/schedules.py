"""Learning-rate schedules, as factors of the fraction x of the run that is done.

Step s of T has x = s/T, counted from 0, so the first step of a warm-up has rate 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from src.errors import UserError


def warmup_cosine(x: float, warmup: float) -> float:
    """x/w, then ½(1+cos πx): the cosine is not re-based, so it starts a little below 1 after the warm-up.

    Source: CLIP4Clip modules/optimization.py @ 508ffa3.
    """
    return x / warmup if x < warmup else 0.5 * (1 + math.cos(math.pi * x))


def warmup_constant(x: float, warmup: float) -> float:
    """x/w, then 1. Source: as `warmup_cosine`."""
    return x / warmup if x < warmup else 1.0


def warmup_linear(x: float, warmup: float) -> float:
    """x/w, then down to 0 at the end of the run, then 0. Source: as `warmup_cosine`."""
    return x / warmup if x < warmup else max((x - 1) / (warmup - 1), 0.0)


@dataclass(frozen=True)
class _Warmup:
    """A schedule that rises from 0 over the first `warmup` fraction of the run.

    Attributes:
        warmup: fraction of all steps, at least 0 and less than 1.
    """

    warmup: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise UserError(f"scheduler.warmup={self.warmup}, expected a fraction of the run from 0 to below 1")

    def _build(self, optimizer: Optimizer, total_steps: float, factor: Callable[[float, float], float]) -> LRScheduler:
        length = max(total_steps, 1)

        def at(step: int) -> float:
            return factor(step / length, self.warmup)

        return LambdaLR(optimizer, at)


@dataclass(frozen=True)
class WarmupCosine(_Warmup):
    """See `warmup_cosine`."""

    def build(self, optimizer: Optimizer, total_steps: float) -> LRScheduler:
        return self._build(optimizer, total_steps, warmup_cosine)


@dataclass(frozen=True)
class WarmupConstant(_Warmup):
    """See `warmup_constant`."""

    def build(self, optimizer: Optimizer, total_steps: float) -> LRScheduler:
        return self._build(optimizer, total_steps, warmup_constant)


@dataclass(frozen=True)
class WarmupLinear(_Warmup):
    """See `warmup_linear`."""

    def build(self, optimizer: Optimizer, total_steps: float) -> LRScheduler:
        return self._build(optimizer, total_steps, warmup_linear)


@dataclass(frozen=True)
class Constant:
    """No schedule: the learning rate stays as it is."""

    def build(self, optimizer: Optimizer, total_steps: float) -> None:
        return None
