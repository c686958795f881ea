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
CASES: dict[str, dict[str, Any]] = {
    "fusion": {},
    "vision": {"mode": "vision"},
    "ocr": {"mode": "ocr"},
    "recomputed": {"ocr_checkpointing": True, "ocr_words_per_pass": 3},
    "max_margin": {"mode": "ocr", "loss": "max_margin"},
}


class Step(nn.Module):
    """A training step as the forward pass that DDP wraps."""

    def __init__(self, model: RetrievalModule) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PairBatch) -> Tensor:
        with patch.object(self.model, "log"):
            return self.model.training_step(batch, 0)


def build(case: str) -> RetrievalModule:
    return without_dropout(tiny_textvr(time_init="rand", **CASES[case]).double())


def gradients(step: nn.Module, model: RetrievalModule, batch: PairBatch) -> dict[str, Tensor]:
    model.zero_grad()
    loss = step(batch)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


def trained(rank: int) -> dict[str, list[dict[str, Any]]]:
    """All cases in one go, since starting processes is the slow part."""
    return {case: two_steps(rank, case) for case in CASES}


def two_steps(rank: int, case: str) -> list[dict[str, Any]]:
    """DDP finds a parameter that the first step left out when the second begins."""
    model = build(case)
    wrapped, batch = DistributedDataParallel(Step(model)), make_pairs(LENGTHS)
    own = torch.tensor(SHARES[rank])
    share = PairBatch(batch.text.map(lambda t: t[own]), batch.video.map(lambda t: t[own]))
    return [gradients(wrapped, model, share) for _ in range(2)]


@pytest.fixture(scope="module")
def processes() -> list[dict[str, list[dict[str, Any]]]]:
    return run_processes(trained, 2)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_batch(processes: list[dict[str, list[dict[str, Any]]]], case: str) -> None:
    model = build(case)
    expected = gradients(Step(model), model, make_pairs(LENGTHS))
    assert any(name.startswith("fusion.") for name in expected) == (case != "vision")
    for step in range(2):
        mean = sum(process[case][step]["loss"] for process in processes) / len(processes)
        for process in processes:
            found = {**process[case][step], "loss": mean}
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=name)
