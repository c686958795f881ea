"""task=bench, parts fusion_step and ocr_speed, on a small model and few frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch.backends.cuda import flash_sdp_enabled

from src.errors import UserError
from src.tasks import bench_ocr, bench_textvr

KEYS = {
    "fusion_text": "videotext-tiny",
    "fusion_vit": "videotext-tiny",
    "fusion_batch": 3,
    "fusion_words": 4,
    "fusion_steps": 2,
    "ocr_frames": 4,
    "ocr_words": 6,
    "ocr_processes": 2,
}


def config(**task: object) -> DictConfig:
    return OmegaConf.create({"seed": 0, "task": {**KEYS, **task}})


def test_both_ways_run_in_turn_and_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    loss = bench_textvr.TextVR.loss

    def noted(self: Any, *parts: Any) -> Any:
        seen.append(("fused" if flash_sdp_enabled() else "math", self.training))
        return loss(self, *parts)

    monkeypatch.setattr(bench_textvr.TextVR, "loss", noted)
    found = bench_textvr.bench_fusion_step(config())
    assert seen == [(way, True) for way in ("fused", "math", "math", "fused", "fused", "math")]
    assert (found["clips"], found["frames"], found["words of a clip"]) == (3, 4, 4)
    assert found["deviation of the loss x 1e6"] < 10
    for kind in ("s", "CPU-s"):
        assert found[f"SDPA off / SDPA, {kind}"] == pytest.approx(found[f"SDPA off {kind}"] / found[f"SDPA {kind}"])
    for way in bench_textvr.WAYS:
        assert found[f"{way} process MB"] > found[f"{way} step MB"] > 1


def test_every_part_of_the_model_is_trained_by_the_step() -> None:
    case = bench_textvr.Case("videotext-tiny", "videotext-tiny", batch=3, words=4, seed=0, threads=1)
    model = bench_textvr.fusion_model(case)
    batch = bench_textvr.made_up_clips(model, case)
    assert bench_textvr.forward_backward(model, batch, bench_textvr.SDPA) > 0
    for part in (model.text_model, model.video_model, model.fusion):
        assert part is not None
        assert any(p.grad is not None and torch.any(p.grad != 0) for p in part.parameters())


def test_cases_that_cannot_be_measured() -> None:
    with pytest.raises(UserError, match=r"task.fusion_batch: found 1, expected at least 2 clips"):
        bench_textvr.bench_fusion_step(config(fusion_batch=1))
    with pytest.raises(UserError, match=r"found 'gpt2', expected distilbert or videotext-tiny"):
        bench_textvr.bench_fusion_step(config(fusion_text="gpt2"))


def test_words_are_read_and_counted() -> None:
    found = bench_ocr.bench_ocr_speed(config())
    assert (found["frames"], found["processes"]) == (4, 2)
    assert found["words/s"] / found["frames/s"] == pytest.approx(found["words read"] / 4)
    assert 18 <= found["words read"] <= 30
    for kind in bench_ocr.KINDS:
        assert found[f"{kind}: share of the words that was read"] >= 0.8
        assert found[f"{kind}: share of what was read that is there"] >= 0.8


def test_pages_differ_and_are_the_same_for_a_seed() -> None:
    first, again, other = (bench_ocr.made_up_page("scene", 10, seed) for seed in (1, 1, 2))
    assert first.frame_HWC.shape == (360, 640, 3)
    assert len(set(first.words)) == 10
    assert first.words == again.words != other.words
    np.testing.assert_array_equal(first.frame_HWC, again.frame_HWC)
    with pytest.raises(UserError, match=r"task.ocr_words: found 16, expected 1 to 15"):
        bench_ocr.bench_ocr_speed(config(ocr_words=16))
