"""Filling a frame cache with several processes; see `src.data.frame_cache` for what it stores.

Light to import, because every worker process does. Interrupted at any moment, even by SIGKILL, the next run goes on
where it stopped: finished shards are kept. A file that cannot be read, one that takes too long and one that crashes the
decoder are listed, and the rest goes on.
"""

from __future__ import annotations

import fcntl
import math
import multiprocessing
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from src.data.annotation import VideoRecord
from src.data.cache_writer import begin, write_shard
from src.data.frame_cache import Recipe, is_current
from src.data.video import DEFAULT_TIMEOUT_S, Problem
from src.data.folder_lock import locked
from src.errors import UserError

Shard = Sequence[VideoRecord]
Outcome = tuple[int, list[Problem]]


@dataclass(frozen=True)
class FillOptions:
    """How to fill, which leaves no trace in the result.

    Attributes:
        workers: processes; 0 = one per core.
        timeout_s: limit per file, seconds.
        videos_per_shard: videos that are committed together.
    """

    workers: int = 0
    timeout_s: float = DEFAULT_TIMEOUT_S
    videos_per_shard: int = 64


@dataclass
class Filled:
    """What a run of `fill` did: videos stored before, stored now, and not readable."""

    before: int = 0
    stored: int = 0
    problems: list[Problem] = field(default_factory=list)


def fill(
    folder: Path,
    records: Sequence[VideoRecord],
    recipe: Recipe,
    options: FillOptions,
    advance: Callable[[int], object] = lambda count: None,
) -> Filled:
    """Store every record that is not stored yet, or whose file changed.

    Args:
        folder: the cache.
        records: with distinct ids.
        recipe: has to be that of the folder, if it holds a cache.
        options: how.
        advance: called with the number of videos that were just dealt with.

    Raises:
        UserError: another recipe, another process fills the folder, or it cannot be written.
    """
    try:
        with locked(folder):
            entries = begin(folder, recipe)
            missing = [r for r in records if r.id not in entries or not is_current(entries[r.id], r)]
            filled = Filled(before=len(records) - len(missing))
            advance(filled.before)
            for stored, problems in _write_all(folder, missing, recipe, options):
                filled.stored += stored
                filled.problems += problems
                advance(stored + len(problems))
            return filled
    except OSError as error:
        raise UserError(
            f"cannot write the frame cache {folder} ({error.strerror or error}); finished shards are kept: "
            "make room or give another dataset.cache_dir, then run it again"
        ) from error


def _write_all(folder: Path, records: Shard, recipe: Recipe, options: FillOptions) -> Iterator[Outcome]:
    """Write the shards in worker processes; what a crash of one interrupts is tried again, suspects alone."""
    workers = options.workers or os.cpu_count() or 1
    # Small sets are cut finer, so that no worker is left alone with the last shard for long.
    size = max(1, min(options.videos_per_shard, math.ceil(len(records) / (4 * workers))))
    shards: list[Shard] = [records[i : i + size] for i in range(0, len(records), size)]
    workers = min(workers, len(shards))
    while shards:
        unfinished, suspects = [], set()
        for shard, outcome in _in_pool(folder, shards, recipe, options.timeout_s, max(1, workers)):
            if outcome is None:
                unfinished.append(shard)
            else:
                yield outcome
        if unfinished:
            suspects = _take_crumbs(folder)
            for record in (r for shard in unfinished for r in shard if r.id in suspects):
                _, outcome = next(iter(_in_pool(folder, [[record]], recipe, options.timeout_s, 1)))
                _take_crumbs(folder)
                yield outcome or (0, [Problem(record.id, str(record.path), "the decoder crashed on it")])
        rest = [[record for record in shard if record.id not in suspects] for shard in unfinished]
        if unfinished and not suspects:
            raise UserError(
                f"{folder}: a worker process was killed (out of memory?); set task.workers={workers // 2 or 1}"
            )
        shards = [shard for shard in rest if shard]


def _in_pool(
    folder: Path, shards: Sequence[Shard], recipe: Recipe, timeout_s: float, workers: int
) -> Iterator[tuple[Shard, Outcome | None]]:
    """Each shard with its outcome, None where the pool broke before it was done."""
    # Not fork: this process has threads (progress bar), and decoders must not cross a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (os.getpid(),))
    waiting: dict[Future[Outcome], Shard] = {}
    try:
        with _one_thread_each():
            for number, shard in enumerate(shards):
                name = f"shard-{time.time_ns():020d}-{number:05d}-{uuid.uuid4().hex[:6]}"
                waiting[pool.submit(_write_one, folder, name, shard, recipe, timeout_s)] = shard
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                shard = waiting.pop(future)
                try:
                    outcome: Outcome | None = future.result()
                except BrokenProcessPool:
                    outcome = None
                yield shard, outcome
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Workers inherit it; as many threads per worker as cores would only get in each other's way."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _start_worker(parent: int) -> None:
    """A worker ends when its parent was killed, instead of waiting for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_one(folder: Path, name: str, shard: Shard, recipe: Recipe, timeout_s: float) -> Outcome:
    """In a worker. The file `.decoding-<pid>` names the video at work, for the case that it kills the process."""
    crumb = folder / f".decoding-{os.getpid()}"
    try:
        return write_shard(folder, name, shard, recipe, timeout_s, before_each=lambda record: _leave(crumb, record.id))
    finally:
        crumb.unlink(missing_ok=True)


def _leave(crumb: Path, video_id: str) -> None:
    crumb.write_text(video_id, encoding="utf-8")


def _take_crumbs(folder: Path) -> set[str]:
    """Videos that were being decoded when the pool broke."""
    found = set()
    for crumb in folder.glob(".decoding-*"):
        found.add(crumb.read_text(encoding="utf-8"))
        crumb.unlink()
    return found
