"""The mean margin ranking loss of two processes against one process on the whole batch, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.losses.max_margin import MaxMarginLoss
from tests.processes import run_processes

PAIRS, WIDTH = 8, 6
HALVES = {"even": (4, 4), "uneven": (3, 5), "one": (1, 7), "empty": (0, 8)}


class Spaces(nn.Module):
    """The smallest pair of encoders."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.text, self.video = nn.Linear(WIDTH, 4).double(), nn.Linear(WIDTH, 4).double()

    def forward(self, rows: slice, loss: MaxMarginLoss) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        text, video = torch.randn(2, PAIRS, WIDTH, dtype=torch.float64, generator=generator)
        ids = torch.arange(PAIRS)[rows]
        return loss(
            lambda t, v: t.parts["x"] @ v.parts["x"].T,
            TextEmbedding(ids, {"x": F.normalize(self.text(text[rows]))}, video_ids=ids),
            VideoEmbedding(ids, {"x": F.normalize(self.video(video[rows]))}),
        )


def outcome(model: nn.Module, rows: slice, fix_norm: bool, gather: Any = "exact") -> dict[str, Tensor]:
    model.zero_grad()
    loss = model(rows, MaxMarginLoss(0.2, fix_norm, gather))
    loss.backward()
    gradients = {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()}
    return {"loss": loss.detach(), **gradients}


def everything(rank: int) -> dict[str, Any]:
    """All distributed results in one go: starting processes is the slow part."""
    model = DistributedDataParallel(Spaces())
    found: dict[str, Any] = {}
    for fix_norm in (True, False):
        for name, sizes in HALVES.items():
            rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
            found[f"{name}/{fix_norm}"] = outcome(model, rows, fix_norm)
        found[f"upstream/{fix_norm}"] = outcome(model, slice(4 * rank, 4 * rank + 4), fix_norm, "upstream")
    try:
        model(slice(0, 1 - rank), MaxMarginLoss())
    except UserError as error:
        found["alone"] = str(error)
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_processes(everything, 2)


@pytest.mark.parametrize("fix_norm", [True, False])
@pytest.mark.parametrize("halves", HALVES)
def test_two_processes_equal_one(ranks: list[dict[str, Any]], halves: str, fix_norm: bool) -> None:
    expected = outcome(Spaces(), slice(None), fix_norm)
    found = [rank[f"{halves}/{fix_norm}"] for rank in ranks]
    for result in found:
        for name in expected.keys() - {"loss"}:
            torch.testing.assert_close(result[name], expected[name], rtol=1e-10, atol=1e-12, msg=name)
    mean = (found[0]["loss"] + found[1]["loss"]) / 2  # what DDP's averaging of gradients differentiates
    torch.testing.assert_close(mean, expected["loss"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("fix_norm", [True, False])
def test_upstream_gather_has_the_whole_loss_and_half_the_gradient(ranks: list[dict[str, Any]], fix_norm: bool) -> None:
    expected = outcome(Spaces(), slice(None), fix_norm)
    for rank in ranks:
        found = rank[f"upstream/{fix_norm}"]
        torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-12, atol=0)
        for name in expected.keys() - {"loss"}:
            torch.testing.assert_close(2 * found[name], expected[name], rtol=1e-10, atol=1e-12, msg=name)


def test_one_pair_over_all_processes_is_refused_by_every_process(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "holds 1 pair(s), expected at least 2" in rank["alone"]
