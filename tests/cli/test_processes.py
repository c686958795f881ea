"""Runs among other processes: a loader process that is killed, and two runs that start at the same moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def children(pid: int) -> Iterator[int]:
    """All processes below `pid`, deepest last."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name in parentheses may hold blanks; the parent is the second field behind it.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == pid:
            child = int(path.parent.name)
            yield child
            yield from children(child)


def kill_a_loader(pid: int) -> bool:
    """Kill the deepest process that the fork server below `pid` started; whether there was one."""
    for server in children(pid):
        workers = list(children(server))
        if workers:
            os.kill(workers[-1], signal.SIGKILL)
            return True
    return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the loader's processes in /proc")
def test_a_killed_loader_process_ends_the_run_with_one_line(
    command: Callable[..., list[str]], environment: dict[str, str], tmp_path: Path
) -> None:
    words = command("dataset.num_workers=1", "dataset.cache=none", "trainer.max_epochs=200")
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=err)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "metrics.csv").exists():
            assert process.poll() is None, (tmp_path / "err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        while not kill_a_loader(process.pid):
            assert time.monotonic() < deadline
        assert process.wait(timeout=60) == 2
    finally:
        process.kill()
        process.wait()
    (line,) = [line for line in (tmp_path / "err").read_text().splitlines() if line.startswith("error: ")]
    assert "a loader process was lost" in line
    assert "ckpt_path=last" in line


def test_runs_that_start_together_have_folders_of_their_own(environment: dict[str, str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "src.run", "task=describe"]
    runs = [subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    assert len(list((tmp_path / "runs").glob("describe/*/*/config.yaml"))) == 2
