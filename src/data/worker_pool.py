"""Doing the same thing to many files in several processes, where a file may hang or kill the process.

The parent knows which file each worker is at: a worker that dies or takes too long costs that one file and is
replaced. Workers are spawned, for decoders must not cross a fork, and they end with their parent.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from src.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failed:
    """An item that could not be done, and why."""

    reason: str


@dataclass(frozen=True)
class _Bug:
    """What a worker answers to an exception that is no mistake of the user's."""

    text: str


@dataclass
class _Worker(Generic[Item]):
    """A process and the item that it is at."""

    process: BaseProcess
    pipe: Connection
    item: Item
    deadline: float


def run_each(
    work: Callable[[Item], Result], items: Sequence[Item], *, workers: int, timeout_s: float
) -> Iterator[tuple[Item, Result | Failed]]:
    """Apply `work` to every item and yield each with its result, in the order in which they are done.

    Args:
        work: a function that can be pickled; a UserError from it is that item's failure.
        items: what can be pickled.
        workers: processes; 0 = one per core.
        timeout_s: limit per item, seconds; 0 = none.

    Raises:
        RuntimeError: any other exception in a worker (a bug), with its traceback.
    """
    waiting = list(reversed(items))
    limit_s = timeout_s or math.inf
    busy: dict[Connection, _Worker[Item]] = {}
    try:
        for _ in range(min(workers or os.cpu_count() or 1, len(items))):
            started = _start(work, waiting.pop(), limit_s)
            busy[started.pipe] = started
        while busy:
            for pipe, answer in _answers(busy, timeout_s):
                worker = busy.pop(pipe)
                done = worker.item
                if waiting:
                    worker = _continue(worker, work, waiting.pop(), limit_s)
                    busy[worker.pipe] = worker
                else:
                    _end(worker)
                yield done, answer
    finally:
        for worker in busy.values():
            _end(worker)


def _answers(busy: dict[Connection, _Worker[Item]], timeout_s: float) -> Iterator[tuple[Connection, Any]]:
    """What arrived by the next deadline; workers that are over theirs, or dead, have been ended."""
    left_s = min(worker.deadline for worker in busy.values()) - time.monotonic()
    ready = wait(list(busy), None if math.isinf(left_s) else max(0.0, left_s))
    for pipe, worker in list(busy.items()):
        if pipe in ready:
            yield pipe, _receive(worker)
        elif worker.deadline <= time.monotonic():
            _end(worker)
            yield pipe, Failed(f"took longer than {timeout_s:g} s")


def _receive(worker: _Worker[Item]) -> Any:
    try:
        answer = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        _end(worker)
        return Failed(f"the process that worked on it died (exit code {worker.process.exitcode})")
    if isinstance(answer, _Bug):
        raise RuntimeError(f"while working on {worker.item}:\n{answer.text}")
    return answer


def _start(work: Callable[[Item], Result], item: Item, limit_s: float) -> _Worker[Item]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work), daemon=True)
    process.start()
    theirs.close()
    ours.send(item)
    return _Worker(process, ours, item, time.monotonic() + limit_s)


def _continue(worker: _Worker[Item], work: Callable[[Item], Result], item: Item, limit_s: float) -> _Worker[Item]:
    """The same process with a new item, or a new process where the old one is gone."""
    if worker.pipe.closed:
        return _start(work, item, limit_s)
    worker.pipe.send(item)
    return _Worker(worker.process, worker.pipe, item, time.monotonic() + limit_s)


def _end(worker: _Worker[Item]) -> None:
    worker.pipe.close()
    worker.process.kill()
    worker.process.join()


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """In a worker: one item after another, until the parent closes the pipe or is gone."""
    os.environ["OMP_NUM_THREADS"] = "1"  # as many threads per worker as cores would only get in each other's way
    while True:
        try:
            item = pipe.recv()
        except (EOFError, ConnectionResetError, KeyboardInterrupt):
            return
        try:
            answer = work(item)
        except UserError as error:
            answer = Failed(getattr(error, "reason", str(error)))
        except KeyboardInterrupt:
            return
        except Exception:  # noqa: BLE001  (the parent raises it)
            answer = _Bug(traceback.format_exc())
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return
