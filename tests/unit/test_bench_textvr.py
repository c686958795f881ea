"""task=bench, parts fusion_step, ocr_speed and ocr_memory, on a small model and few frames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.checkpoint import checkpoint

from src.batch import PairBatch
from src.errors import UserError
from src.models import ocr_fusion
from src.tasks import bench_ocr, bench_ocr_memory, bench_textvr

KEYS = {
    "fusion_text": "videotext-tiny",
    "fusion_vit": "videotext-tiny",
    "fusion_batch": 3,
    "fusion_words": 4,
    "fusion_steps": 2,
    "ocr_frames": 4,
    "ocr_words": 6,
    "ocr_processes": 2,
    "ocr_memory_videos": 32,
    "ocr_memory_words": 40,
    "ocr_memory_checkpointing": [False, True],
}
CASE = bench_textvr.Case("videotext-tiny", "videotext-tiny", batch=3, words=4, seed=0, threads=1)
ROOT = Path(__file__).parents[2]


def config(**task: object) -> DictConfig:
    return OmegaConf.create({"seed": 0, "task": {**KEYS, **task}})


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[Future[dict[str, float]]]:
    """What the process that measures memory found; its imports take seconds, during which other tests run."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(bench_textvr.in_own_process, bench_textvr.peak_memory, CASE, bench_textvr.OFF)


@pytest.fixture(scope="module")
def model() -> bench_textvr.TextVR:
    return bench_textvr.fusion_model(CASE)


@pytest.fixture(scope="module")
def batch(model: bench_textvr.TextVR) -> PairBatch:
    return bench_textvr.made_up_clips(model, CASE)


def backward_steps(result: torch.Tensor) -> set[str]:
    """Names of the operations that the backward pass from `result` will run."""
    seen: set[Any] = set()
    waiting: list[Any] = [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return {node.name() for node in seen}


def test_both_ways_run_in_turn_and_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    asked: list[tuple[Any, ...]] = []
    loss = bench_textvr.TextVR.loss

    def noted(self: Any, *parts: Any) -> Any:
        found = loss(self, *parts)
        fused = any("FlashAttention" in name for name in backward_steps(found["loss"]))
        seen.append(("fused" if fused else "math", self.training))
        return found

    def answered(*arguments: Any) -> dict[str, float]:
        asked.append(arguments)
        return {"process MB": 100.0 * len(asked), "step MB": 10.0 * len(asked)}

    monkeypatch.setattr(bench_textvr.TextVR, "loss", noted)
    monkeypatch.setattr(bench_textvr, "in_own_process", answered)
    found = bench_textvr.bench_fusion_step(config())
    assert seen == [(way, True) for way in ("fused", "math", "math", "fused", "fused", "math")]
    assert (found["clips"], found["frames"], found["words of a clip"]) == (3, 4, 4)
    assert found["deviation of the loss x 1e6"] < 10
    for kind in ("s", "CPU-s"):
        assert found[f"SDPA off / SDPA, {kind}"] == pytest.approx(found[f"SDPA off {kind}"] / found[f"SDPA {kind}"])
    case = replace(CASE, threads=torch.get_num_threads())
    assert asked == [(bench_textvr.peak_memory, case, way) for way in bench_textvr.WAYS]
    assert [found[f"{way} process MB"] for way in bench_textvr.WAYS] == [100, 200]
    assert [found[f"{way} step MB"] for way in bench_textvr.WAYS] == [10, 20]


def test_every_part_of_the_model_is_trained_by_the_step(model: bench_textvr.TextVR, batch: PairBatch) -> None:
    model.zero_grad()
    assert bench_textvr.forward_backward(model, batch, bench_textvr.SDPA) > 0
    for part in (model.text_model, model.video_model, model.fusion):
        assert part is not None
        assert any(p.grad is not None and torch.any(p.grad != 0) for p in part.parameters())


def test_the_default_is_the_published_size() -> None:
    task = OmegaConf.load(ROOT / "conf" / "task" / "bench.yaml")
    sizes = (task.fusion_text, task.fusion_vit, task.fusion_batch, task.fusion_words)
    assert sizes == ("distilbert", "vit_base_patch16_224", 2, 20)
    with torch.device("meta"):
        full = bench_textvr.fusion_model(bench_textvr.Case(*sizes, seed=0, threads=1))
    assert sum(p.numel() for p in full.parameters()) == 249_269_760
    assert full.video_model is not None
    assert full.video_model.num_frames == 4


def test_cases_that_cannot_be_measured() -> None:
    with pytest.raises(UserError, match=r"task.fusion_batch: found 1, expected at least 2 clips"):
        bench_textvr.bench_fusion_step(config(fusion_batch=1))
    with pytest.raises(UserError, match=r"found 'gpt2', expected distilbert or videotext-tiny"):
        bench_textvr.bench_fusion_step(config(fusion_text="gpt2"))
    with pytest.raises(UserError, match=r"found 'gpt2', expected distilbert or videotext-tiny"):
        bench_ocr_memory.bench_ocr_memory(config(fusion_text="gpt2"))


def test_memory_of_the_words_is_measured_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    recomputed: list[int] = []

    def noted(*arguments: Any, **options: Any) -> Any:
        recomputed.append(len(arguments[1]))
        return checkpoint(*arguments, **options)

    monkeypatch.setattr(ocr_fusion, "checkpoint", noted)
    monkeypatch.setattr(bench_ocr_memory, "in_own_process", lambda work, *arguments: work(*arguments))
    found = bench_ocr_memory.bench_ocr_memory(config())
    assert recomputed == [1024, 32 * 40 - 1024]  # words, in passes of the default length, by the second way only
    assert (found["videos"], found["words of a video"]) == (32, 40)
    for way in ("kept", "recomputed"):
        assert found[f"{way}: step MB"] > 0
        assert found[f"{way}: gradients MB"] > 1
        assert found[f"{way}: s"] > 0
    alone = bench_ocr_memory.bench_ocr_memory(config(ocr_memory_checkpointing=[True], ocr_memory_videos=2))
    assert not any(name.startswith("kept") for name in alone)


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


def test_memory_is_that_of_a_process_of_its_own(memory: Future[dict[str, float]]) -> None:
    found = memory.result()
    assert found["process MB"] > found["step MB"] > 1
    assert bench_textvr.in_own_process(os.getpid) != os.getpid()
