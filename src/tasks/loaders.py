"""What a trainer gets of a benchmark."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import LightningDataModule

from src.batch import PairBatch
from src.data.datamodule import RetrievalDataModule
from src.data.loader import BatchLoader


class Loaders(LightningDataModule):
    """What a trainer gets of a benchmark: the loaders.

    The benchmarks are dataclasses, and Lightning takes dataclasses among the arguments of a spawned process apart
    to look for modules; it refuses frozen ones, such as the split. This plain object is left whole.
    """

    def __init__(self, benchmark: RetrievalDataModule) -> None:
        super().__init__()
        self.benchmark = benchmark
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def setup(self, stage: str) -> None:
        self.benchmark.trainer = self.trainer
        self.benchmark.setup(stage)

    def train_dataloader(self) -> BatchLoader[PairBatch]:
        return self.benchmark.train_dataloader()

    def val_dataloader(self) -> list[BatchLoader[Any]]:
        return self.benchmark.val_dataloader()

    def test_dataloader(self) -> list[BatchLoader[Any]]:
        return self.benchmark.test_dataloader()
