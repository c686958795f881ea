"""The loader of all batches: drops what cannot be read, keeps its length in training, resumes in mid-epoch."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from src.data import worker_process
from src.data.datasets import FrameSource
from src.data.samplers import TrainBatchSampler
from src.errors import UserError

BatchT = TypeVar("BatchT")
LOOK_S = 5.0  # how long a dead worker may go unnoticed


class _WatchfulIterator(_MultiProcessingDataLoaderIter):
    """Looks after the workers every few seconds while it waits.

    torch does so only where there is no time limit; with one, a worker that the system killed would be noticed when the
    limit is over, after minutes. (Its signal handler does not help: workers are children of the fork server.)
    """

    def _try_get_data(self, timeout: float = LOOK_S) -> tuple[bool, Any]:
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            success, data = super()._try_get_data(max(0.0, min(LOOK_S, left)))
            if success or left <= LOOK_S:
                return success, data


class BatchLoader(DataLoader[Any], Generic[BatchT]):
    """A loader that never yields a batch in which nothing was readable, and can go on in mid-epoch.

    A checkpoint of the trainer holds `state_dict()`; a resumed epoch starts after the batches already trained on.

    Args:
        dataset: map-style data set.
        keep_length: yield as many batches as announced, by repeating the last good one in place of an unreadable
            one: processes that train together must take the same number of steps, and schedules count them.
            Otherwise (evaluation) an unreadable batch is left out.
        options: as for `DataLoader`.
    """

    def __init__(self, dataset: Dataset[Any], *, keep_length: bool = False, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.keep_length = keep_length
        self._yielded = 0
        self._resume_at = 0

    def state_dict(self) -> dict[str, int]:
        """Number of batches that the current epoch has given; the epoch itself is the trainer's."""
        return {"batches": self._yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration after the batches of `state`; a finished epoch starts anew."""
        self._resume_at = state["batches"] % max(len(self), 1)

    def _get_iterator(self) -> _BaseDataLoaderIter:
        return _WatchfulIterator(self) if self.num_workers else super()._get_iterator()

    def __iter__(self) -> Iterator[BatchT]:  # type: ignore[override]
        if isinstance(self.batch_sampler, TrainBatchSampler):
            self.batch_sampler.start = self._resume_at
        self._yielded, self._resume_at = self._resume_at, 0
        for batch in self._readable():
            self._yielded += 1
            yield batch

    def _readable(self) -> Iterator[BatchT]:
        good: BatchT | None = None
        owed = 0
        for batch in super().__iter__():
            if batch is not None:
                good = batch
                yield good
            if not self.keep_length:
                continue
            owed += batch is None
            while good is not None and owed:
                owed -= 1
                yield good
        if owed:
            raise UserError(
                "found no training video that can be read, expected at least one; "
                "run task=check_data task.decode=true to see the reasons"
            )


def worker_options(num_workers: int, seed: int, batch_limit_s: float) -> dict[str, Any]:
    """Options of a loader with this many processes; 0 loads in the main process.

    Args:
        num_workers: processes.
        seed: of the run.
        batch_limit_s: how long a batch of files that all reach their time limit takes, seconds; 0 = no limit.
    """
    # The loader's own generator: drawing worker seeds must not move torch's global one, or a resumed run
    # would see other random numbers than an uninterrupted one.
    options: dict[str, Any] = {
        "num_workers": num_workers,
        "pin_memory": torch.cuda.is_available(),
        "generator": torch.Generator().manual_seed(seed),
    }
    if not num_workers:
        return options
    # Forking a process that has decoder or pin-memory threads can dead-lock.
    context = multiprocessing.get_context(
        "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    )
    # The server imports once what every worker needs; workers then start in an instant.
    context.set_forkserver_preload([FrameSource.__module__])
    return options | {
        "multiprocessing_context": context,
        "persistent_workers": True,
        "worker_init_fn": worker_process.begin,
        # Turns a hang into an error.
        "timeout": 60 + batch_limit_s if batch_limit_s else 0,
    }
