"""A folder of features as the archives of Collaborative Experts unpack it: imported, then trained on."""

from __future__ import annotations

import csv
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from src.data.features.store import FeatureStore
from tests.cli.conftest import Outcome

Cli = Callable[..., Outcome]
VIDEOS = [f"video{number}" for number in range(12)]
NOWHERE, SILENT = "video11", ("video1", "video4", "video10")
NAN = float("nan")
RANDOM = np.random.default_rng(0)


def rows(steps: int, dim: int) -> np.ndarray:
    return RANDOM.normal(size=(steps, dim)).astype(np.float32)


def expert_store(monkeypatch: pytest.MonkeyPatch, dim: int) -> bytes:
    """Scene as one object with a matrix, pickled under the name of the published class."""
    module = types.ModuleType("datastructures")
    module.ExpertStore = kind = type("ExpertStore", (), {"__module__": "datastructures"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datastructures", module)
    found = kind()
    found.keys, found.dim, found.store_dtype, found.missing = VIDEOS, dim, np.float16, set()
    found.keymap = {video: place for place, video in enumerate(VIDEOS)}
    found.store = rows(len(VIDEOS), dim).astype(np.float16)
    found.store[found.keymap[NOWHERE]] = np.nan
    return pickle.dumps(found, 2)


def write_archive(root: Path, scene: bytes) -> None:
    audio = {v: NAN if v in (*SILENT, NOWHERE) else rows(3 + i % 2, 128) for i, v in enumerate(VIDEOS)}
    face = {v: NAN if v in ("video2", NOWHERE) else rows(1, 512) for v in VIDEOS}
    words = {v: [rows(2 + i % 3, 300) for i in range(2)] for v in VIDEOS}
    files = {
        "aggregated_scene_25fps_256px_stride1_offset0/densenet161-avg.pickle": scene,
        "aggregated_audio_feats/Audio_MSRVTT_new.pickle": pickle.dumps(audio, 4),
        "aggregated_face_feats/facefeats-avg.pickle": pickle.dumps(face, 2),
        "aggregated_text_feats/w2v.pkl": pickle.dumps(words),
        "raw-captions.pkl": pickle.dumps({v: [["a", "dog"]] for v in VIDEOS}),
    }
    for place, content in files.items():
        path = root / "files" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    links = root / "MSRVTT" / "high-quality" / "structured-symlinks"
    links.mkdir(parents=True)
    for child in (root / "files").iterdir():
        (links / child.name).symlink_to(child)


def test_from_the_archive_to_a_trained_model(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path, expert_store(monkeypatch, 2208))
    own, features = tmp_path / "own", tmp_path / "data" / "folder" / "features"
    own.mkdir()
    with (own / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("video", "caption", "split"))
        for place, video in enumerate(VIDEOS):
            part = "train" if place < 6 else "val" if place < 8 else "test"
            table.writerows((video, f"caption {number} of {video}", part) for number in range(2))
    source = f"task.source={tmp_path}/MSRVTT"
    printed = cli("task=convert", source, f"task.output={features}", name="c", tiny=False).succeeded().out
    assert "raw-captions.pkl" in printed
    scene, audio = (FeatureStore.open(features / name) for name in ("scene.densenet161.0", "audio"))
    assert (scene.dim, scene.dtype, set(scene.missing)) == (2208, np.float16, {NOWHERE})
    assert set(audio.missing) == {*SILENT, NOWHERE}
    assert FeatureStore.open(features / "text.w2v").lengths(["video0#0", "video0#1"]).tolist() == [2, 3]

    outcome = cli(
        *("model=ce", "dataset=folder", f"dataset.data_dir={own}", f"paths.data_dir={tmp_path}/data", "text=w2v"),
        *("experts=[scene,audio,face]", "split.subset=available", "model.shared_dim=8", "trainer.max_epochs=1"),
        *("model.vlad_clusters={text: 2, audio: 2}", "model.max_tokens={text: 4, audio: 3}", "trainer.accelerator=cpu"),
        *("dataset.batch_size=6", "dataset.num_workers=0", "trainer.enable_progress_bar=false", "ties=average"),
        tiny=False,
    ).succeeded()
    metrics = (tmp_path / "run" / "metrics.json").read_text()
    assert '"num_videos": 3' in metrics  # of the four of the test part
    assert '"num_captions": 6' in metrics
    assert f"excluded: missing video {NOWHERE} (test)" in outcome.out
    assert "without expert audio: 1 of the 3 videos" in outcome.out
