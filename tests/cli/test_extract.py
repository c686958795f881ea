"""task=extract on the command line: broken files, kill -9 and resume, several processes, mistakes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from src.config import compose
from src.data.features.store import FeatureStore
from src.errors import UserError
from tests.clips import make_audio_only, make_clip, make_truncated

Cli = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
BROKEN = ("truncated.mp4", "frameless.mp4", "text.mp4", "absent.mp4")
NUM_GOOD = 8

# A network that can be told to take its time, so that a test can interrupt it.
NETWORK = """
import os, time
from torch import nn
class Means(nn.Module):
    def forward(self, frames):
        time.sleep(float(os.environ.get("MEANS_S", "0")))
        return frames.mean(dim=(2, 3))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight good videos, the broken ones among them, and the module with the network."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "means_network.py").write_text(NETWORK)
    for i in range(NUM_GOOD):
        make_clip(folder / f"good{i}.mp4", 10 + 5 * i, 10, audio=False)
    make_truncated(folder / "truncated.mp4", share=0.3)
    make_audio_only(folder / "frameless.mp4")
    (folder / "text.mp4").write_text("no video at all")
    names = [f"good{i}.mp4" for i in range(NUM_GOOD)]
    names = [*names[:3], *BROKEN, *names[3:]]
    rows = [f"{name},clip {i},test" for i, name in enumerate(names)]
    (folder / "captions.csv").write_text("\n".join(["video,caption,split", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def words(folder: Path) -> tuple[str, ...]:
    return (
        *("task=extract", "extractor=plugin", "extractor.network=means_network:Means", "extractor.name=means"),
        *("extractor.layout=NCHW", "extractor.window=1", "extractor.stride=1", "extractor.size=32"),
        *("dataset=folder", f"dataset.data_dir={folder}", "dataset.num_workers=1", "trainer=cpu"),
        *("task.parts=[test]", "task.items_per_shard=2"),
    )


@pytest.fixture(scope="module")
def paths(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}


def digests(store: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in store.iterdir()}


@dataclass
class Run:
    """What one process did in one go."""

    store: Path
    folder: Path
    done: subprocess.CompletedProcess[str]
    digests: dict[str, str]


@pytest.fixture(scope="module")
def undisturbed(
    words: tuple[str, ...],
    paths: dict[str, str],
    environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    run = tmp_path_factory.mktemp("undisturbed")
    store = run / "means"
    command = [sys.executable, "-m", "src.run", *words, f"task.output={store}", f"hydra.run.dir={run / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment | paths, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return Run(store, run / "run", done, digests(store))


def test_broken_files_are_listed_and_the_rest_is_stored(undisturbed: Run) -> None:
    features = FeatureStore.open(undisturbed.store)
    assert features.ids == tuple(f"good{i}.mp4" for i in range(NUM_GOOD))
    assert features.name == "means"
    assert [len(features.get(f"good{i}.mp4")) for i in range(NUM_GOOD)] == [1, 2, 2, 3, 3, 4, 4, 5]  # a frame a second
    assert set(features.missing) == set(BROKEN)
    assert features.verify() == []
    out = undisturbed.done.stdout
    assert "8 items, 24 vectors of 3 numbers" in out
    assert "4 failed:" in out
    lines = (undisturbed.folder / "problems.jsonl").read_text().splitlines()
    reasons = {problem["video_id"]: problem["reason"] for problem in map(json.loads, lines)}
    assert set(reasons) == set(BROKEN)
    assert reasons["absent.mp4"] == "file not found"
    assert reasons["truncated.mp4"].startswith("truncated: ")
    for name, reason in reasons.items():
        assert f"  {name}: {reason}" in out
    assert "task.retry_failed=true" in out
    assert not undisturbed.done.stderr


def test_killed_and_resumed_it_leaves_the_same_bytes(
    cli: Cli,
    command: Callable[..., list[str]],
    environment: dict[str, str],
    words: tuple[str, ...],
    paths: dict[str, str],
    tmp_path: Path,
    undisturbed: Run,
) -> None:
    store = tmp_path / "means"
    slow = environment | paths | {"MEANS_S": "0.5"}
    run = command(*words, f"task.output={store}", tiny=False, name="killed")
    process = subprocess.Popen(run, env=slow, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (store / "shard-00001.json").exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (store / "manifest.json").exists()
    written = len(list(store.glob("shard-*.json")))
    assert 2 <= written < 6
    resumed = cli(*words, f"task.output={store}", tiny=False, env=paths).succeeded()
    assert f"{written} of 6 shards were there before" in resumed.out
    assert digests(store) == undisturbed.digests


def test_two_processes_leave_the_same_bytes(
    cli: Cli, words: tuple[str, ...], paths: dict[str, str], tmp_path: Path, undisturbed: Run
) -> None:
    store = tmp_path / "means"
    done = cli(*words, f"task.output={store}", "trainer=ddp_cpu", tiny=False, env=paths).succeeded()
    assert done.out.count("8 items, 24 vectors") == 1
    assert digests(store) == undisturbed.digests


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["task=extract"], "task=extract has no extractor; give extractor="),
        (["task=extract", "extractor=clipp"], "unknown option 'clipp' of the group 'extractor'; did you mean"),
        (["extractor=clip"], "extractor=clip is read by task=extract only; add task=extract"),
        (["task=extract", "extractor=scene"], "extractor=scene has no weights; give extractor.weights=FILE"),
        (["task=extract", "extractor=clip", "extractor.fsp=2"], "unknown key 'extractor.fsp'"),
        (["task=extract", "extractor=plugin"], "extractor.network is required by extractor=plugin and not given"),
    ],
)
def test_mistakes_are_found_before_anything_is_imported(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        compose.preflight(compose.parse(options))


def test_a_mistyped_extractor_answers_at_once(cli: Cli, tmp_path: Path) -> None:
    message = cli("task=extract", "extractor=imagnet", tiny=False).failed_with(2)
    assert message.endswith("did you mean 'extractor=imagenet'?")
    assert not (tmp_path / "run").exists()
