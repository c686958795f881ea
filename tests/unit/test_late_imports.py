"""What other packages import on their way is left for later, and is there when it is asked for."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from src.tasks.late_imports import late

ROOT = Path(__file__).resolve().parents[2]
NAME = "xml.sax.expatreader"


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, NAME, raising=False)


@pytest.mark.usefixtures("unloaded")
def test_it_is_loaded_afterwards_or_when_something_is_asked_for() -> None:
    with late(NAME, version=None):
        module = importlib.import_module(NAME)
        assert module.version is None
        assert not hasattr(module, "__path__")
        assert sys.modules[NAME] is module
    assert NAME not in sys.modules
    with late(NAME):
        module = importlib.import_module(NAME)
        assert module.ExpatParser.__module__ == NAME
        assert sys.modules[NAME] is not module
    with late(NAME):  # loaded already
        assert sys.modules[NAME].ExpatParser is module.ExpatParser


def test_a_task_starts_without_scipy_signal_and_can_use_it() -> None:
    program = """
import sys
from omegaconf import OmegaConf
from src.tasks.multirun import _task
_task(OmegaConf.create({"task": {"name": "fit"}}))
assert "torchmetrics" in sys.modules
assert "scipy.signal" not in sys.modules
import scipy.signal
print(len(scipy.signal.windows.hamming(5)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["5"]), done.stderr
