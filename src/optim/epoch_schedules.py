"""Learning-rate schedules that advance once per epoch, after the validation and before the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LRScheduler, StepLR

from src.errors import UserError


def _each_epoch(scheduler: Any) -> LRScheduler:
    scheduler.every = "epoch"  # see `src.models.base.SchedulerFactory`
    return scheduler


@dataclass(frozen=True)
class StepDecay:
    """The rate times `gamma` after every `step_size` epochs.

    Attributes:
        step_size: epochs between two decays, at least 1.
        gamma: above 0 and at most 1.
    """

    step_size: int = 1
    gamma: float = 0.95

    def __post_init__(self) -> None:
        if self.step_size < 1:
            raise UserError(f"scheduler.step_size={self.step_size}, expected a number of epochs, 1 or more")
        if not 0 < self.gamma <= 1:
            raise UserError(f"scheduler.gamma={self.gamma}, expected a factor above 0 and at most 1")

    def build(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """`total_steps` is not used: the rule counts epochs."""
        return _each_epoch(StepLR(optimizer, self.step_size, self.gamma))


@dataclass(frozen=True)
class CosineRestarts:
    """A cosine from the base rate to `eta_min`, restarted after `first`, `first·factor`, `first·factor²`, … epochs.

    Attributes:
        first: epochs of the first period, at least 1.
        factor: length of a period over that of the one before, at least 1.
        eta_min: lowest rate, of every parameter group; not reached, since the restart comes first.

    Source: SGDR, arXiv 1608.03983.
    """

    first: int = 10
    factor: int = 2
    eta_min: float = 0.0

    def __post_init__(self) -> None:
        for name in ("first", "factor"):
            if getattr(self, name) < 1:
                raise UserError(f"scheduler.{name}={getattr(self, name)}, expected a whole number, 1 or more")
        if self.eta_min < 0:
            raise UserError(f"scheduler.eta_min={self.eta_min}, expected a rate, 0 or more")

    def build(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """`total_steps` is not used: the rule counts epochs."""
        return _each_epoch(CosineAnnealingWarmRestarts(optimizer, self.first, self.factor, self.eta_min))
