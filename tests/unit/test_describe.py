"""task=describe: sizes without data, weights or network."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from src.tasks import describe
from src.tasks.build import empty_model


def config(**model: Any) -> Any:
    target = {"_target_": "src.models.clip2video.Clip2Video", "arch": "ViT-B-32-quickgelu", "pretrained": "openai"}
    dataset = {"name": "msrvtt", "provides": ["frames"], "data_dir": "/nonexistent"}
    return OmegaConf.create({"model": target | {"needs": ["frames"]} | model, "dataset": dataset})


def test_published_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    describe.run(config())
    printed = capsys.readouterr().out
    assert "parameters: 170238209\n" in printed
    assert "frozen parameters: 0\n" in printed
    assert "max_words=32" in printed
    assert "num_frames=12, image_size=224" in printed
    assert "dataset: msrvtt" in printed


def test_frozen_parameters_do_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    describe.run(config(freeze_layers=12))
    printed = capsys.readouterr().out
    trained = int(printed.rsplit("\nparameters: ", 1)[1])
    frozen = int(printed.split("frozen parameters: ")[1].split("\n")[0])
    assert trained + frozen == 170_238_209
    assert trained < 30_000_000


def test_nothing_is_allocated_or_fetched() -> None:
    assert {p.device.type for p in empty_model(config()).parameters()} == {"meta"}
