"""Two processes that encode in chunks train like one process on the whole batch at once, in float64."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from src.batch import PairBatch
from src.models.base import RetrievalModule
from tests.processes import run_processes
from tests.tiny_pairs import assert_same, build_tiny, pairs, step

MODEL, CAPTIONS, VIDEOS = "model=clip2video", 7, 5
SHARES = ([0, 3, 5], [1, 2, 4, 6])  # captions of each process


class Step(nn.Module):
    """A training step as the forward pass that DDP wraps."""

    def __init__(self, model: RetrievalModule) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PairBatch) -> Tensor:
        with patch.object(self.model, "log"):
            return self.model.training_step(batch, 0)


def share(batch: PairBatch, rank: int) -> PairBatch:
    """The captions of a process with their videos, each once."""
    assert batch.rows is not None
    own = torch.tensor(SHARES[rank])
    videos, rows = batch.rows[own].unique(return_inverse=True)
    return PairBatch(batch.text.map(lambda t: t[own]), batch.video.map(lambda t: t[videos]), rows)


def trained(rank: int) -> list[dict[str, Any]]:
    """Loss and averaged gradients with and without chunks."""
    model = build_tiny(MODEL)
    wrapped, batch, found = DistributedDataParallel(Step(model)), share(pairs(CAPTIONS, VIDEOS), rank), []
    for chunks in (1, 2, 3):
        model.configure_loss(cache_chunks=chunks)
        model.zero_grad()
        loss = wrapped(batch)
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append({"loss": loss.detach(), **gradients})
    return found


def test_chunks_of_two_processes_train_as_one_batch() -> None:
    model = build_tiny(MODEL)
    expected = step(model, pairs(CAPTIONS, VIDEOS))
    processes = run_processes(trained, 2)
    for way in range(3):
        mean = sum(process[way]["loss"] for process in processes) / len(processes)
        for process in processes:
            assert_same({**process[way], "loss": mean}, expected)
