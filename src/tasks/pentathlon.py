"""Video Pentathlon: task=evaluate task.pentathlon=PHASE writes a submission, task=score task.predictions=… reads it.

Beside the predictions stands `{Dataset}-{phase}-truth.csv`, the position of each line's own video, which is no part of
the submission: where it is found, the score is printed too.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from src.data.splits import SplitPart
from src.errors import UserError
from src.metrics.rescoring import Rescored
from src.metrics.result import RetrievalResult
from src.reports.pentathlon import (
    PHASES,
    challenge_name,
    expected_size,
    ranking_lines,
    read_index,
    read_predictions,
    score_predictions,
    write_predictions,
    write_submission,
)
from src.reports.table import Table, number

FOLDER = "pentathlon"
SCORES = ("R1", "R5", "R10", "GeoMean")


def check_part(cfg: DictConfig, part: SplitPart) -> None:
    """Find out before anything is encoded that a part is not the one of the challenge.

    Raises:
        UserError: no such phase, other videos, or fewer captions.
    """
    phase = cfg.task.get("pentathlon")
    if not phase:
        return
    size = expected_size(cfg.dataset.name, phase)
    # More captions may be named than have features: those without are no queries.
    if size is not None and (len(part.videos) != size.videos or len(part.captions) < size.lines):
        raise UserError(
            f"task.pentathlon={phase}: found {len(part.videos):,} videos and {len(part.captions):,} captions, expected "
            f"{size.videos:,} and {size.lines:,}; choose the split of the challenge, with all captions of each video"
        )


def write(cfg: DictConfig, part: SplitPart, result: RetrievalResult, rescored: Rescored | None = None) -> None:
    """Write `pentathlon/` of the run folder if `task.pentathlon` asks for it: re-scored ranks where there are some."""
    phase = cfg.task.get("pentathlon")
    if not phase:
        return
    order = result if rescored is None else rescored.result
    lines, size = ranking_lines(order, len(part.videos)), expected_size(cfg.dataset.name, phase)
    if size is not None and len(lines) != size.lines:
        raise UserError(
            f"task.pentathlon={phase}: found {len(lines):,} queries, expected {size.lines:,} on this data set"
        )
    folder = Path(cfg.paths.run_dir) / FOLDER
    path = write_predictions(folder, cfg.dataset.name, phase, lines)
    truth = truth_of(path)
    truth.write_text("".join(f"{video}\n" for video in result.caption_videos.tolist()), encoding="utf-8")
    archive = write_submission(folder, {challenge_name(cfg.dataset.name): path}, phase, datetime.now())
    known = "" if size is not None else " (no data set of the challenge)"
    how = f" ({rescored.label})" if rescored is not None else ""
    sys.stdout.write(f"pentathlon: {archive}{how}{known}\n")


def truth_of(predictions: Path) -> Path:
    """Where the true videos of a file of predictions are kept."""
    return predictions.with_name(predictions.name.replace("-predictions", "-truth"))


def score(path: Path, run_dir: Path) -> float | None:
    """Check predictions, score those whose truth is known, and pack those of each phase.

    Args:
        path: predictions.json, or the file of one data set.
        run_dir: gets metrics.json and, for predictions.json, one zip per phase.

    Returns:
        The geometric mean of R@1, R@5 and R@10, its mean over data sets; None without truth.

    Raises:
        UserError: a file cannot be submitted.
    """
    files = read_index(path) if path.suffix == ".json" else {_named(path): path}
    rows, found = [], {}
    for (dataset, phase), file in files.items():
        predictions = read_predictions(file, expected_size(dataset, phase) if phase else None)
        scores = _scores(file, predictions)
        found[f"{dataset} {phase}".strip()] = {"lines": len(predictions), **scores}
        rows.append((dataset, phase, str(len(predictions)), *(number(scores[k]) if scores else "" for k in SCORES)))
    means = [entry["GeoMean"] for entry in found.values() if "GeoMean" in entry]
    notes = ["all files can be submitted" if path.suffix == ".json" else "every line is complete"]
    if means:
        notes.append(f"mean of the geometric means: {number(float(np.mean(means)))}")
    Table(path.name, ("data set", "phase", "lines", "R@1", "R@5", "R@10", "GeoMean"), tuple(rows), tuple(notes)).print()
    run_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"protocol": {"task": "pentathlon", "predictions": path.name}, "pentathlon": found}, indent=2)
    (run_dir / "metrics.json").write_text(text + "\n", encoding="utf-8")
    if path.suffix == ".json":
        for phase in dict.fromkeys(phase for _, phase in files):
            chosen = {dataset: file for (dataset, its), file in files.items() if its == phase}
            sys.stdout.write(f"submission: {write_submission(run_dir, chosen, phase, datetime.now())}\n")
    return float(np.mean(means)) if means else None


def _named(path: Path) -> tuple[str, str]:
    """Data set and phase, where the name of the file says them."""
    for phase in PHASES:
        dataset, dash, _ = path.name.partition(f"-{phase}-predictions")
        if dash:
            return dataset, phase
    return path.stem, ""


def _scores(file: Path, predictions: np.ndarray) -> dict[str, float]:
    truth = truth_of(file)
    if truth == file or not truth.is_file():
        return {}
    words = truth.read_text(encoding="utf-8").split()
    wrong = next((word for word in words if not word.isdecimal()), None)
    if wrong is not None:
        raise UserError(f"{truth}: found {wrong!r}, expected one position of a video per line")
    return score_predictions(predictions, np.array(words, dtype=np.int64))
