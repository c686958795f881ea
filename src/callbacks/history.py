"""One row of metrics per epoch: on the terminal, in the run folder and in the report."""

from __future__ import annotations

import csv
import logging
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)


class History(Callback):
    """Keeps `metrics.csv`: epoch, step, seconds, learning rate, training losses and validation metrics.

    The rows travel in the checkpoint, so a resumed run has the whole curve.

    Args:
        path: the csv file; rewritten after each epoch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._epoch_started = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row: dict[str, float] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "epoch_s": time.perf_counter() - self._epoch_started,
            "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),
        }
        for name, value in trainer.callback_metrics.items():
            if name.startswith("train/") and name.endswith("_epoch"):
                row[name.removesuffix("_epoch")] = value.item()
            elif name.startswith("val/"):
                row[name] = value.item()
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write()
            shown = {"loss": row.get("train/loss"), "validation loss": row.get("val/loss")}
            shown |= {"t2v R@1": row.get("val/t2v/R1"), "v2t R@1": row.get("val/v2t/R1")}
            parts = [f"{name} {value:.4g}" for name, value in shown.items() if value is not None]
            log.info("epoch %d/%s: %s, %.0f s", row["epoch"] + 1, trainer.max_epochs, ", ".join(parts), row["epoch_s"])

    def _write(self) -> None:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        temporary = self.path.with_suffix(".part")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        temporary.replace(self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
