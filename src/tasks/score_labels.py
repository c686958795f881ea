"""task=score task.labels=FILE: the rows of the matrix are labels, and a video has any number of them."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.errors import UserError
from src.metrics.classification import ClassificationResult, classify
from src.metrics.result import RECALLS
from src.reports.table import METRIC_TITLES, Table, number

METRICS = (*(f"R{k}" for k in RECALLS), "MdR", "MnR", "mAP", "GeoMean")


def score_labels(
    matrix: np.ndarray, names: tuple[list[str], list[str]], labels: Path, run_dir: Path, *, upstream_order: bool
) -> ClassificationResult:
    """Print the table, write metrics.json and ranks.csv (one line per video and label).

    Args:
        matrix: (L, V) scores.
        names: of the labels and of the videos.
        labels: `video<TAB>label<TAB>label …`, one line per video.
        run_dir: where the files go.
        upstream_order: as in `src.metrics.classification.classify`.

    Raises:
        UserError: the list cannot be used, or names what the matrix does not have.
    """
    positive_LV = read_positives(labels, *names)
    result = classify(np.asarray(matrix), positive_LV, upstream_order=upstream_order)
    order = "order of the list (published)" if upstream_order else "score"
    protocol = {
        "task": "retrieval as classification",
        "num_labels": len(names[0]),
        "num_videos": len(names[1]),
        "num_pairs": len(result.ranks_P),
        "positives_before": order,
        "ties": "average",
    }
    _table(result, f"{labels.name} | {len(names[0])} labels, {len(names[1])} videos", order).print()
    run_dir.mkdir(parents=True, exist_ok=True)
    excluded = {"videos_without_label": result.without_label, "labels_without_video": result.unused_labels}
    content = {"protocol": protocol, "labels": result.metrics, "excluded": excluded}
    (run_dir / "metrics.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _write_ranks(run_dir / "ranks.csv", result, *names)
    sys.stdout.write(f"metrics: {run_dir / 'metrics.json'}\n")
    return result


def _table(result: ClassificationResult, sizes: str, order: str) -> Table:
    row = ("labels of a video", *(number(result.metrics[key]) for key in METRICS))
    title = f"{sizes}, {len(result.ranks_P)} pairs | less the positives before it by {order} | ties average"
    notes = ["mAP: videos of a label"]
    if result.without_label:
        notes.append(f"{result.without_label} videos have no label and are no queries")
    if result.unused_labels:
        notes.append(f"{result.unused_labels} labels belong to no video and only compete")
    return Table(title, ("", *(METRIC_TITLES.get(key, key) for key in METRICS)), (row,), tuple(notes))


def read_positives(path: Path, labels: Sequence[str], videos: Sequence[str]) -> np.ndarray:
    """bool (L, V), whether the list gives the video this label; a video may stand on several lines.

    Raises:
        UserError: the list cannot be read, or names an unknown video or label.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"task.labels: cannot read {path} ({error}), expected lines of video<TAB>label") from None
    row_of, column_of = ({name: n for n, name in enumerate(names)} for names in (labels, videos))
    positive_LV = np.zeros((len(labels), len(videos)), dtype=bool)
    for number_, line in enumerate(lines, start=1):
        video, *found = line.split("\t")
        unknown = [name for name in found if name not in row_of]
        if video not in column_of or unknown:
            what = (
                f"label {unknown[0]!r}, which captions= does not"
                if unknown
                else f"video {video!r}, which videos= does not"
            )
            raise UserError(f"task.labels: line {number_} of {path} names {what}; expected video<TAB>label<TAB>label …")
        positive_LV[[row_of[name] for name in found], column_of[video]] = True
    return positive_LV


def _write_ranks(path: Path, result: ClassificationResult, labels: Sequence[str], videos: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("video", "label", "rank"))
        for video, label, rank in zip(result.videos_P, result.labels_P, result.ranks_P, strict=True):
            writer.writerow((videos[video], labels[label], f"{rank:g}"))
