"""Extraction as a Lightning prediction: shards are shared out among processes, devices and machines.

A shard is the unit of work: batches never cross its border, and it is computed anew as a whole after an interruption,
so that every item always meets the same company and the store has the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from src.clip import Clip
from src.data.annotation import VideoRecord
from src.data.clip_pool import Decode, Decoded, decode_all
from src.data.features.writer import FAILED, Item, StoreWriter
from src.errors import UserError
from src.extractors.base import Extractor

Source = Mapping[str, VideoRecord] | Mapping[str, Clip]


@dataclass
class ClipBatch:
    """Some items of one shard.

    Attributes:
        shard: number of the shard.
        clips: decoded, or the reason why not.
        is_last: the shard ends with this batch.
    """

    shard: int
    clips: list[Decoded]
    is_last: bool


@dataclass(frozen=True)
class Work:
    """What is to be done, by all processes together.

    Attributes:
        writer: of the store.
        source: item id -> its video, or for captions the clip itself.
        decode: a video to its clip; None for captions.
        workers: decoding processes beside each computing one.
        batch_size: items that the extractor gets together.
        share: (i, n) = this job of an array does every n-th shard, starting with the i-th.
        retry: shards with failed items are done again.
    """

    writer: StoreWriter
    source: Source
    decode: Decode | None
    workers: int
    batch_size: int
    share: tuple[int, int] = (0, 1)
    retry: bool = False

    def pending(self) -> list[int]:
        """Shards that this job still has to do."""
        job, jobs = self.share
        return [shard for shard in self.writer.pending() if shard % jobs == job]

    def batches(self, shards: Sequence[int]) -> Iterator[ClipBatch]:
        """All items of some shards, decoded, shard after shard."""
        clips = self._clips(shards)
        for shard in shards:
            ids = self.writer.shard_ids(shard)
            for at in range(0, len(ids), self.batch_size):
                size = len(ids[at : at + self.batch_size])
                yield ClipBatch(shard, [next(clips) for _ in range(size)], at + size == len(ids))

    def _clips(self, shards: Sequence[int]) -> Iterator[Decoded]:
        items: Iterator[Any] = (self.source[item] for shard in shards for item in self.writer.shard_ids(shard))
        return items if self.decode is None else decode_all(items, self.decode, self.workers)


class WorkData(LightningDataModule):
    """Hands each process of a job its share of the pending shards."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work

    def predict_dataloader(self) -> Batches:
        trainer = self.trainer
        assert trainer is not None
        if self.work.retry and trainer.is_global_zero:
            self.work.writer.reopen_failed()
        # One process looks, or another one might see shards that were finished meanwhile.
        pending = trainer.strategy.broadcast(self.work.pending())
        return Batches(self.work, pending[trainer.global_rank :: trainer.world_size])

    def transfer_batch_to_device(self, batch: ClipBatch, device: torch.device, dataloader_idx: int) -> ClipBatch:
        """Extractors move what they compute with."""
        return batch


class Batches:
    """A loader, as far as Lightning needs one."""

    def __init__(self, work: Work, shards: Sequence[int]) -> None:
        self.work = work
        self.shards = shards

    def __iter__(self) -> Iterator[ClipBatch]:
        return self.work.batches(self.shards)

    @property
    def num_items(self) -> int:
        return sum(len(self.work.writer.shard_ids(shard)) for shard in self.shards)


class Extraction(LightningModule):
    """Calls the extractor and writes each shard when its last item is done.

    Args:
        extractor: the features.
        writer: of the store.
    """

    def __init__(self, extractor: Extractor, writer: StoreWriter) -> None:
        super().__init__()
        self.extractor = extractor
        self.writer = writer
        self._done: list[Item] = []

    def on_predict_start(self) -> None:
        self.extractor.to(self.device)

    def predict_step(self, batch: ClipBatch) -> int:
        self._done += items_of(self.extractor, batch.clips, np.dtype(self.writer.plan.dtype))
        if batch.is_last:
            self.writer.write_shard(batch.shard, self._done)
            self._done = []
        return len(batch.clips)


class ItemProgress(Callback):
    """A bar over the items of the first process, on a terminal only.

    Args:
        name: what it says.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._bar: Progress | None = None

    def on_predict_start(self, trainer: Trainer, module: LightningModule) -> None:
        console = Console()
        if not (trainer.is_global_zero and console.is_terminal):
            return
        batches = trainer.predict_dataloaders
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console)
        self._bar.add_task(self.name, total=batches.num_items if isinstance(batches, Batches) else None)
        self._bar.start()

    def on_predict_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], outputs)

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def items_of(extractor: Extractor, clips: Sequence[Decoded], dtype: np.dtype[Any]) -> list[Item]:
    """What the store gets for each clip, in order.

    Raises:
        UserError: the extractor breaks its own promise about the shape.
    """
    usable = [clip for clip in clips if isinstance(clip, Clip)]
    found = {clip.id: item for clip, item in zip(usable, _extract(extractor, usable, dtype), strict=True)}
    items: list[Item] = []
    for clip in clips:
        if isinstance(clip, Clip):
            items.append(found[clip.id])
        else:
            items.append((clip.id, None, f"{FAILED}{clip.reason}" if clip.failed else clip.reason, None))
    return items


def _extract(extractor: Extractor, clips: list[Clip], dtype: np.dtype[Any]) -> list[Item]:
    if not clips:
        return []
    try:
        results = extractor.extract_many(clips)
    except UserError as error:
        if len(clips) == 1:
            return [_failed(clips[0], error)]
        return [item for clip in clips for item in _extract(extractor, [clip], dtype)]  # whose fault is it?
    if len(results) != len(clips):
        raise UserError(f"extractor {extractor.name!r} gave {len(results)} results for {len(clips)} items")
    return [_item(extractor, clip, rows, dtype) for clip, rows in zip(clips, results, strict=True)]


def _item(extractor: Extractor, clip: Clip, rows: np.ndarray | None, dtype: np.dtype[Any]) -> Item:
    details = extractor.details(clip)
    if rows is None or len(rows) == 0:
        return clip.id, None, extractor.nothing, details
    if rows.ndim != 2 or rows.shape[1] != extractor.dim:
        raise UserError(
            f"extractor {extractor.name!r} gave shape {rows.shape} for {clip.id!r}, expected (steps, {extractor.dim})"
        )
    with np.errstate(over="ignore"):
        stored = rows.astype(dtype)
    if not np.isfinite(stored).all():
        fits = np.isfinite(rows).all()
        why = "numbers too large for float16; give task.dtype=float32" if fits else "NaN or infinite numbers"
        return _failed(clip, UserError(f"the extractor gave {why}"))
    return clip.id, stored, None, details


def _failed(clip: Clip, error: UserError) -> Item:
    return clip.id, None, f"{FAILED}{error}", None
