"""task=bench, part metrics: both directions from a saved matrix of the size of MSR-VTT full, one thread."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from omegaconf import DictConfig

from src.metrics.qb_norm import QueryBank
from src.metrics.retrieval import evaluate_matrix
from src.tasks.bench import PeakMemory

MISSING = 6  # captions of MSR-VTT's test part that do not exist
BLOCK = 1024  # bank queries at a time


def bench_metrics(cfg: DictConfig) -> dict[str, float]:
    """Ranks of both directions with averaged ties, some rows masked, and the query bank of QB-Norm.

    The time of the bank is measured on as many rows as the matrix has, and multiplied to `task.bank_captions`.
    """
    captions, videos = cfg.task.num_captions, cfg.task.num_videos
    generator = torch.Generator().manual_seed(cfg.seed)
    scores_QV = torch.randn(captions, videos, generator=generator)
    owner = torch.arange(captions) * videos // captions
    scores_QV[torch.arange(captions), owner] += 2  # as a trained model has it: most ranks are low, some are not
    mask = torch.ones(captions, dtype=torch.bool)
    mask[torch.randperm(captions, generator=generator)[:MISSING]] = False
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with PeakMemory() as memory:
            seconds = _cpu_seconds(lambda: evaluate_matrix(scores_QV, owner, videos, mask=mask, ties="average"))
        with PeakMemory() as bank_memory:
            bank = _cpu_seconds(lambda: QueryBank.of(scores_QV.split(BLOCK), videos, beta=20.0).shift_G)
    finally:
        torch.set_num_threads(threads)
    return {
        "captions": captions,
        "masked": MISSING,
        "videos": videos,
        "CPU-s": seconds,
        "MB above the matrix": memory.megabytes,
        "matrix MB": scores_QV.nbytes / 1e6,
        "bank captions": cfg.task.bank_captions,
        "bank CPU-s": bank * cfg.task.bank_captions / captions,
        "bank MB": bank_memory.megabytes,
    }


def _cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
