"""Which of several epochs with the best score `MovableCheckpoint` keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from src.callbacks import MovableCheckpoint

SCORES = [1.0, 3.0, 2.0, 3.0, 3.0, 2.5]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*exists and is not empty.*"
)


class Scripted(LightningModule):
    """Its validation gives scripted scores."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=1.0)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.weight.sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("score", SCORES[self.current_epoch])


def kept_epoch(folder: Path, later_wins: bool, epochs: int = len(SCORES), resume: Path | None = None) -> int:
    common = {"dirpath": folder, "enable_version_counter": False, "save_on_train_epoch_end": True}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[
            MovableCheckpoint(filename="best", monitor="score", mode="max", later_wins=later_wins, **common),
            MovableCheckpoint(filename="last", **common),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    data = DataLoader(torch.zeros(1, 1), batch_size=1)
    trainer.fit(Scripted(), data, data, ckpt_path=resume, weights_only=True)
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt"}
    return torch.load(folder / "best.ckpt", weights_only=True)["epoch"]


@pytest.mark.parametrize(("later_wins", "expected"), [(False, 1), (True, 4)])
def test_first_or_last_of_the_best_epochs(tmp_path: Path, later_wins: bool, expected: int) -> None:
    assert kept_epoch(tmp_path / "whole", later_wins) == expected


@pytest.mark.parametrize(("later_wins", "expected"), [(False, 1), (True, 4)])
def test_the_rule_survives_that_a_run_is_resumed_in_another_folder(
    tmp_path: Path, later_wins: bool, expected: int
) -> None:
    assert kept_epoch(tmp_path / "a", later_wins, epochs=3) == 1
    assert kept_epoch(tmp_path / "b", later_wins, resume=tmp_path / "a" / "last.ckpt") == expected
