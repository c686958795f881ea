"""W&B without an account: runs of a multirun stay apart, and a sweep's command works as W&B renders it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_multirun_gives_distinct_wandb_runs_and_one_table(cli: Callable[..., Any], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    jobs = ("-m", "model=clip4clip,clip2video", "seed=0,1", "logger=wandb", f"hydra.sweep.dir={sweep}")
    outcome = cli(*jobs, "trainer.max_epochs=1", "trainer.limit_train_batches=2").succeeded()
    folders = {path.name for path in sweep.rglob("offline-run-*") if path.is_dir()}
    ids = {re.split("-", name)[-1] for name in folders}
    assert len(ids) == 4, sorted(folders)
    assert len(list(sweep.rglob("metrics.json"))) == 4
    table = outcome.out[outcome.out.rindex("report: ") :]
    for typed in ("clip4clip", "clip2video"):
        assert typed in table, "rows are named by what was typed"
    assert "±" in table or "(" in table, "mean and spread over the two seeds"


def test_the_sweep_file_renders_to_a_command_that_runs(
    command: Callable[..., list[str]], environment: dict[str, str], tmp_path: Path
) -> None:
    sweep = yaml.safe_load((ROOT / "sweeps" / "clip2video_lr.yaml").read_text())
    assert sweep["metric"]["name"] == "val/t2v/R1"
    assert "${args_no_hyphens}" in sweep["command"]
    # As the agent renders it: one key=value for each parameter, of its first value.
    chosen = []
    for name, spec in sweep["parameters"].items():
        value = spec["values"][0] if "values" in spec else spec.get("min", spec.get("value"))
        chosen.append(f"{name}={value}")
    words: list[str] = []
    for word in sweep["command"]:
        words += {"${env}": ["/usr/bin/env"], "${interpreter}": [sys.executable], "${args_no_hyphens}": chosen}.get(
            word, [sys.executable if word == "python" else word]
        )
    tiny = command("trainer.max_epochs=1", "trainer.limit_train_batches=1")[3:]
    done = subprocess.run([*words, *tiny], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, shlex.join(words) + done.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    for pair in chosen:
        name, value = pair.split("=", 1)
        node: Any = config
        for key in name.split("."):
            node = node[key]
        assert node == yaml.safe_load(value), name
