"""The learning-rate rule of Dual Encoding: a slow decay every epoch, and halving while nothing gets better."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from src.errors import UserError


class DecayOnPlateau(LRScheduler):
    """Multiplies every rate by `decay` after each epoch, and by `factor` too when the epoch was not the best.

    The second happens only when more than `patience` epochs went by since the last time it did, or since the start:
    the count does not begin anew when the metric improves. "Best" is strict, and the first epoch has to beat `best`.

    Args:
        optimizer: whose rates are changed.
        monitor: name of the metric, higher is better.
        decay: factor of every epoch.
        factor: further factor of an epoch that was not the best.
        patience: epochs between two uses of `factor`, itself not counted.
        best: the value to beat in the first epoch.

    Source: danieljf24/hybrid_space@b934eff trainer.main.
    """

    every = "epoch"

    def __init__(
        self,
        optimizer: Optimizer,
        monitor: str,
        *,
        decay: float = 0.99,
        factor: float = 0.5,
        patience: int = 2,
        best: float = 0.0,
    ) -> None:
        # LRScheduler's own constructor takes a first step, which would need a metric; as torch's ReduceLROnPlateau.
        self.optimizer = optimizer
        self.monitor = monitor
        self.decay, self.factor, self.patience, self.best = decay, factor, patience, best
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self._last_lr = list(self.base_lrs)
        self.last_epoch = 0
        self.counter = 0

    def step(self, metric: float) -> None:  # type: ignore[override]
        """End of an epoch whose validation gave `metric`."""
        is_best = float(metric) > self.best
        if is_best:
            self.best = float(metric)
        self.last_epoch += 1
        self.counter += 1
        halve = not is_best and self.counter > self.patience
        if halve:
            self.counter = 0
        for group in self.optimizer.param_groups:
            group["lr"] *= self.decay
            if halve:
                group["lr"] *= self.factor
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


@dataclass(frozen=True)
class DecayOnPlateauFactory:
    """See `DecayOnPlateau`.

    Attributes:
        monitor: metric of the validation, higher is better.
        decay: factor on the learning rate after every epoch, above 0 and at most 1.
        factor: further factor after an epoch that was not the best, above 0 and at most 1.
        patience: epochs between two uses of `factor`, itself not counted.
    """

    monitor: str
    decay: float = 0.99
    factor: float = 0.5
    patience: int = 2

    def __post_init__(self) -> None:
        for name in ("decay", "factor"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"scheduler.{name}={getattr(self, name)}, expected a factor above 0 and at most 1")
        if self.patience < 0:
            raise UserError(f"scheduler.patience={self.patience}, expected a number of epochs, 0 or more")

    def build(self, optimizer: Optimizer, total_steps: int) -> DecayOnPlateau:
        """`total_steps` is not used: the rule follows the metric."""
        return DecayOnPlateau(optimizer, self.monitor, decay=self.decay, factor=self.factor, patience=self.patience)
