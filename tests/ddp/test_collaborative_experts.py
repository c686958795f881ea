"""Collaborative Experts trained by two processes and by one, in float64.

What holds: with fixed statistics of the batch norms, losses and gradients are equal. In training these statistics are
those of each process's rows, so that only the processes stay equal to each other. Layers that nothing uses do not stop
DistributedDataParallel.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from src.batch import TextBatch, VideoBatch
from src.models.collaborative_experts import CollaborativeExperts
from tests.processes import run_processes
from tests.tiny_ce import make, texts, videos

OPTIONS: list[dict[str, Any]] = [{}, {"mixture_weights": False, "gating": "none", "project": False}]
PAIRS, STEPS = 8, 2


class Training(nn.Module):
    """A training step as one forward, for DistributedDataParallel."""

    def __init__(self, model: CollaborativeExperts) -> None:
        super().__init__()
        self.model = model
        unused = getattr(model, "_ddp_params_and_buffers_to_ignore", [])  # Lightning hands the model itself over
        self._ddp_params_and_buffers_to_ignore = [f"model.{name}" for name in unused]

    def forward(self, text: TextBatch, video: VideoBatch) -> Tensor:
        return self.model.loss(self.model.encode_text(text), self.model.encode_video(video))["loss"]


def train(module: nn.Module, model: CollaborativeExperts, rows: slice, training: bool) -> list[dict[str, Tensor]]:
    """Gradients of each step, and the loss under the name "loss"."""
    module.train(training)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for step in range(STEPS):
        text, video = (batch.map(lambda t: t[rows]) for batch in (texts(PAIRS, step), videos(PAIRS, step + 7)))
        text, video = (batch.map(lambda t: t.double() if t.is_floating_point() else t) for batch in (text, video))
        optimizer.zero_grad()
        loss = module(text, video)
        loss.backward()
        optimizer.step()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append({**gradients, "loss": loss.detach()})
    return found


def work(rank: int, options: dict[str, Any], training: bool) -> list[dict[str, Tensor]]:
    model = make(**options).double()
    rows = (slice(0, 3), slice(3, PAIRS))[rank]
    return train(DistributedDataParallel(Training(model)), model, rows, training)


def all_work(rank: int) -> list[list[list[dict[str, Tensor]]]]:
    return [[work(rank, options, training) for training in (False, True)] for options in OPTIONS]


@pytest.fixture(scope="module")
def together() -> list[Any]:
    return run_processes(all_work, 2)


@pytest.mark.parametrize("case", range(len(OPTIONS)))
def test_processes_equal_one_when_statistics_are_fixed(case: int, together: list[Any]) -> None:
    model = make(**OPTIONS[case]).double()
    alone = train(Training(model), model, slice(None), training=False)
    for step, expected in enumerate(alone):
        first, second = (rank[case][0][step] for rank in together)
        torch.testing.assert_close((first.pop("loss") + second.pop("loss")) / 2, expected.pop("loss"))
        torch.testing.assert_close(first, expected)
        torch.testing.assert_close(second, expected)


@pytest.mark.parametrize("case", range(len(OPTIONS)))
def test_processes_stay_equal_in_training(case: int, together: list[Any]) -> None:
    for first, second in zip(*(rank[case][1] for rank in together), strict=True):
        del first["loss"], second["loss"]
        torch.testing.assert_close(first, second)
        assert ("mixture.weight" in first) == (case == 0)
