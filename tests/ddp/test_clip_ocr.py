"""`model.ocr=true` in two processes against one, in float64: videos of one process show no words at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from src.batch import TextBatch, VideoBatch, WordBatch
from src.models.clip4clip import Clip4Clip
from src.models.heads.base import HeadFactory
from src.models.heads.mean import MeanHead
from src.models.heads.ti import TokenInteractionHead
from src.models.heads.xclip import XClipHead
from tests.processes import run_processes
from tests.tiny_clip import tiny_arch

PAIRS, SLOTS = 5, 3
HEADS: dict[str, HeadFactory] = {"meanP": MeanHead, "ti": TokenInteractionHead, "xclip": XClipHead}


class Training(nn.Module):
    """The training step of a model on some of the pairs, as one forward."""

    def __init__(self, head: str, trained: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.model = Clip4Clip(arch=tiny_arch(), head=HEADS[head], num_frames=3, max_words=6, ocr=True).double()
        assert self.model.ocr is not None
        if trained:
            nn.init.normal_(self.model.ocr.out.weight, std=0.2)

    def forward(self, rows: slice) -> Tensor:
        generator = torch.Generator().manual_seed(4)
        ids = torch.arange(PAIRS)[rows]
        tokens = torch.randint(1, 60, (PAIRS, 6), generator=generator)
        tokens[:, -1] = 63
        frames = torch.randn(PAIRS, 3, 3, 16, 16, dtype=torch.float64, generator=generator)
        text = TextBatch(tokens[rows], torch.ones(PAIRS, 6).bool()[rows], ids, ids)
        mask = torch.ones(PAIRS, 3).bool()[rows]
        video = VideoBatch(ids=ids, frames_BTCHW=frames[rows], mask_BT=mask, words=words().map(lambda t: t[rows]))
        return self.model.loss(self.model.encode_text(text), self.model.encode_video(video))["loss"]


def words() -> WordBatch:
    generator = torch.Generator().manual_seed(6)
    tokens = torch.randint(1, 60, (PAIRS, SLOTS, 4), generator=generator)
    tokens[..., -1] = 63
    words_BW = torch.arange(SLOTS) < torch.tensor([0, 0, 3, 1, 2])[:, None]
    positions = torch.rand(PAIRS, SLOTS, 12, generator=generator, dtype=torch.float64)
    return WordBatch(tokens, torch.ones(PAIRS, SLOTS, 4).bool(), words_BW, positions * words_BW[..., None])


def step(model: nn.Module, rows: slice) -> dict[str, Tensor]:
    loss = model(rows)
    loss.backward()
    gradients = {n.removeprefix("module."): p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def everything(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for head in HEADS:
        for trained in (False, True):
            # No find_unused_parameters: a trained parameter without gradient would raise in the next forward.
            model = DistributedDataParallel(Training(head, trained))
            step(model, slice(0, 2) if rank == 0 else slice(2, PAIRS))
            model.zero_grad()
            found[f"{head}/{trained}"] = step(model, slice(0, 2) if rank == 0 else slice(2, PAIRS))
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_processes(everything, 2)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_two_processes_train_as_one(ranks: list[dict[str, Any]], head: str, trained: bool) -> None:
    name = f"{head}/{trained}"
    expected = step(Training(head, trained), slice(None))
    assert expected["model.ocr.out.weight"].any()
    mean = (ranks[0][name]["loss"] + ranks[1][name]["loss"]) / 2
    torch.testing.assert_close(mean, expected["loss"], rtol=1e-10, atol=0)
    for found in (rank[name] for rank in ranks):
        assert found.keys() == expected.keys()
        for parameter, gradient in expected.items():
            if parameter != "loss":
                torch.testing.assert_close(found[parameter], gradient, rtol=1e-8, atol=1e-11, msg=parameter)
