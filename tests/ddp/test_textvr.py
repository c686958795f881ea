"""Two processes train TextVR as one does, every parameter used in every step, in float64."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from src.batch import PairBatch
from src.models.base import RetrievalModule
from tests.processes import run_processes
from tests.tiny_textvr import make_pairs, tiny_textvr, without_dropout

LENGTHS = [6, 0, 3, 1, 2]
SHARES = ([0, 3, 4], [1, 2])  # the second has a video without words


class Step(nn.Module):
    """A training step as the forward pass that DDP wraps."""

    def __init__(self, model: RetrievalModule) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PairBatch) -> Tensor:
        with patch.object(self.model, "log"):
            return self.model.training_step(batch, 0)


def build(mode: str) -> RetrievalModule:
    return without_dropout(tiny_textvr(mode=mode, time_init="rand").double())


def gradients(step: nn.Module, model: RetrievalModule, batch: PairBatch) -> dict[str, Tensor]:
    model.zero_grad()
    loss = step(batch)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


def trained(rank: int, mode: str) -> list[dict[str, Any]]:
    """Two steps: DDP finds a parameter that the first left out when the second begins."""
    model = build(mode)
    wrapped, batch = DistributedDataParallel(Step(model)), make_pairs(LENGTHS)
    own = torch.tensor(SHARES[rank])
    share = PairBatch(batch.text.map(lambda t: t[own]), batch.video.map(lambda t: t[own]))
    return [gradients(wrapped, model, share) for _ in range(2)]


@pytest.mark.parametrize("mode", ["fusion", "ocr"])
def test_two_processes_train_as_one_batch(mode: str) -> None:
    model = build(mode)
    expected = gradients(Step(model), model, make_pairs(LENGTHS))
    assert any(name.startswith("fusion.") for name in expected)
    processes = run_processes(trained, 2, mode)
    for step in range(2):
        mean = sum(process[step]["loss"] for process in processes) / len(processes)
        for process in processes:
            found = {**process[step], "loss": mean}
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=name)
