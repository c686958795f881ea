"""loss.cache_chunks: gradients of batches encoded in chunks are those of the whole batch."""

from __future__ import annotations

from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from src.batch import InputSpec, TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.errors import UserError
from src.models import gradient_cache
from src.models.base import RetrievalModule
from src.models.gradient_cache import encode_in_chunks
from tests.tiny_pairs import MODELS, assert_same, build_tiny, pairs, step

cached_model = cache(build_tiny)


class Dropping(RetrievalModule):
    """Dropout in both encoders."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.pixels = nn.Embedding(64, 6).double(), nn.Linear(3 * 16 * 16, 6).double()
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(6) if norm else None

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec(tokenizer=None)

    def encode_text(self, batch: TextBatch) -> TextEmbedding:
        parts = {"x": self.drop(self.words(batch.tokens_BL)).sum(1)}
        return TextEmbedding(batch.ids, parts, video_ids=batch.video_ids)

    def encode_video(self, batch: VideoBatch) -> VideoEmbedding:
        assert batch.frames_BTCHW is not None
        return VideoEmbedding(batch.ids, {"x": self.drop(self.pixels(batch.frames_BTCHW.mean(1).flatten(1)))})

    def similarity(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        return text.parts["x"] @ video.parts["x"].T


@pytest.mark.parametrize("words", MODELS)
@settings(max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    captions=st.integers(2, 7),
    videos=st.none() | st.integers(1, 4),
    chunks=st.integers(2, 9),
    seed=st.integers(0, 99),
)
def test_gradients_are_those_of_the_whole_batch(
    words: str, captions: int, videos: int | None, chunks: int, seed: int
) -> None:
    model, batch = cached_model(words), pairs(captions, videos, seed)
    for module in model.modules():  # a head may drop values in `similarity`: the draws of both runs are the same
        assert not isinstance(module, nn.Dropout) or "head" in words
    assert_same(step(model, batch, chunks), step(model, batch))


@pytest.mark.parametrize("words", ["model=clip2video", "model=internvideo", "model=clip4clip model/head=wti"])
def test_chunks_and_recomputed_blocks_go_together(words: str) -> None:
    batch, expected = pairs(7, 5), step(cached_model(words), pairs(7, 5))
    both = build_tiny(f"{words} model.activation_checkpointing=true")
    both.load_state_dict(cached_model(words).state_dict())
    assert_same(step(both, batch, chunks=3), expected)


def test_dropout_is_drawn_again() -> None:
    model, batch = Dropping(), pairs(7, 5)
    found = step(model, batch, chunks=3)
    with patch.object(gradient_cache, "checkpoint", lambda encode, piece, use_reentrant: encode(piece)):
        assert_same(found, step(model, batch, chunks=3), tolerance=1e-12)
    model.drop.p = 0.0
    assert (found["loss"] - step(model, batch, chunks=3)["loss"]).abs() > 1e-3


def test_one_chunk_has_activations_at_a_time() -> None:
    """Of every layer's saved tensors, the largest is a chunk's, and no encoder's stays until the backward pass."""
    model, batch = Dropping(), pairs(8)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape[0] if tensor.dim() else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        encode_in_chunks(model.encode_video, batch.video, 1)
        whole, kept = kept, []
        encode_in_chunks(model.encode_video, batch.video, 4)
    assert 8 in whole
    assert not kept


@pytest.mark.parametrize("items", [0, 1, 2, 5])
def test_more_chunks_than_items(items: int) -> None:
    model, seen = Dropping(), []

    def encode(batch: Any) -> TextEmbedding:
        seen.append(len(batch))
        return model.encode_text(batch)

    found = encode_in_chunks(encode, pairs(6).text.map(lambda t: t[:items]), 4)
    assert torch.equal(found.ids, torch.arange(items))
    assert seen == {0: [0], 1: [1], 2: [1, 1], 5: [1, 1, 1, 2]}[items]


def test_models_that_mix_items_refuse() -> None:
    with pytest.raises(UserError, match=r"found batch normalisation \(norm\), .* set loss.cache_chunks=1"):
        Dropping(norm=True).configure_loss(cache_chunks=2)
    Dropping(norm=True).configure_loss(cache_chunks=1)
    with pytest.raises(UserError, match="mask_layout=upstream"):
        build_tiny("model=clip2video model.mask_layout=upstream").configure_loss(cache_chunks=2)
    with pytest.raises(UserError, match=r"loss\.cache_chunks=0, expected at least 1"):
        Dropping().configure_loss(cache_chunks=0)
