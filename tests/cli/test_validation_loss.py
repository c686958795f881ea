"""A run that is selected and stopped by the loss of its validation, as Frozen in Time is trained."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.cli.conftest import Outcome


def test_the_epoch_of_the_lowest_loss_is_tested(
    cli: Callable[..., Outcome], metrics: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    options = ("model=clip4clip", "optimizer=hf_adamw", "optimizer.lr=3e-3", "scheduler=none", "trainer.max_epochs=30")
    cli(*options, "optimized_metric=val/loss", "callbacks=early_stop", "callbacks.early_stop.patience=2").succeeded()
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file)]
    best = losses.index(min(losses))
    assert len(losses) < 30, losses
    assert len(losses) == best + 3, "two epochs in a row without improvement end the run"
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["epoch"] == best
    assert metrics("run")["protocol"]["checkpoint"] == "best"
    assert "loss" not in metrics("run"), "a test has none"
