"""A model whose weights all come from a checkpoint neither reads nor fetches those that it was started from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from src.tasks.build import build_model
from src.tasks.checkpoint import without_pretrained_file, without_start


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"pretrained": "openai", "arch": "a"}, {"pretrained": "openai", "arch": "a"}),
        ({"pretrained": "frozen.pth", "vit_weights": "tag"}, {"pretrained": None, "vit_weights": None}),
        ({"pretrained": None, "vit_weights": "tag"}, {"pretrained": None, "vit_weights": None}),
        ({"arch": "a"}, {"arch": "a"}),
    ],
)
def test_what_is_left_out(model: dict[str, Any], expected: dict[str, Any]) -> None:
    cfg = OmegaConf.create({"model": model, "seed": 0})
    assert without_pretrained_file(cfg) == {"model": expected, "seed": 0}
    assert without_start(cfg).model == {key: None if key != "arch" else "a" for key in model}


def test_no_vit_is_fetched_for_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: object) -> None:
        raise AssertionError("the weights of a ViT were asked for")

    monkeypatch.setattr("src.models.frozen.vit_state", fetched)
    sizes = {"text_model": "videotext-tiny", "vit": "vit_tiny_patch16_224", "image_size": 32, "width": 96, "depth": 1}
    model = {"_target_": "src.models.textvr.TextVR", "vit_weights": "orig_in21k_ft_in1k", "pretrained": None, **sizes}
    cfg = OmegaConf.create({"model": model})
    with pytest.raises(AssertionError, match="asked for"):
        build_model(cfg)
    assert isinstance(build_model(without_pretrained_file(cfg)), torch.nn.Module)
