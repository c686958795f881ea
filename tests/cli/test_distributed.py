"""Two gloo processes and one process, same global batch: same losses, same ranks."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

OPTIONS = ("trainer.max_epochs=2", "trainer.log_every_n_steps=1")


def losses(run: Path) -> list[float]:
    """Mean training loss of every epoch."""
    with (run / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


def step_losses(run: Path) -> list[float]:
    """Training loss of every step, as the csv logger has it."""
    with (run / "csv" / "metrics.csv").open() as file:
        return [float(row["train/loss_step"]) for row in csv.DictReader(file) if row.get("train/loss_step")]


def ranks(run: Path) -> list[tuple[str, str, str]]:
    with (run / "ranks.csv").open() as file:
        return [(row["direction"], row["query_id"], row["rank"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def one(session_cli: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a single process."""
    folder = tmp_path_factory.mktemp("one")
    session_cli(*OPTIONS, f"hydra.run.dir={folder}").succeeded()
    return folder


TWO = {
    "started by command": ("trainer=ddp_cpu",),
    "spawned": ("trainer=ddp_spawn", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"),
}


@pytest.mark.parametrize("way", TWO)
def test_two_processes_train_and_rank_as_one(cli: Callable[..., Any], tmp_path: Path, one: Path, way: str) -> None:
    cli(*TWO[way], *OPTIONS).succeeded()
    two = tmp_path / "run"
    assert len(losses(one)) == 2
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)
    if way != "spawned":  # there Lightning's csv logger starts its file anew for the test
        assert len(step_losses(one)) == 10
        assert step_losses(two) == pytest.approx(step_losses(one), rel=1e-6)
    assert len(ranks(one)) == 120, "100 captions and 20 videos, each once"
    assert ranks(two) == ranks(one)


def test_a_multirun_with_a_launching_strategy_is_refused(cli: Callable[..., Any]) -> None:
    message = cli("-m", "trainer=ddp_cpu", "seed=0,1").failed_with(2)
    assert "ddp_spawn" in message
