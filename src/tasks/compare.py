"""task=compare: one table of finished runs; `runs=[FOLDER,FOLDER]`, each a run folder, a multirun folder or a glob.

`fuse=[FOLDER,FOLDER]`: their late fusion instead (`src.tasks.fuse`).
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from src.errors import UserError
from src.reports.compare import compare_runs
from src.tasks import fuse


def run(cfg: DictConfig) -> None:
    """Print the comparison and write it as markdown, LaTeX and csv into the run folder.

    Raises:
        UserError: a pattern names no finished run, or runs cannot be fused.
    """
    if cfg.get("task") and cfg.task.get("fuse"):
        fuse.run(cfg)
        return
    table = compare_runs(find_runs(list(cfg.runs)))
    table.print()
    for path in table.write(Path(cfg.paths.run_dir)):
        sys.stdout.write(f"{path}\n")


def find_runs(patterns: Sequence[str]) -> list[Path]:
    """Run folders (those that hold metrics.json) that the patterns name, each once, in the given order."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        folders = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - absolute too
        inside = [p.parent for folder in folders for p in sorted(folder.glob("**/metrics.json"))]
        if not inside:
            raise UserError(
                f"runs: {pattern} holds no metrics.json, expected a folder of finished runs; check the path"
            )
        found.update({folder.resolve(): None for folder in inside})
    if not found:
        raise UserError("task=compare found no runs, expected runs=[FOLDER,FOLDER] or runs=['runs/fit/*/*']")
    return list(found)
