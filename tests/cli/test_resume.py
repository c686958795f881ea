"""An interrupted run, resumed, ends where the uninterrupted one ends: bit for bit."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = "trainer.max_epochs=3"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def epochs_in(run: Path) -> int:
    table = run / "metrics.csv"
    return max(0, len(table.read_text().splitlines()) - 1) if table.exists() else 0


def start_and_signal(command: list[str], environment: dict[str, str], run: Path, number: signal.Signals) -> int:
    """Start a run, wait until its first epoch is saved, let it get into the second, send a signal."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while epochs_in(run) < 1 or not (run / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    return process.wait(timeout=120)


# A model with dropout, so that the random stream matters too.
DROPOUT = ("model=clip4clip", "model.head=tightTransf", EPOCHS, "dataset.num_train=80", "dataset.batch_size=4")


@pytest.fixture(scope="module")
def whole(session_cli: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts."""
    run = tmp_path_factory.mktemp("whole")
    session_cli(*DROPOUT, f"hydra.run.dir={run}").succeeded()
    return run


@pytest.fixture(scope="module")
def short(session_cli: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch; who writes into it takes a copy."""
    run = tmp_path_factory.mktemp("short")
    session_cli("trainer.max_epochs=1", f"hydra.run.dir={run}").succeeded()
    return run


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["sigkill", "sigterm"])
def test_resumed_equals_uninterrupted(
    cli: Callable[..., Any],
    command: Callable[..., list[str]],
    environment: dict[str, str],
    tmp_path: Path,
    whole: Path,
    number: signal.Signals,
) -> None:
    code = start_and_signal(command(*DROPOUT, name="cut"), environment, tmp_path / "cut", number)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 143)
    assert 1 <= epochs_in(tmp_path / "cut") < 3

    cli(*DROPOUT, "ckpt_path=last", name="cut").succeeded()
    assert epochs_in(tmp_path / "cut") == 3, "the resumed run has the whole learning curve"
    assert_equal(weights(tmp_path / "cut"), weights(whole))


def test_resuming_with_another_batch_size_is_refused(cli: Callable[..., Any], tmp_path: Path, short: Path) -> None:
    shutil.copytree(short, tmp_path / "run")
    message = cli("trainer.max_epochs=2", "ckpt_path=last", "dataset.batch_size=4").failed_with(2)
    assert "batch_size" in message


def test_a_new_run_starts_from_given_weights(cli: Callable[..., Any], tmp_path: Path, short: Path) -> None:
    start = short / "checkpoints" / "last.ckpt"
    unchanged = ("optimizer.lr=0.0", "optimizer.weight_decay=0.0", "scheduler=none")
    cli("trainer.max_epochs=1", "seed=1", f"task.weights={start}", *unchanged, name="second").succeeded()
    assert_equal(weights(tmp_path / "second"), weights(short))
    message = cli("model=clip4clip", f"task.weights={start}", name="other").failed_with(2)
    assert "last.ckpt" in message
