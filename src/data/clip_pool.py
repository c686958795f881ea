"""Decoding many videos in worker processes, in order; a file that kills its process is listed and the rest goes on."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from src.clip import Clip, Unusable
from src.data import worker_process
from src.data.annotation import VideoRecord

Decoded = Clip | Unusable
Decode = Callable[[VideoRecord], Decoded]
CRASHED = "the decoder crashed on it"
# Clips decoded ahead of the one in use, for each worker.
_AHEAD = 2


def decode_all(records: Iterable[VideoRecord], decode: Decode, workers: int) -> Iterator[Decoded]:
    """The result for each record, in their order.

    Args:
        records: to be decoded.
        decode: picklable; what it raises ends the iteration.
        workers: processes; 0 decodes here, where a crash of the decoder ends everything.
    """
    if not workers:
        yield from map(decode, records)
        return
    coming = iter(records)
    waiting: deque[tuple[VideoRecord, Future[Decoded]]] = deque()
    pool = _pool(workers)
    try:
        while True:
            while len(waiting) < _AHEAD * workers and (record := next(coming, None)) is not None:
                waiting.append((record, _submit(pool, decode, record)))
            if not waiting:
                return
            head, future = waiting.popleft()
            try:
                result = future.result()
            except BrokenProcessPool:
                pool.shutdown()
                yield from _one_by_one([(head, future), *waiting], decode)
                waiting.clear()
                pool = _pool(workers)
            else:
                yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, decode: Decode, record: VideoRecord) -> Future[Decoded]:
    try:
        return pool.submit(decode, record)
    except BrokenProcessPool as error:
        broken: Future[Decoded] = Future()
        broken.set_exception(error)
        return broken


def _one_by_one(unsure: Sequence[tuple[VideoRecord, Future[Decoded]]], decode: Decode) -> Iterator[Decoded]:
    """What was at work when the pool broke, each alone: the one that takes down its process again is the culprit."""
    pool: ProcessPoolExecutor | None = None
    for record, future in unsure:
        if future.done() and not future.cancelled() and future.exception() is None:
            yield future.result()
            continue
        pool = pool or _pool(1)
        try:
            result = pool.submit(decode, record).result()
        except BrokenProcessPool:
            pool.shutdown()
            pool = None
            result = Unusable(record.id, CRASHED, failed=True)
        yield result
    if pool is not None:
        pool.shutdown()


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not fork: this process has threads, and decoders must not cross a fork.
    known = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
    # The server imports once what every worker needs (torch for decord); workers then start in an instant.
    context.set_forkserver_preload(["src.data.worker_process", "src.data.clips"])
    return ProcessPoolExecutor(workers, context, worker_process.begin)
