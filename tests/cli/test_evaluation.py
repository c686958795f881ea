"""QB-Norm and a Pentathlon submission through the real command line, in two processes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.tasks import pentathlon

Cli = Callable[..., Any]
Metrics = Callable[[str], dict[str, Any]]
PHASE = "public_server_val"


def test_two_processes_share_the_bank_and_leave_a_submission(cli: Cli, metrics: Metrics, tmp_path: Path) -> None:
    asked = ("task.qb_norm.beta=20", f"task.pentathlon={PHASE}", "task.random_weights=true", "ties=average")
    outcome = cli("task=evaluate", "trainer=ddp_cpu", *asked).succeeded()
    found = metrics("run")
    captions = 40 * found["protocol"]["captions_per_video"]
    assert found["qb_norm"]["bank_queries"] == captions, "each caption of the training part once"
    words = f"QB-Norm t2v only (beta 20, k 1, bank {captions:.0f} captions of train)"
    assert found["protocol"]["rescoring"] == words
    assert f"rescoring {words}" in outcome.out
    assert found["parameters"] > 0
    run = tmp_path / "run"
    # Averaged ties aside, the ranking that was submitted is the one that was ranked.
    scored = pentathlon.score(run / "pentathlon" / f"toy-{PHASE}-predictions.csv", tmp_path / "scored")
    with (run / "ranks.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["direction"] == "t2v"]
    recalls = [sum(float(row["rank"]) <= k for row in rows) / len(rows) for k in (1, 5, 10)]
    assert scored == pytest.approx(100 * (recalls[0] * recalls[1] * recalls[2]) ** (1 / 3))
