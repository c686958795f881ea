"""Shared fixtures: where real files and golden cases are, and a clean process environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("VIDEOTEXT_SHARED", ROOT.parent / "shared")).resolve()

# One place decides how many threads a test may use: 2 cores are shared by pytest-xdist workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect (visibly) the tests that need real files when these are not on this machine, and the slow ones."""
    unwanted = {"real"} if not (SHARED / "data").is_dir() else set()
    if "slow" not in (config.option.markexpr or ""):
        unwanted.add("slow")
    dropped = [item for item in items if any(item.get_closest_marker(name) for name in unwanted)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real annotations, clips, features and scores."""
    return SHARED / "data"
