"""What `task.prepare` of task=fit names is made before the training, where it is not there yet."""

from __future__ import annotations

import fcntl
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from omegaconf import DictConfig

from src.data.features.store import FeatureStore
from src.errors import UserError
from src.models.dual_encoding import TARGETS
from src.tasks.build import store_folders
from src.tasks.prepare_text import say

Step = Literal["words", "features", "vocabulary", "concepts"]


def run(cfg: DictConfig) -> None:
    """Do the steps of `task.prepare` whose result is missing, in their order, and print a line for each.

    Every process of a run may call it: one prepares while the others wait, and then find what they need. Those that
    find everything say so in the first process only.

    Raises:
        UserError: an unknown step, one that failed, or concepts of another number than the model has.
    """
    steps = [str(step) for step in cfg.task.prepare]
    unknown = [step for step in steps if step not in get_args(Step)]
    if unknown:
        raise UserError(
            f"found task.prepare=[{','.join(steps)}], expected some of {', '.join(get_args(Step))}; the other steps "
            "are done by task=prepare"
        )
    if not steps:
        return
    with _one_at_a_time(Path(cfg.paths.data_dir).expanduser()):
        for step in (step for step in get_args(Step) if step in steps):
            _ensure(cfg, step)
    if "concepts" in steps:
        _check_concepts(cfg)


def _ensure(cfg: DictConfig, step: str) -> None:
    module: Any = importlib.import_module(f"src.tasks.prepare_{step}")
    needed = step != "concepts" or TARGETS in cfg.experts
    found = module.found(cfg) if needed else None
    if needed and found is None:
        say(f"{step}: not there yet, made now")
        module.run(cfg)
    elif os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
        say(f"{step}: found {found}" if needed else f"{step}: no expert of this run is called {TARGETS}")


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the folder; others wait. The system drops the lock however the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".prepare.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_concepts(cfg: DictConfig) -> None:
    """The captions may hold fewer concepts than asked for, and the model has one output for each."""
    wanted, path = cfg.model.get("num_concepts"), store_folders(cfg).get(TARGETS)
    if wanted is None or path is None:
        return
    size = FeatureStore.open(path).dim
    if size != wanted:
        raise UserError(
            f"{path} has {size} concepts, expected model.num_concepts={wanted}; add model.num_concepts={size}, or "
            "remove that folder to have them made anew"
        )
