"""Every command of README.md: executed on small data, or at least validated where its files cannot be had."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.config import compose

ROOT = Path(__file__).resolve().parents[2]
# Needs the videos of MSR-VTT, OpenAI's weights or a released checkpoint.
NOT_HERE = ("msrvtt", "model.pretrained=openai", "task=convert")
MADE = "python -m src.run model=clip4clip"  # runs first: others read what it leaves


def commands() -> list[str]:
    """The `python -m src.run` lines of all code blocks and inline code, continuation lines joined."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    found = re.findall(r"^python -m src\.run.*$", text, re.MULTILINE)
    found += re.findall(r"`(python -m src\.run[^`]+)`", text)
    return list(dict.fromkeys(shlex.join(shlex.split(line, comments=True)) for line in found))


def arguments(command: str) -> list[str]:
    return shlex.split(command)[3:]


def test_readme_has_commands() -> None:
    assert len(commands()) >= 10


@pytest.mark.parametrize("command", [c for c in commands() if any(word in c for word in NOT_HERE)])
def test_command_that_cannot_run_here_is_valid(command: str) -> None:
    compose.preflight(compose.parse(compose.task_keys_named(arguments(command))))


@pytest.fixture
def clips(toy_data: Path, cli: Callable[..., Any], tmp_path: Path) -> Path:
    """A folder of real mp4 files with captions.csv, made from the toy benchmark."""
    assert MADE in commands()
    cli(*arguments(MADE), "trainer.max_epochs=1", name="made").succeeded()
    folder = tmp_path / "clips"
    folder.mkdir()
    root = next(path.parent for path in (toy_data / "toy").rglob("annotation.json"))
    videos = sorted(root.rglob("*.mp4"))[:30]
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "caption", "split"])
        for number, video in enumerate(videos):
            shutil.copy(video, folder / video.name)
            split = ("train", "train", "train", "val", "test")[number % 5]
            writer.writerow([video.name, f"clip number {number}", split])
    return folder


def test_commands_run(cli: Callable[..., Any], clips: Path, tmp_path: Path) -> None:
    """In the order of the page, with small sizes appended and the placeholders filled in."""
    np.save(tmp_path / "S.npy", np.eye(6, dtype=np.float32))
    made = tmp_path / "made"
    checkpoint = made / "checkpoints" / "best.ckpt"
    ran = 0
    for number, command in enumerate(commands()):
        if command == MADE or any(word in command for word in NOT_HERE):
            continue
        words = arguments(command)
        words = [re.sub(r"=clips$", f"={clips}", word) for word in words]
        words = [re.sub(r"=runs/fit/…/checkpoints/best\.ckpt$", f"={checkpoint}", word) for word in words]
        words = [re.sub(r"=S\.npy$", f"={tmp_path / 'S.npy'}", word) for word in words]
        words = [word.replace("runs/fit/a", str(made)).replace("runs/fit/b", str(made)) for word in words]
        small = ["trainer.max_epochs=1", "trainer.limit_train_batches=1"]
        options: dict[str, Any] = {"name": f"run{number}"}
        if "--help" in words:
            assert "task" in cli(*words, tiny=False).succeeded().out
            continue
        if "dataset=folder" in words:
            small += ["dataset.batch_size=4", "dataset.num_workers=0", "trainer.enable_progress_bar=false"]
            options["tiny"] = False
        elif "task=score" in words or "task=compare" in words:
            small, options["tiny"] = [], False
        if {"task=evaluate", "task=export_submission"} & set(words):
            small = ["model=clip4clip"]
        if "-m" in words:
            small.append(f"hydra.sweep.dir={tmp_path / 'sweep'}")
        cli(*words, *small, **options).succeeded()
        ran += 1
    assert ran >= 7
    assert json.loads((tmp_path / "sweep" / "0" / "metrics.json").read_text())["t2v"]
