"""Every head on every CLIP model: it trains whole, and a pair's score depends on that pair alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from src.batch import TextBatch, VideoBatch
from src.config import compose
from src.config.validate import CONF
from src.models.clip_retrieval import ClipRetrievalModule
from src.models.heads import tiling
from src.models.heads.tiling import tile_shape, tiled
from src.tasks.build import build_model

MODELS = ("clip4clip", "clip2video", "internvideo", "hf")
HEADS = sorted(path.stem for path in (CONF / "model" / "head").glob("*.yaml"))
SMALL = ("model.num_frames=4", "model.max_words=8")


@cache
def configuration(model: str, head: str) -> Any:
    words = [f"model={model}", f"model.head={head}", *SMALL]
    (values,) = compose.preflight(compose.parse(compose.nested_groups_named(words)))
    return OmegaConf.create({"model": values["model"]})


def make(model: str, head: str) -> ClipRetrievalModule:
    torch.manual_seed(0)
    made = build_model(configuration(model, head))
    assert isinstance(made, ClipRetrievalModule)
    return made.eval()


def texts(lengths: tuple[int, ...] = (8, 5, 7)) -> TextBatch:
    torch.manual_seed(1)
    count, longest = len(lengths), max(lengths)
    mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    tokens = torch.randint(1, 200, (count, longest)).masked_fill(~mask, 0)
    tokens[torch.arange(count), mask.sum(1) - 1] = 4095  # the end token
    return TextBatch(tokens, mask, torch.arange(count), torch.arange(count))


def videos(lengths: tuple[int, ...] = (4, 2, 3)) -> VideoBatch:
    torch.manual_seed(2)
    mask = torch.arange(4)[None] < torch.tensor(lengths)[:, None]
    frames = torch.randint(0, 256, (len(lengths), 4, 3, 64, 64), dtype=torch.uint8)
    return VideoBatch(ids=torch.arange(len(lengths)), frames_BTCHW=frames, mask_BT=mask)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("model", MODELS)
def test_trains_whole_and_scores_each_pair_by_itself(model: str, head: str) -> None:
    made = make(model, head)
    text, video = texts(), videos()
    made.loss(made.encode_text(text), made.encode_video(video))["loss"].backward()
    without = [name for name, p in made.named_parameters() if p.requires_grad and p.grad is None]
    assert without == [], "distributed training waits for gradients that never come"
    with torch.no_grad():
        together = made.similarity(made.encode_text(text), made.encode_video(video))
        assert together.shape == (3, 3)
        second, ids = (slice(1, 2), slice(0, 5)), torch.ones(1).long()
        one = made.encode_text(TextBatch(text.tokens_BL[second], text.mask_BL[second], ids, ids))
        alone = made.similarity(one, made.encode_video(video.map(lambda tensor: tensor[2:])))
    torch.testing.assert_close(alone[0, 0], together[1, 2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_order_of_frames_reaches_every_head_of_clip2video(head: str) -> None:
    """The layers over frames of the model stand before any head."""
    made, text, video = make("clip2video", head), texts(), videos((4, 4, 4))
    assert video.frames_BTCHW is not None
    backwards = VideoBatch(ids=video.ids, frames_BTCHW=video.frames_BTCHW.flip(1), mask_BT=video.mask_BT)
    with torch.no_grad():
        words = made.encode_text(text)
        scores, reversed_scores = (made.similarity(words, made.encode_video(v)) for v in (video, backwards))
    assert not torch.allclose(scores, reversed_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("captions", "columns", "pairs", "expected"),
    [
        (10, 10, 1000, (10, 10)),
        (1000, 1000, 100, (10, 10)),
        (5, 1000, 100, (5, 20)),
        (1000, 3, 100, (33, 3)),
        (100, 100, 5000, (100, 50)),
        (7, 7, 1, (1, 1)),
        (0, 5, 10, (1, 5)),
    ],
)
def test_tiles_stay_within_their_budget(captions: int, columns: int, pairs: int, expected: tuple[int, int]) -> None:
    shape = tile_shape(captions, columns, pairs)
    assert shape[0] * shape[1] <= pairs
    assert shape == expected


def test_tiled_scores_and_gradients_are_those_of_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    text, video, seen = torch.randn(7, 4), torch.randn(5, 4), []

    def score(texts: Any, videos: Any) -> Tensor:
        seen.append((len(texts["x"]), len(videos["x"])))
        return torch.tanh(texts["x"] @ videos["x"].T)

    found = []
    for elements in (2**20, 6):
        monkeypatch.setattr(tiling, "ELEMENTS_AT_ONCE", elements)
        x, y = text.clone().requires_grad_(), video.clone().requires_grad_()
        scores = tiled(score, {"x": x}, {"x": y}, pair_elements=1)
        scores.square().sum().backward()
        found.append((scores.detach(), x.grad, y.grad))
    assert seen[0] == (7, 5)
    assert max(rows * columns for rows, columns in seen[1:]) <= 6
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(whole, pieces)
