"""Schedules by epochs in a trainer, and resuming at the end of an epoch; the golden case proves the cosine's rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from src.callbacks import MovableCheckpoint
from src.errors import UserError
from src.models.base import RetrievalModule
from src.optim.epoch_schedules import CosineRestarts, StepDecay
from src.optim.factories import RangerFactory
from src.optim.schedules import WarmupLinear

EPOCHS, BATCHES = 7, 4
LOADER = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*exists and is not empty.*"
)
# Expected rate of every epoch, of a base rate of 1.
RATES = {
    "step": (StepDecay(gamma=0.5), [0.5**epoch for epoch in range(EPOCHS)]),
    "every_second": (StepDecay(step_size=2, gamma=0.5), [0.5 ** (epoch // 2) for epoch in range(EPOCHS)]),
    "cosine": (CosineRestarts(first=2, factor=2, eta_min=0.5), [1, 0.75, 1, 0.926777, 0.75, 0.573223, 1]),
}


class Regression(RetrievalModule):
    """A regression, validated every epoch, that notes the rate of each batch and of each validation."""

    input_spec = None
    encode_text = encode_video = similarity = None

    def __init__(self, schedule: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -1.0]))
        self.rates: list[float] = []
        self.validated: list[float] = []
        self.configure(RangerFactory(lr=1.0, weight_decay=1e-3), schedule, EPOCHS * BATCHES, seed=0)

    def on_validation_epoch_end(self) -> None:
        """There is nothing to rank."""

    def rate(self) -> float:
        return self.trainer.optimizers[0].param_groups[0]["lr"]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.rates.append(self.rate())
        return (batch @ self.weight - batch_idx).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        if batch_idx == 0:
            self.validated.append(self.rate())


def fit(folder: Path, schedule: Any, epochs: int, resume: bool = False) -> Regression:
    model = Regression(schedule)
    last = MovableCheckpoint(
        dirpath=folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[last],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=2,  # must not count as an epoch
        log_every_n_steps=1,
    )
    data = DataLoader(torch.randn(BATCHES, 2, generator=torch.Generator().manual_seed(0)), batch_size=1)
    trainer.fit(model, data, data, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    return model


@LOADER
@pytest.mark.parametrize("name", RATES)
def test_rates_change_once_per_epoch_after_the_validation(tmp_path: Path, name: str) -> None:
    schedule, expected = RATES[name]
    model = fit(tmp_path, schedule, EPOCHS)
    assert model.rates == pytest.approx([rate for rate in expected for _ in range(BATCHES)], abs=1e-6)
    assert model.validated[-EPOCHS:] == pytest.approx(expected, abs=1e-6)


@LOADER
@pytest.mark.parametrize(("name", "cut"), [("step", 1), ("step", 4), ("cosine", 2), ("cosine", 3)])
def test_a_resumed_run_is_a_whole_one_to_the_last_bit(tmp_path: Path, name: str, cut: int) -> None:
    """Cuts between updates of the slow weights too: 4 and 8 steps of 6."""
    schedule, _ = RATES[name]
    whole = fit(tmp_path / "whole", schedule, EPOCHS)
    first = fit(tmp_path / "cut", schedule, cut)
    rest = fit(tmp_path / "cut", schedule, EPOCHS, resume=True)
    assert first.rates + rest.rates == whole.rates
    assert torch.equal(rest.weight, whole.weight)
    assert not torch.equal(first.weight, whole.weight)


@LOADER
def test_schedules_by_steps_still_advance_by_steps(tmp_path: Path) -> None:
    steps = EPOCHS * BATCHES
    model = fit(tmp_path, WarmupLinear(warmup=0.5), EPOCHS)
    expected = [step / (steps / 2) if step < steps / 2 else 2 - step / (steps / 2) for step in range(steps)]
    assert model.rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "wrong"),
    [
        (StepDecay, {"step_size": 0}),
        (StepDecay, {"gamma": 0.0}),
        (StepDecay, {"gamma": 1.1}),
        (CosineRestarts, {"first": 0}),
        (CosineRestarts, {"factor": 0}),
        (CosineRestarts, {"eta_min": -0.1}),
    ],
)
def test_impossible_schedules_are_refused(schedule: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"scheduler.{next(iter(wrong))}=.*expected"):
        schedule(**wrong)
