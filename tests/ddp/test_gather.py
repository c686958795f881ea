"""Contrastive gradients of two processes against one process on the whole batch, in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from src.batch import TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.losses.gather import gather_embedding
from src.losses.infonce import SymmetricInfoNCE
from src.models.clip2video import Clip2Video
from src.models.clip4clip import Clip4Clip
from src.models.heads.mean import MeanHead
from src.models.heads.seq_lstm import SeqLstmHead
from src.models.heads.tight import TightTransfHead
from src.models.heads.wti import WeightedTokenInteractionHead
from src.models.internvideo import InternVideo
from tests.processes import run_processes
from tests.tiny_clip import tiny_arch

PAIRS, WIDTH = 8, 6
HALVES = {"even": (4, 4), "uneven": (3, 5), "empty": (0, 8)}
VIDEO_IDS = torch.tensor([0, 1, 2, 0, 4, 1, 6, 7])  # pairs 0 and 3, 1 and 5 show the same video


class Pair(nn.Module):
    """The smallest pair of encoders with a temperature."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.text = nn.Linear(WIDTH, 4).double()
        self.video = nn.Linear(WIDTH, 4).double()
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def similarity(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        return self.scale.exp() * text.parts["x"] @ video.parts["x"].T

    def forward(self, rows: slice, loss: SymmetricInfoNCE) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        text, video = torch.randn(2, PAIRS, WIDTH, dtype=torch.float64, generator=generator)
        ids = VIDEO_IDS[rows]
        return loss(
            self.similarity,
            TextEmbedding(
                ids=torch.arange(PAIRS)[rows], parts={"x": F.normalize(self.text(text[rows]))}, video_ids=ids
            ),
            VideoEmbedding(ids=ids, parts={"x": F.normalize(self.video(video[rows]))}),
        )


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): p.grad for name, p in module.named_parameters() if p.grad is not None}


def rows_of(rank: int, sizes: tuple[int, int]) -> slice:
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


def pair_gradients(rank: int, mode: str, same_video: bool, sizes: tuple[int, int]) -> dict[str, Tensor]:
    model = DistributedDataParallel(Pair())
    loss = model(rows_of(rank, sizes), SymmetricInfoNCE(mode, same_video))  # type: ignore[arg-type]
    loss.backward()
    return {"loss": loss.detach(), **gradients(model)}


MODELS: dict[str, tuple[type, dict[str, Any]]] = {
    "clip2video": (Clip2Video, {"temporal_layers": 1}),
    "clip2video_mean": (Clip2Video, {"head": MeanHead, "temporal_block": False, "difference_block": False}),
    "clip4clip_3d": (Clip4Clip, {"linear_patch": "3d"}),
    "clip4clip_lstm": (Clip4Clip, {"head": SeqLstmHead}),
    "clip4clip_tight": (Clip4Clip, {"head": partial(TightTransfHead, temporal_layers=1, dropout=0.0)}),
    "internvideo": (InternVideo, {}),
    "internvideo_words": (InternVideo, {"head": WeightedTokenInteractionHead, "text_tokens": "upstream"}),
}


class Training(nn.Module):
    """A model's training step as one forward, for DistributedDataParallel."""

    def __init__(self, name: str) -> None:
        super().__init__()
        kind, options = MODELS[name]
        torch.manual_seed(3)
        self.model = kind(arch=tiny_arch(), num_frames=3, max_words=6, **options).double()

    def forward(self, rows: slice) -> Tensor:
        generator = torch.Generator().manual_seed(4)
        ids = torch.arange(4)[rows]
        tokens = torch.randint(1, 60, (4, 6), generator=generator)
        tokens[:, -1] = 63
        frames = torch.randn(4, 3, 3, 16, 16, dtype=torch.float64, generator=generator)
        mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]]).bool()
        text = TextBatch(tokens[rows], torch.ones(len(ids), 6, dtype=torch.bool), ids, ids)
        video = VideoBatch(ids=ids, frames_BTCHW=frames[rows], mask_BT=mask[rows])
        return self.model.loss(self.model.encode_text(text), self.model.encode_video(video))["loss"]


def model_gradients(rank: int, name: str) -> dict[str, Tensor]:
    # No find_unused_parameters: a trained parameter without gradient would raise in the next forward.
    model = DistributedDataParallel(Training(name))
    for _ in range(2):
        model.zero_grad()
        model(slice(rank * 2, rank * 2 + 2)).backward()
    return gradients(model)


def everything(rank: int) -> dict[str, Any]:
    """All distributed results in one go: starting processes is the slow part."""
    found: dict[str, Any] = {
        f"{mode}/{same}/{name}": pair_gradients(rank, mode, same, sizes)
        for mode in ("exact", "upstream")
        for same in (False, True)
        for name, sizes in HALVES.items()
    }
    found |= {name: model_gradients(rank, name) for name in MODELS}
    mask = torch.tensor([[True, False], [False, rank == 1]])[: rank + 1]
    embedding = VideoEmbedding(ids=torch.arange(rank + 1) + 10 * rank, parts={"mask": mask})
    gathered = gather_embedding(embedding)
    found["gathered"] = (gathered.ids, gathered.parts["mask"])
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_processes(everything, 2)


def whole_batch(same_video: bool) -> dict[str, Tensor]:
    model = Pair()
    loss = model(slice(None), SymmetricInfoNCE("exact", same_video))
    loss.backward()
    return {"loss": loss.detach(), **gradients(model)}


def flat(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([found[name].flatten() for name in sorted(found) if name not in ("loss", "scale")])


@pytest.mark.parametrize("halves", HALVES)
@pytest.mark.parametrize("same_video", [False, True])
def test_exact_gather_equals_one_process(ranks: list[dict[str, Any]], same_video: bool, halves: str) -> None:
    expected = whole_batch(same_video)
    for found in (rank[f"exact/{same_video}/{halves}"] for rank in ranks):
        assert found.keys() == expected.keys()
        assert (flat(found) - flat(expected)).norm() / flat(expected).norm() < 1e-12
        torch.testing.assert_close(found["scale"], expected["scale"], rtol=1e-12, atol=0)
    mean = (ranks[0][f"exact/{same_video}/{halves}"]["loss"] + ranks[1][f"exact/{same_video}/{halves}"]["loss"]) / 2
    torch.testing.assert_close(mean, expected["loss"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("same_video", [False, True])
def test_upstream_gather_has_half_the_encoder_gradient(ranks: list[dict[str, Any]], same_video: bool) -> None:
    expected = whole_batch(same_video)
    found = ranks[0][f"upstream/{same_video}/even"]
    true, got = flat(expected), flat(found)
    assert float(got @ true / (true @ true)) == pytest.approx(0.5, rel=1e-12)
    assert float(got @ true / got.norm() / true.norm()) == pytest.approx(1.0, rel=1e-12)
    torch.testing.assert_close(found["scale"], expected["scale"], rtol=1e-12, atol=0)
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_as_in_one_process(ranks: list[dict[str, Any]], name: str) -> None:
    model = Training(name)
    model(slice(None)).backward()
    expected = gradients(model)
    found = ranks[1][name]
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-9, atol=1e-12, msg=parameter)


def test_uneven_embeddings_arrive_in_rank_order(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        ids, mask = found["gathered"]
        assert ids.tolist() == [0, 10, 11]
        assert mask.tolist() == [[True, False], [True, False], [False, True]]
