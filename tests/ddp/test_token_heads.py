"""Token heads, channel decorrelation and the dual softmax loss: two processes against one, in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from src.batch import TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.losses.dual_softmax import DualSoftmaxLoss
from src.models.clip4clip import Clip4Clip
from src.models.heads import wti
from src.models.heads.base import HeadFactory
from src.models.heads.ti import TokenInteractionHead
from src.models.heads.wti import WeightedTokenInteractionHead
from src.models.heads.xclip import XClipHead
from src.models.heads.xpool import XPoolHead
from tests.processes import run_processes
from tests.tiny_clip import tiny_arch

PAIRS = 5
SIZES = {"even": (2, 3), "empty": (0, 5)}
HEADS: dict[str, HeadFactory] = {
    "ti": TokenInteractionHead,
    "wti": WeightedTokenInteractionHead,
    "cdcr1": partial(WeightedTokenInteractionHead, cdcr=1, cdcr_lambda=0.1, cdcr_alpha2=0.1),
    "cdcr2": partial(WeightedTokenInteractionHead, arch=1, cdcr=2, cdcr_lambda=0.1),
    "cdcr3": partial(WeightedTokenInteractionHead, arch=3, cdcr=3, cdcr_lambda=0.1, cdcr_alpha2=0.1),
    "xpool": partial(XPoolHead, dropout=0.0),
    "xclip": XClipHead,
}
CASES = {**dict.fromkeys(HEADS, "infonce"), "wti/dsl": "dsl"}


class Training(nn.Module):
    """The training step of a model on some of the pairs, as one forward."""

    def __init__(self, case: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        head, loss = HEADS[case.split("/")[0]], CASES[case]
        self.model = Clip4Clip(arch=tiny_arch(), head=head, num_frames=3, max_words=6, loss=loss, dsl_temperature=5.0)  # type: ignore[arg-type]
        self.model.double()

    def forward(self, rows: slice) -> Tensor:
        generator = torch.Generator().manual_seed(4)
        ids = torch.arange(PAIRS)[rows]
        tokens = torch.randint(1, 60, (PAIRS, 6), generator=generator)
        lengths = torch.tensor([6, 3, 4, 6, 2])
        tokens[torch.arange(PAIRS), lengths - 1] = 63
        frames = torch.randn(PAIRS, 3, 3, 16, 16, dtype=torch.float64, generator=generator)
        mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool()
        text = TextBatch(tokens[rows], (torch.arange(6) < lengths[:, None])[rows], ids, ids)
        video = VideoBatch(ids=ids, frames_BTCHW=frames[rows], mask_BT=mask[rows])
        return self.model.loss(self.model.encode_text(text), self.model.encode_video(video))["loss"]


def step(model: nn.Module, rows: slice) -> dict[str, Tensor]:
    loss = model(rows)
    loss.backward()
    gradients = {n.removeprefix("module."): p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def first_valid(mask_BX: Tensor) -> Tensor:
    """Stands for the random draw, which depends on the process."""
    return mask_BX.int().argmax(dim=1)


class Scores(nn.Module):
    """The smallest pair of encoders."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.text, self.video = nn.Linear(6, 4).double(), nn.Linear(6, 4).double()

    def forward(self, rows: slice, loss: DualSoftmaxLoss) -> Tensor:
        text, video = torch.randn(2, PAIRS, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        ids = torch.tensor([0, 1, 2, 0, 4])[rows]
        return loss(
            lambda t, v: 3 * t.parts["x"] @ v.parts["x"].T,
            TextEmbedding(ids=torch.arange(PAIRS)[rows], parts={"x": self.text(text[rows])}, video_ids=ids),
            VideoEmbedding(ids=ids, parts={"x": self.video(video[rows])}),
        )


LOSSES = {f"{name}/{same}": DualSoftmaxLoss("exact", same, temperature=3.0) for name in SIZES for same in (False, True)}


def everything(rank: int) -> dict[str, Any]:
    wti.draw = first_valid
    found: dict[str, Any] = {}
    for name, loss in LOSSES.items():
        sizes = SIZES[name.split("/")[0]]
        rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        model = DistributedDataParallel(Scores())
        value = model(rows, loss)
        value.backward()
        found[name] = {"loss": value.detach(), **{n[7:]: p.grad for n, p in model.named_parameters()}}
    for name in CASES:
        # No find_unused_parameters: a trained parameter without gradient would raise in the next forward.
        model = DistributedDataParallel(Training(name))
        step(model, slice(0, 2) if rank == 0 else slice(2, PAIRS))
        model.zero_grad()
        found[name] = step(model, slice(0, 2) if rank == 0 else slice(2, PAIRS))
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_processes(everything, 2)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(ranks: list[dict[str, Any]], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wti, "draw", first_valid)
    expected = step(Training(name), slice(None))
    mean = (ranks[0][name]["loss"] + ranks[1][name]["loss"]) / 2
    torch.testing.assert_close(mean, expected["loss"], rtol=1e-10, atol=0)
    for found in (rank[name] for rank in ranks):
        assert found.keys() == expected.keys()
        for parameter, gradient in expected.items():
            if parameter != "loss":
                torch.testing.assert_close(found[parameter], gradient, rtol=1e-9, atol=1e-12, msg=parameter)


@pytest.mark.parametrize("name", LOSSES)
def test_dual_softmax_of_two_processes_is_that_of_one(ranks: list[dict[str, Any]], name: str) -> None:
    model = Scores()
    loss = model(slice(None), LOSSES[name])
    loss.backward()
    for found in (rank[name] for rank in ranks):
        torch.testing.assert_close(found["loss"], loss.detach(), rtol=1e-12, atol=0)
        for parameter, value in model.named_parameters():
            torch.testing.assert_close(found[parameter], value.grad, rtol=1e-10, atol=1e-13, msg=parameter)
