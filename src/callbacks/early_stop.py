"""Stopping when the selecting metric no longer improves."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pytorch_lightning.callbacks import EarlyStopping

from src.metrics.order import better


class EarlyStop(EarlyStopping):
    """Lightning's `EarlyStopping` with a value that the first epoch has to beat, and a choice of what improves.

    Lightning's first epoch always counts as an improvement, so a run that learns nothing would go on for one epoch
    longer than it does upstream. Whether higher is better follows from the metric's name (`src.metrics.order`).

    Args:
        monitor: metric of the validation.
        patience: stop after so many epochs in a row without improvement.
        best: the value to beat in the first epoch; None: 0 where higher is better, and none where lower is.
        ties: last: an epoch as good as the best one improves; first: it does not.

    Source: danieljf24/hybrid_space@b934eff trainer.main (stops when the count exceeds 10: the 11th epoch in a row);
        frozen-in-time base/base_trainer.py @ e1f13e1 counts likewise, and equal values as improvements.
    """

    _OR_EQUAL: ClassVar = {"min": torch.le, "max": torch.ge}

    def __init__(
        self, monitor: str, patience: int = 11, best: float | None = None, ties: Literal["first", "last"] = "first"
    ) -> None:
        mode = better(monitor)
        super().__init__(monitor, patience=patience, mode=mode, check_on_train_epoch_end=True)
        if ties == "last":
            self.mode_dict = self._OR_EQUAL  # of this callback only
        start = float("inf") if mode == "min" else 0.0
        self.best_score = torch.tensor(start if best is None else best)
