"""The loss of Frozen in Time on two processes against one on the whole batch, in float64; and that of a validation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from src.batch import TextEmbedding, VideoEmbedding
from src.losses.norm_softmax import NormSoftmaxLoss
from src.models.validation_loss import validation_loss
from tests.processes import run_processes

PAIRS, WIDTH = 8, 6
HALVES = {"even": (4, 4), "uneven": (3, 5), "one": (1, 7), "empty": (0, 8)}


class Towers(nn.Module):
    """The smallest pair of encoders."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.text, self.video = nn.Linear(WIDTH, 4).double(), nn.Linear(WIDTH, 4).double()

    def forward(self, rows: slice) -> tuple[TextEmbedding, VideoEmbedding]:
        generator = torch.Generator().manual_seed(2)
        text, video = torch.randn(2, PAIRS, WIDTH, dtype=torch.float64, generator=generator)
        ids, videos = torch.arange(PAIRS)[rows], (torch.arange(PAIRS) // 2)[rows]
        return (
            TextEmbedding(ids, {"x": F.normalize(self.text(text[rows]))}, video_ids=videos),
            VideoEmbedding(videos, {"x": F.normalize(self.video(video[rows]))}),
        )


def cosines(text: TextEmbedding, video: VideoEmbedding) -> Tensor:
    return text.parts["x"] @ video.parts["x"].T


def outcome(model: nn.Module, rows: slice, same_video_positives: bool) -> dict[str, Tensor]:
    model.zero_grad()
    loss = NormSoftmaxLoss(same_video_positives=same_video_positives)(cosines, *model(rows))
    loss.backward()
    gradients = {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()}
    return {"loss": loss.detach(), **gradients}


def validated() -> Tensor:
    """The loss of a validation whose embeddings every process has, with other modules than DDP's."""
    text, video = Towers()(slice(None))
    video = VideoEmbedding(video.ids[::2], {"x": video.parts["x"][::2].detach()})
    loss = NormSoftmaxLoss()
    with torch.no_grad():
        return validation_loss(lambda t, v: {"loss": loss(cosines, t, v)}, text, video, 2)


def everything(rank: int) -> dict[str, Any]:
    """All distributed results in one go: starting processes is the slow part."""
    model = DistributedDataParallel(Towers())
    found: dict[str, Any] = {}
    for positives in (False, True):
        for name, sizes in HALVES.items():
            rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
            found[f"{name}/{positives}"] = outcome(model, rows, positives)
    return found | {"validated": validated()}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_processes(everything, 2)


@pytest.mark.parametrize("positives", [False, True])
@pytest.mark.parametrize("halves", HALVES)
def test_two_processes_equal_one(ranks: list[dict[str, Any]], halves: str, positives: bool) -> None:
    expected = outcome(Towers(), slice(None), positives)
    found = [rank[f"{halves}/{positives}"] for rank in ranks]
    for result in found:
        for name in expected.keys() - {"loss"}:
            torch.testing.assert_close(result[name], expected[name], rtol=1e-10, atol=1e-12, msg=name)
    mean = (found[0]["loss"] + found[1]["loss"]) / 2  # what DDP's averaging of gradients differentiates
    torch.testing.assert_close(mean, expected["loss"], rtol=1e-12, atol=0)


def test_every_process_computes_the_loss_of_a_validation_alone(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        torch.testing.assert_close(rank["validated"], validated(), rtol=1e-12, atol=0)
