"""save_similarity=true: the scores of the validation part too, from which late fusion learns (`src.tasks.fuse`)."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer

from src.batch import TextBatch, VideoBatch
from src.data.datamodule import RetrievalDataModule
from src.data.loader import BatchLoader
from src.models.base import RetrievalModule
from src.tasks.loaders import Loaders
from src.tasks.outcome import ResultWriter, save_similarity

PREFIX = "val_"  # val_similarity.npy, val_captions.txt, val_videos.txt


def write(trainer: Trainer, model: RetrievalModule, datamodule: RetrievalDataModule, writer: ResultWriter) -> None:
    """Encode and score the validation part, where the run saves scores and its split has one. Call after the test."""
    if not writer.cfg.save_similarity or "val" not in datamodule.applied.parts or datamodule.annotation.topics:
        return
    trainer.test(_Scored(model, writer), datamodule=_Validation(datamodule), verbose=False)


class _Validation(Loaders):
    """The validation part in the place of the test."""

    def test_dataloader(self) -> list[BatchLoader[Any]]:
        return self.benchmark.eval_dataloaders("val")


class _Scored(LightningModule):
    """The model in a test that only saves scores; the test's own results stay as they are."""

    def __init__(self, model: RetrievalModule, writer: ResultWriter) -> None:
        super().__init__()
        self.model = model
        self.writer = writer

    def test_step(self, batch: TextBatch | VideoBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.model.test_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        text, video = self.model.collected("val")
        if not self.trainer.is_global_zero:
            return
        part = self.trainer.datamodule.benchmark.part("val")  # type: ignore[attr-defined]
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            save_similarity(self.writer.run_dir, part, (text, video), self.model, prefix=PREFIX)
