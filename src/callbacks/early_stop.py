"""Stopping when the selecting metric no longer improves."""

from __future__ import annotations

import torch
from pytorch_lightning.callbacks import EarlyStopping


class EarlyStop(EarlyStopping):
    """Lightning's `EarlyStopping` on a metric where higher is better, with a value that the first epoch has to beat.

    Lightning's first epoch always counts as an improvement, so a run that learns nothing would go on for one epoch
    longer than it does upstream.

    Args:
        monitor: metric of the validation.
        patience: stop after so many epochs in a row without improvement.
        best: the value to beat in the first epoch.

    Source: danieljf24/hybrid_space@b934eff trainer.main (stops when the count exceeds 10: the 11th epoch in a row).
    """

    def __init__(self, monitor: str, patience: int = 11, best: float = 0.0) -> None:
        super().__init__(monitor, patience=patience, mode="max", check_on_train_epoch_end=True)
        self.best_score = torch.tensor(best)
