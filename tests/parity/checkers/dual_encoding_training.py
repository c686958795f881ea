"""The learning-rate rule and early stopping of Dual Encoding, run by the trainer of every run."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from src.callbacks.early_stop import EarlyStop
from src.models.base import RetrievalModule
from src.optim.decay_on_plateau import DecayOnPlateauFactory
from tests.parity.cases import Case

MONITOR = "val/SumR"


class Scripted(LightningModule):
    """A model without training whose validation gives scripted scores."""

    lr_scheduler_step = RetrievalModule.lr_scheduler_step
    on_train_epoch_end = RetrievalModule.on_train_epoch_end

    def __init__(self, scores: list[float], lr: float, decay: float) -> None:
        super().__init__()
        self.scores, self.lr, self.decay = scores, lr, decay
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rates: list[float] = []

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([self.weight], lr=self.lr)
        scheduler = DecayOnPlateauFactory(MONITOR, decay=self.decay).build(optimizer, 0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == 0:
            self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return 0 * self.weight.sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log(MONITOR, float(self.scores[self.current_epoch]))


def rates_of(trace: dict[str, Any], meta: dict[str, Any]) -> list[float]:
    model = Scripted(trace["scores"], meta["initial_lr"], meta["decay"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=r".*LeafSpec.*is deprecated.*")
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=len(trace["scores"]),
            callbacks=[EarlyStop(MONITOR)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=2,  # must not count as an epoch
            log_every_n_steps=1,
        )
        data = DataLoader(torch.zeros(2, 1), batch_size=1)
        trainer.fit(model, data, data)
    return model.rates


def check_schedule(case: Case) -> None:
    """The rate of every epoch, to the last bit, and the number of epochs."""
    for name, trace in case.meta["traces"].items():
        rates = rates_of(trace, case.meta)
        assert rates == [epoch["lr"] for epoch in trace["epochs"]], name
        assert len(rates) == trace["epochs_run"], name


CHECKERS = {"dual_encoding": {"lr_schedule_early_stop": check_schedule}}
