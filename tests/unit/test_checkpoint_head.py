"""A checkpoint that fits a model with another head than the one that it was trained with says so."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from src.models.clip4clip import Clip4Clip
from src.models.heads.base import HeadFactory
from src.models.heads.mean import MeanHead
from src.models.heads.ti import TokenInteractionHead
from src.tasks.checkpoint import load_weights
from tests.tiny_clip import tiny_arch

TRAINED = "model:\n  head:\n    _target_: src.models.heads.ti.TokenInteractionHead\n"


def make(head: HeadFactory) -> Clip4Clip:
    return Clip4Clip(arch=tiny_arch(), head=head, num_frames=4, max_words=6)


@pytest.mark.parametrize(
    ("head", "told"),
    [(MeanHead, ["trained with a TokenInteractionHead, which fits a MeanHead"]), (TokenInteractionHead, [])],
)
def test_a_head_without_weights_is_told_from_another(
    head: HeadFactory, told: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = make(TokenInteractionHead).state_dict()
    torch.save({"state_dict": state, "videotext": {"format": 1, "config": TRAINED}}, tmp_path / "best.ckpt")
    torch.save({"state_dict": state}, tmp_path / "untold.ckpt")
    with caplog.at_level(logging.WARNING):
        load_weights(make(head), tmp_path / "untold.ckpt")
        load_weights(make(head), tmp_path / "best.ckpt")
    assert len(caplog.messages) == len(told)
    assert all(words in message for words, message in zip(told, caplog.messages, strict=True))
