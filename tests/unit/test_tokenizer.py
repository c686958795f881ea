"""CLIP's tokeniser, whole and with a truncated vocabulary."""

from __future__ import annotations

import pickle

import open_clip
import pytest
import torch

from src.errors import UserError
from src.models import tokenizer as module
from src.models.tokenizer import ClipTokenizer, PretrainedTokenizer

CAPTIONS = [
    "A man's playing GUITAR!!!  &amp; singing",
    "“smart quotes” and café naïve 中文",
    "",
    "x" * 300,
    "e=mc2 in 2012",
]


def test_equals_open_clip() -> None:
    tokens, mask = ClipTokenizer(77)(CAPTIONS)
    assert torch.equal(tokens, open_clip.get_tokenizer("ViT-B-32")(CAPTIONS))
    assert torch.equal(mask.sum(1), (tokens == 49407).int().argmax(1) + 1)


def test_truncated_vocabulary_keeps_ids_and_ends_with_the_special_ones() -> None:
    small, full = ClipTokenizer(20, 2048), ClipTokenizer(20)
    (tokens,), (mask,) = small(["a red square moves"])
    (reference,), _ = full(["a red square moves"])
    assert tokens[0] == 2046
    assert tokens[mask.sum() - 1] == 2047
    assert tokens[1:3].tolist() == reference[1:3].tolist()  # "a", "red" are frequent enough
    assert int(tokens.max()) == 2047
    assert "".join(small.pieces("a red square moves")).replace("</w>", " ") == "a red square moves "


def test_smallest_vocabulary_spells() -> None:
    assert ClipTokenizer(9, 514).pieces("dog") == ["d", "o", "g</w>"]


def test_long_captions_keep_the_end() -> None:
    (tokens,), (mask,) = ClipTokenizer(4)(["one two three four"])
    assert tokens[-1] == 49407
    assert mask.all()


def test_no_captions() -> None:
    tokens, mask = ClipTokenizer(5)([])
    assert tokens.shape == mask.shape == (0, 5)


def test_travels_to_workers() -> None:
    tokenizer = ClipTokenizer(12, 2048)
    copy = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 own object
    assert torch.equal(copy(["a dog"])[0], tokenizer(["a dog"])[0])
    assert len(pickle.dumps(tokenizer)) < 300


@pytest.mark.parametrize(("words", "vocabulary"), [(32, 513), (32, 49409), (2, 49408)])
def test_impossible_sizes(words: int, vocabulary: int) -> None:
    with pytest.raises(UserError, match="expected"):
        ClipTokenizer(words, vocabulary)


def test_foreign_tokeniser_masks_trailing_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.tensor([[5, 6, 1, 1, 1], [5, 6, 7, 8, 1], [5, 6, 7, 8, 9]])
    monkeypatch.setattr(module, "_foreign", lambda arch: lambda captions, context_length: tokens)
    got, mask = PretrainedTokenizer("ViT-B-16-SigLIP", 5)(["a", "b", "c"])
    assert torch.equal(got, tokens)
    assert mask.sum(1).tolist() == [3, 5, 5]
