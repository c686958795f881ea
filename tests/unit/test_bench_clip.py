"""task=bench, parts clip_step, clip_scores, cached_loss and clip_throughput, on small models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from src.tasks import bench_clip, bench_clip_gpu, bench_clip_memory
from tests.processes import quick_start

KEYS = {
    "clip_arch": "videotext-tiny",
    "clip_frames": 3,
    "clip_batch": 2,
    "clip_steps": 3,
    "scores_items": 24,
    "scores_block": 5,
    "cached_arch": "videotext-tiny",
    "cached_frames": 4,
    "cached_small": 24,
    "cached_batch": 96,
    "cached_chunks": 4,
    "throughput_batch": 2,
    "throughput_steps": 4,
    "peak_tflops": None,
}


def config(**task: object) -> DictConfig:
    return OmegaConf.create({"seed": 0, "task": {**KEYS, **task}, "trainer": {"accelerator": "cpu"}})


def test_step_and_bare_towers_are_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def noted(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (seen.append(name), work(*args))[1]

    monkeypatch.setattr(bench_clip, "_bare_towers", noted("towers", bench_clip._bare_towers))
    monkeypatch.setattr(bench_clip, "_loss", noted("step", bench_clip._loss))
    found = bench_clip.bench_clip_step(config())
    assert seen == ["towers", "step", "step", "towers"] * 2
    assert found["parameters"] > found["of the towers"] > 0
    for kind in ("s", "CPU-s"):
        ratio = found[f"step / bare towers, {kind}"]
        assert ratio == pytest.approx(found[f"step {kind}"] / found[f"bare towers {kind}"])
        assert found[f"step with optimiser / bare towers, {kind}"] > ratio


def test_bare_towers_do_what_the_model_does() -> None:
    torch.manual_seed(0)
    model = bench_clip.Clip2Video(arch="videotext-tiny", num_frames=3, max_words=bench_clip.WORDS)
    batch = bench_clip.made_up_pairs(model, 2, torch.Generator().manual_seed(0))
    tower = model.tower
    frames_BTD = tower.encode_frames(batch.video.frames_BTCHW, batch.video.mask_BT)
    expected = frames_BTD.square().sum() + tower.encode_text(batch.text.tokens_BL).square().sum()
    pixels = bench_clip.normalise_frames(batch.video.frames_BTCHW, tower.mean, tower.std).flatten(0, 1)
    torch.testing.assert_close(bench_clip._bare_towers(tower.clip, pixels, batch.text.tokens_BL), expected)


def test_scores_per_block_are_the_scores() -> None:
    found = bench_clip.bench_clip_scores(config())
    assert found["pairs of blocks"] == 25
    assert found["deviation x 1e6"] < 1
    assert found["per block / once"] == pytest.approx(found["encoded per block CPU-s"] / found["encoded once CPU-s"])
    assert found["per block / once"] > 1.5


def test_large_batch_in_chunks_takes_the_memory_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_clip_memory, "get_context", quick_start)
    found = bench_clip_memory.bench_cached_loss(config())
    assert (found["small: batch"], found["large: batch"], found["large: chunks"]) == (24, 96, 4)
    assert found["large: frames MB"] == pytest.approx(4 * found["small: frames MB"])
    ratio = found["large / small, step MB"]
    assert ratio == pytest.approx(found["large: step MB"] / found["small: step MB"])
    assert found["small: step MB"] > 10
    assert ratio < 1.5, "four times the pairs at once take four times the memory"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_throughput_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = nn.Module.compile
    compiled: list[nn.Module] = []

    def traced(self: nn.Module, **options: Any) -> None:
        compiled.append(self)
        compile_(self, backend="eager", **options)

    monkeypatch.setattr(nn.Module, "compile", traced)
    torch._dynamo.reset()
    found = bench_clip_gpu.bench_clip_throughput(config())
    torch._dynamo.reset()
    assert len(compiled) == 5  # three blocks of frames, two of captions
    assert (found["batch"], found["frames"]) == (2, 6)
    # Two operations per multiplication, three passes: at least so many for the blocks of the frames.
    blocks = 6 * 17 * 3 * 12 * 96**2 * 2 * 3 / 1e12
    assert 1.0 * blocks < found["TFLOP/step"] < 3 * blocks
    for mode in bench_clip_gpu.MODES:
        assert found[f"{mode}: frames/s"] == pytest.approx(6 / found[f"{mode}: step s"])
        share = found["TFLOP/step"] / found[f"{mode}: step s"] / found["peak TFLOP/s"]
        assert found[f"{mode}: share of peak"] == pytest.approx(share)
        assert found[f"{mode}: device MB"] == 0
