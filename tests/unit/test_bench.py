"""task=bench: what it measures and how it reports."""

from __future__ import annotations

import json
import mmap
import time
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from src.errors import UserError
from src.tasks.bench import PeakMemory, bench_evaluation, bench_metrics, resident_bytes, run


def config(tmp_path: Path, **task: object) -> DictConfig:
    sizes = {"parts": ["evaluation"], "num_captions": 600, "num_videos": 30, "dim": 16, "batches": 2, "steps": 1}
    return OmegaConf.create({"seed": 0, "task": {**sizes, **task}, "paths": {"run_dir": str(tmp_path / "run")}})


def test_evaluation_is_measured_and_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(config(tmp_path))
    stored = json.loads((tmp_path / "run" / "bench.json").read_text())
    found = stored["evaluation"]
    assert (found["captions"], found["videos"], found["dim"]) == (600, 30, 16)
    assert found["CPU-s"] > 0
    assert found["ratio to matmul"] == pytest.approx(found["CPU-s"] / found["bare matmul CPU-s"])
    assert stored["machine"]["cores"] >= 1
    assert "MB above embeddings" in capsys.readouterr().out


def test_unknown_parts_are_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found 'lader', expected some of evaluation, loader, model"):
        run(config(tmp_path, parts=["lader"]))


def test_a_slow_loader_is_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.tasks.bench.bench_loader", lambda cfg: {"samples/s": 11.0})
    for speed, warned in ((10.0, True), (9.0, False)):
        monkeypatch.setattr("src.tasks.bench.bench_model", lambda cfg, speed=speed: {"samples/s": speed})
        run(config(tmp_path, parts=["loader", "model"]))
        assert ("warning: the loader" in capsys.readouterr().out) == warned
        stored = json.loads((tmp_path / "run" / "bench.json").read_text())
        assert stored["model"]["loader / model"] == pytest.approx(11 / speed)


def test_peak_memory_sees_what_is_gone_again() -> None:
    assert resident_bytes() > 10e6
    # Pages of its own: an array might be put where earlier tests have left resident memory.
    with PeakMemory() as memory, mmap.mmap(-1, 80_000_000) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        time.sleep(0.2)  # a sample comes every 2 ms, but on a busy machine the sampler has to wait for its turn
    assert 60 < memory.megabytes < 200


def test_features_are_read_from_both_formats(tmp_path: Path) -> None:
    run(config(tmp_path, parts=["store"], store_videos=4, store_frames=20, store_dim=2048))
    found = json.loads((tmp_path / "run" / "bench.json").read_text())["store"]
    assert (found["videos"], found["frames"], found["dim"]) == (4, 20, 2048)
    assert found["BigFile / ours"] == pytest.approx(found["BigFile by frame ms"] / found["ours ms"])
    for features in ("12x512 float16", "1x2048 float32"):
        for kind in ("rows", "batch"):
            assert found[f"pairs/s/core {features}, {kind}"] > 0


def test_metrics_of_a_matrix_are_measured(tmp_path: Path) -> None:
    run(config(tmp_path, parts=["metrics"], bank_captions=1200))
    found = json.loads((tmp_path / "run" / "bench.json").read_text())["metrics"]
    assert (found["captions"], found["videos"], found["masked"]) == (600, 30, 6)
    assert found["matrix MB"] == 600 * 30 * 4 / 1e6
    assert found["CPU-s"] > 0
    assert found["bank CPU-s"] > 0


def test_scores_of_dual_encoding_are_measured(tmp_path: Path) -> None:
    run(config(tmp_path, parts=["dual_evaluation"], dual_captions=300, dual_videos=40))
    found = json.loads((tmp_path / "run" / "bench.json").read_text())["dual_evaluation"]
    assert (found["captions"], found["videos"]) == (300, 40)
    assert 0 < found["CPU-s of Jaccard"] < found["CPU-s of Jaccard, direct"]
    assert found["deviation x 1e6"] <= 1


@pytest.mark.slow
def test_full_size_evaluation_keeps_its_memory(tmp_path: Path) -> None:
    """59,800 captions, 2,990 videos, 512 dimensions, both directions, one thread."""
    found = bench_evaluation(config(tmp_path, num_captions=59_800, num_videos=2_990, dim=512))
    assert found["MB above embeddings"] <= 300


@pytest.mark.slow
def test_full_size_metrics_keep_their_time_and_memory(tmp_path: Path) -> None:
    """59,800 x 2,990 with masked rows, both directions, averaged ties: 5 CPU-s and 1 GB were asked."""
    found = bench_metrics(config(tmp_path, num_captions=59_800, num_videos=2_990, bank_captions=1_000))
    assert found["CPU-s"] <= 8, "twice what a quiet machine takes"
    assert found["MB above the matrix"] <= 400
