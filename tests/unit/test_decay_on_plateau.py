"""Dual Encoding's rate rule and early stopping in a trainer; the golden case proves the rates themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from src.callbacks import MovableCheckpoint
from src.callbacks.early_stop import EarlyStop
from src.errors import UserError
from src.models.base import RetrievalModule
from src.optim.decay_on_plateau import DecayOnPlateau, DecayOnPlateauFactory
from src.optim.factories import AdamFactory, RMSpropFactory

SCORES = [10.0, 9.0, 8.0, 7.0, 12.0, 11.0, 3.0, 2.0, 1.0]
LOADER = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*exists and is not empty.*"
)


class Scripted(LightningModule):
    """Its validation gives scripted scores; it notes the rate of every epoch."""

    lr_scheduler_step = RetrievalModule.lr_scheduler_step
    on_train_epoch_end = RetrievalModule.on_train_epoch_end

    def __init__(self, monitor: str = "val/SumR") -> None:
        super().__init__()
        self.monitor = monitor
        self.weight = nn.Parameter(torch.zeros(1))
        self.rates: list[float] = []

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([self.weight], lr=1.0)
        scheduler = DecayOnPlateauFactory(self.monitor).build(optimizer, 0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == 0:
            self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return 0 * self.weight.sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/SumR", SCORES[self.current_epoch])


def fit(folder: Path, epochs: int, resume: bool = False, monitor: str = "val/SumR", **options: Any) -> list[float]:
    model = Scripted(monitor)
    last = MovableCheckpoint(
        dirpath=folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[EarlyStop("val/SumR", patience=4), last] if monitor == "val/SumR" else [last],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **options,
    )
    data = DataLoader(torch.zeros(2, 1), batch_size=1)
    trainer.fit(model, data, data, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    return model.rates


@LOADER
@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_resumed_run_has_the_rates_and_the_end_of_a_whole_one(tmp_path: Path, cut: int) -> None:
    whole = fit(tmp_path / "whole", len(SCORES))
    assert len(whole) == len(SCORES), "the fourth epoch in a row without improvement is the last one"
    assert whole[2] == pytest.approx(0.99**2)
    assert whole[3] == pytest.approx(0.99**3 * 0.5)
    assert fit(tmp_path / "cut", cut) == whole[:cut]
    assert fit(tmp_path / "cut", len(SCORES) + 5, resume=True) == whole[cut:]


@LOADER
def test_a_metric_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"follows val/SumX, found of the validation: val/SumR"):
        fit(tmp_path, 1, monitor="val/SumX")
    with pytest.raises(UserError, match=r"found of the validation: none; .*scheduler=none"):
        fit(tmp_path, 1, monitor="val/SumX", limit_val_batches=0)


def test_every_group_decays_and_the_state_survives_a_checkpoint(tmp_path: Path) -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [parameters[0]], "lr": 1.0}, {"params": [parameters[1]], "lr": 0.1}])
    scheduler = DecayOnPlateau(optimizer, "m", decay=0.5, factor=0.25, patience=0)
    scheduler.step(0.0)  # not above the start value: halved at once
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.125, 0.0125])
    torch.save(scheduler.state_dict(), tmp_path / "state")
    copy = DecayOnPlateau(optimizer, "m")
    copy.load_state_dict(torch.load(tmp_path / "state", weights_only=True))  # as checkpoints are loaded
    copy.step(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0625, 0.00625])
    assert copy.get_last_lr() == pytest.approx([0.0625, 0.00625])
    assert (copy.best, copy.counter, copy.last_epoch) == (1.0, 1, 2)


@pytest.mark.parametrize("wrong", [{"decay": 0.0}, {"factor": 1.5}, {"patience": -1}])
def test_impossible_rules_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"scheduler.{next(iter(wrong))}=.*expected"):
        DecayOnPlateauFactory("val/SumR", **wrong)


@pytest.mark.parametrize(
    ("factory", "reference"),
    [
        (AdamFactory(lr=0.1), lambda p: torch.optim.Adam(p, lr=0.1)),
        (RMSpropFactory(lr=0.1), lambda p: torch.optim.RMSprop(p, lr=0.1)),
    ],
    ids=["adam", "rmsprop"],
)
def test_optimisers_are_those_of_torch_with_its_defaults(factory: Any, reference: Any) -> None:
    ours, theirs = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizers = [factory.build([("w", ours)], 0), reference([theirs])]
    for step in range(3):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = torch.tensor([0.1, -2.0, 3.0]) * (step + 1)
            optimizer.step()
    assert torch.equal(ours, theirs)
