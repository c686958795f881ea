"""Re-scoring and a Pentathlon submission through the real command line, in one and in two processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.tasks import pentathlon

Cli = Callable[..., Any]
Metrics = Callable[[str], dict[str, Any]]
PHASE = "public_server_val"


METHOD = ("rescoring=sinkhorn", "rescoring.bank=train", "rescoring.video_bank=true", "rescoring.iterations=3")


def test_two_processes_share_the_bank_and_leave_a_submission(cli: Cli, metrics: Metrics, tmp_path: Path) -> None:
    asked = (*METHOD, f"task.pentathlon={PHASE}", "task.random_weights=true", "ties=average", "compatibility=clip4clip")
    outcome = cli("task=evaluate", "trainer=ddp_cpu", *asked).succeeded()
    found = metrics("run")
    rescored = found["rescored"]
    captions = 40 * found["protocol"]["captions_per_video"]
    assert rescored["settings"]["bank_queries"] == captions, "each caption of the training part once"
    assert rescored["settings"]["bank_videos"] == 40
    assert not rescored["transductive"]
    assert found["protocol"]["rescoring"] == "none"
    words = f"Sinkhorn: epsilon {rescored['settings']['epsilon']:.4g}, iterations 3, bank captions of train"
    assert outcome.out.index("rescoring none") < outcome.out.index(f"rescoring {words}")
    assert "CLIP4Clip's evaluation, Sinkhorn " in outcome.out
    assert found["parameters"] > 0
    cli("task=evaluate", *asked, name="alone").succeeded()
    alone = metrics("alone")
    assert alone["t2v"] == found["t2v"]
    assert alone["rescored"] == rescored
    assert alone["clip4clip"] == found["clip4clip"]
    # Averaged ties aside, the ranking that was submitted is the re-scored one.
    run = tmp_path / "run"
    scored = pentathlon.score(run / "pentathlon" / f"toy-{PHASE}-predictions.csv", tmp_path / "scored")
    assert scored == pytest.approx(rescored["t2v"]["GeoMean"])
    assert scored != pytest.approx(found["t2v"]["GeoMean"])


def test_a_run_ends_with_rescored_numbers(cli: Cli, metrics: Metrics, tmp_path: Path) -> None:
    """Of training too; a bank that is not there is found before the first epoch."""
    cli("trainer.max_epochs=1", "rescoring=dsl", "optimized_metric=null").succeeded()
    found = metrics("run")
    assert found["rescored"]["label"] == "DSL (transductive)"
    assert found["rescored"]["t2v"] != found["t2v"]
    assert "<h3>DSL (transductive)</h3>" in (tmp_path / "run" / "report" / "index.html").read_text()
    broken = ("rescoring=qb_norm", "rescoring.bank=val", "selection=last", "~split.parts.val")
    assert "val part" in cli("trainer.max_epochs=1", *broken, name="x").failed_with(2)
    assert not (tmp_path / "x" / "checkpoints").exists()
