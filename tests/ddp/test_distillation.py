"""The distance to teachers of two processes against one process on the whole batch, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from src.batch import TeacherScores, TextEmbedding, VideoEmbedding
from src.losses.distillation import Distillation
from tests.processes import run_processes

PAIRS, WIDTH, VIDEOS = 8, 6, 11
HALVES = {"even": (4, 4), "uneven": (3, 5), "one": (1, 7), "empty": (0, 8)}
VIDEO_IDS = torch.tensor([3, 10, 0, 7, 1, 3, 9, 5])  # of the batch: in any order, one of them twice


class Spaces(nn.Module):
    """The smallest pair of encoders."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.text, self.video = nn.Linear(WIDTH, 4).double(), nn.Linear(WIDTH, 4).double()

    def forward(self, rows: slice) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        text, video = torch.randn(2, PAIRS, WIDTH, dtype=torch.float64, generator=generator)
        # Every process knows its captions' scores with all videos; some of them are far off, beyond beta.
        scores = 3 * torch.randn(2, PAIRS, VIDEOS, dtype=torch.float64, generator=generator)[:, rows]
        ids = VIDEO_IDS[rows]
        return Distillation(weight=0.7)(
            lambda t, v: t.parts["x"] @ v.parts["x"].T,
            TextEmbedding(torch.arange(PAIRS)[rows], {"x": F.normalize(self.text(text[rows]))}, video_ids=ids),
            VideoEmbedding(ids, {"x": F.normalize(self.video(video[rows]))}),
            TeacherScores({"a": scores[0], "b": scores[1]}, torch.arange(VIDEOS)),
        )


def outcome(model: nn.Module, rows: slice) -> dict[str, Tensor]:
    model.zero_grad()
    loss = model(rows)
    loss.backward()
    gradients = {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()}
    return {"loss": loss.detach(), **gradients}


def everything(rank: int) -> dict[str, Any]:
    """All distributed results in one go: starting processes is the slow part."""
    model = DistributedDataParallel(Spaces())
    return {name: outcome(model, slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))) for name, sizes in HALVES.items()}


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return run_processes(everything, 2)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return outcome(Spaces(), slice(0, PAIRS))


@pytest.mark.parametrize("name", HALVES)
def test_two_processes_train_as_one(found: list[dict[str, Any]], expected: dict[str, Tensor], name: str) -> None:
    mean = sum(process[name]["loss"] for process in found) / len(found)
    torch.testing.assert_close(mean, expected["loss"], rtol=1e-10, atol=0)
    for process in found:  # DDP has averaged the gradients
        for parameter, gradient in expected.items():
            if parameter != "loss":
                torch.testing.assert_close(process[name][parameter], gradient, rtol=1e-9, atol=1e-12)


def test_the_whole_batch_has_the_published_value(expected: dict[str, Tensor]) -> None:
    """Smooth L1 by its definition, on the mean over teachers, averaged over all entries."""
    generator = torch.Generator().manual_seed(2)
    text, video = torch.randn(2, PAIRS, WIDTH, dtype=torch.float64, generator=generator)
    scores = 3 * torch.randn(2, PAIRS, VIDEOS, dtype=torch.float64, generator=generator)
    model = Spaces()
    s_NN = F.normalize(model.text(text)) @ F.normalize(model.video(video)).T
    gap_NN = (s_NN - scores.mean(0)[:, VIDEO_IDS]).abs()
    value = 0.7 * torch.where(gap_NN < 1, gap_NN**2 / 2, gap_NN - 0.5).mean()
    assert (gap_NN > 1).any()
    torch.testing.assert_close(expected["loss"], value.detach(), rtol=1e-12, atol=0)
