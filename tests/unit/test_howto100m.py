"""HowTo100M without training: words, text tower, its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.batch import TextBatch, VideoBatch
from src.errors import UserError
from src.models.howto100m import HowTo100M, TextTower, WordIds

WORDS = ["don't", "stir", "the", "soup", "2nd"]
S3D = {"s3dg": {"dim": 6}}


@pytest.fixture
def vocabulary(tmp_path: Path) -> str:
    np.save(tmp_path / "words.npy", np.array(WORDS))
    return str(tmp_path / "words.npy")


def captions(tokens_TL: torch.Tensor, **features: Any) -> TextBatch:
    ids = torch.arange(len(tokens_TL))
    return TextBatch(tokens_TL, tokens_TL > 0, ids, ids, features=features)


def test_words_are_the_first_sixteen_known_ones() -> None:
    tokens_TL, mask_TL = WordIds(WORDS)(["DON'T stir, -- the (soup)!", "", "noodles " + "the " * 20, "2nd: stir"])
    assert tokens_TL[0].tolist() == [1, 2, 3, 4] + [0] * 12
    assert mask_TL.sum(1).tolist() == [4, 0, 16, 2]
    assert tokens_TL[3, :2].tolist() == [5, 2]
    assert WordIds(WORDS).fingerprint != WordIds(WORDS[::-1]).fingerprint


def test_tower_takes_the_maximum_over_padding_too() -> None:
    torch.manual_seed(0)
    tower = TextTower(5, dim=6, word_dim=3, hidden_dim=4)
    with torch.no_grad():
        hidden = tower.fc1(tower.word_embd(torch.tensor([2, 4, 0]))).relu().amax(0)
        expected = tower.fc2(hidden)
    torch.testing.assert_close(tower(torch.tensor([[2, 4] + [0] * 14]))[0], expected)
    torch.testing.assert_close(tower(torch.tensor([[2, 4]]))[0], expected)


def test_weights_come_from_the_file_of_both_towers(vocabulary: str, tmp_path: Path) -> None:
    source = TextTower(len(WORDS), dim=6)
    state = {f"text_module.{name}": value for name, value in source.state_dict().items()}
    torch.save(state | {"conv1.weight": torch.zeros(1)}, tmp_path / "s3d.pth")
    model = HowTo100M(experts=S3D, text={}, vocabulary=vocabulary, pretrained=str(tmp_path / "s3d.pth"))
    tokens_TL, _ = model.input_spec.tokenizer(["stir the soup", "soup"])
    assert model.input_spec.text_features == ()
    text = model.encode_text(captions(tokens_TL))
    video = model.encode_video(VideoBatch(torch.arange(2), features={"s3dg": torch.eye(6)[:2]}))
    torch.testing.assert_close(
        model.similarity(text, video), (source(tokens_TL) @ (torch.eye(6)[:2] + 1e-5).T).detach()
    )
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 1


def test_the_only_parameter_can_be_trained() -> None:
    model = HowTo100M(experts=S3D, text={"name": "howto100m", "dim": 6}).train()
    assert [spec.name for spec in model.input_spec.text_features] == ["howto100m"]
    text = model.encode_text(captions(torch.zeros(3, 0, dtype=torch.int64), howto100m=torch.randn(3, 6)))
    video = model.encode_video(VideoBatch(torch.arange(3), features={"s3dg": torch.randn(3, 6)}))
    model.loss(text, video)["loss"].backward()
    assert model.dummy.grad is not None


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"experts": {}}, "found the experts none, expected one"),
    ({"experts": {"a": {"dim": 6}, "b": {"dim": 6}}}, "found the experts a, b, expected one"),
    ({"experts": {"a": {"dim": 6, "temporal": True}}}, "expected one with a single vector"),
    ({"text": {"name": "openai", "dim": 768}}, "captions have 768 dimensions and videos 6"),
    ({"text": {}}, "found none"),
    ({"vocabulary": "nowhere.npy"}, "cannot read the words of the text tower from nowhere.npy"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS, ids=[message[:30] for _, message in ERRORS])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HowTo100M(**{"experts": S3D, "text": {"name": "howto100m", "dim": 6}} | options)
