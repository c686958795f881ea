"""The margin ranking loss of two processes against one process on the whole batch, in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from src.batch import TextEmbedding, VideoEmbedding
from src.losses.triplet import TripletLoss, concept_loss
from src.models.measures import training_measure
from tests.processes import run_processes

PAIRS, WIDTH = 8, 6
HALVES = {"even": (4, 4), "uneven": (3, 5), "empty": (0, 8)}
# max_violation, cost_style, direction
VARIANTS = [
    *itertools.product((True, False), ("sum", "mean"), ("all",)),
    (True, "sum", "t2v"),
    (True, "sum", "v2t"),
    (False, "mean", "t2v"),
    (False, "mean", "v2t"),
]
Variant = tuple[bool, Any, Any]


class Hybrid(nn.Module):
    """The smallest pair of encoders into two spaces."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.text, self.video = nn.Linear(WIDTH, 4).double(), nn.Linear(WIDTH, 4).double()

    def forward(self, rows: slice, loss: TripletLoss) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        text, video, targets = torch.randn(3, PAIRS, WIDTH, dtype=torch.float64, generator=generator)
        ids = torch.arange(PAIRS)[rows]
        sides = [encoder(x[rows]).sigmoid() for encoder, x in ((self.text, text), (self.video, video))]
        measure = training_measure("jaccard")
        triplet = loss(
            lambda t, v: measure(t.parts["p"], v.parts["p"]),
            TextEmbedding(ids, {"p": sides[0]}, video_ids=ids),
            VideoEmbedding(ids, {"p": sides[1]}),
        )
        return triplet + sum(concept_loss(side, targets[rows, :4].sigmoid()) for side in sides)


def outcome(model: nn.Module, rows: slice, variant: Variant, gather: Any) -> dict[str, Tensor]:
    model.zero_grad()
    hardest, style, direction = variant
    loss = model(rows, TripletLoss(0.2, hardest, style, direction, gather))
    loss.backward()
    gradients = {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()}
    return {"loss": loss.detach(), **gradients}


def everything(rank: int) -> dict[str, Any]:
    """All distributed results in one go: starting processes is the slow part."""
    model = DistributedDataParallel(Hybrid())
    found: dict[str, Any] = {}
    for name, sizes in HALVES.items():
        rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        for variant in VARIANTS:
            found[f"{name}/{variant}"] = outcome(model, rows, variant, "exact")
    found["upstream"] = outcome(model, slice(4 * rank, 4 * rank + 4), VARIANTS[0], "upstream")["loss"]
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_processes(everything, 2)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("halves", HALVES)
def test_two_processes_equal_one(ranks: list[dict[str, Any]], halves: str, variant: Variant) -> None:
    expected = outcome(Hybrid(), slice(None), variant, "exact")
    found = [rank[f"{halves}/{variant}"] for rank in ranks]
    for result in found:
        for name in expected.keys() - {"loss"}:
            torch.testing.assert_close(result[name], expected[name], rtol=1e-10, atol=1e-12, msg=name)
    mean = (found[0]["loss"] + found[1]["loss"]) / 2  # what DDP's averaging of gradients differentiates
    torch.testing.assert_close(mean, expected["loss"], rtol=1e-12, atol=0)


def test_upstream_gather_gives_every_process_the_whole_triplet_loss(ranks: list[dict[str, Any]]) -> None:
    expected = outcome(Hybrid(), slice(None), VARIANTS[0], "exact")["loss"]
    torch.testing.assert_close((ranks[0]["upstream"] + ranks[1]["upstream"]) / 2, expected, rtol=1e-12, atol=0)
