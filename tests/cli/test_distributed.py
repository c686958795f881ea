"""Two gloo processes and one process, same global batch: same losses, same ranks."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

OPTIONS = ("trainer.max_epochs=2", "dataset.unique_videos_in_batch=false")


def losses(run: Path) -> list[float]:
    """Training loss of every step, as logged."""
    with (run / "csv" / "metrics.csv").open() as file:
        return [float(row["train/loss_step"]) for row in csv.DictReader(file) if row.get("train/loss_step")]


def ranks(run: Path) -> list[tuple[str, str, str]]:
    with (run / "ranks.csv").open() as file:
        return [(row["direction"], row["query_id"], row["rank"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("strategy", ["ddp_cpu", "ddp_spawn"])
def test_two_processes_train_and_rank_as_one(cli: Callable[..., Any], tmp_path: Path, strategy: str) -> None:
    log_all = "trainer.log_every_n_steps=1"
    cli(*OPTIONS, log_all, name="one").succeeded()
    two = ("trainer=ddp_spawn", "trainer.accelerator=cpu", "trainer.devices=2")
    cli(*(two if strategy == "ddp_spawn" else ("trainer=ddp_cpu",)), *OPTIONS, log_all, name="two").succeeded()
    one, both = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 10
    assert both == pytest.approx(one, rel=1e-6)
    assert ranks(tmp_path / "two") == ranks(tmp_path / "one")


def test_a_multirun_with_a_launching_strategy_is_refused(cli: Callable[..., Any]) -> None:
    message = cli("-m", "trainer=ddp_cpu", "seed=0,1").failed_with(2)
    assert "ddp_spawn" in message
