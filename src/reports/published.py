"""Published rows of a model on a data set, to stand beside the numbers of a run.

published.csv holds them: one line per row, splits of equal test part and training data separated by blanks, empty where
nothing was published. Rows that were obtained with re-scoring never share a table with rows without.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from src.metrics.result import RetrievalResult
from src.reports.rescored import Further
from src.reports.table import DIRECTIONS, METRIC_TITLES, Table, number

Setting = Literal["zero-shot", "fine-tuned"]

METRICS = ("R1", "R5", "R10", "R50", "MdR", "MnR")
FILE = Path(__file__).with_name("published.csv")
RESCORED = {"DSL": "dsl"}  # published name -> the option rescoring=


@dataclass(frozen=True)
class PublishedRow:
    """One published row.

    Attributes:
        model: class name, as in the protocol of a run.
        variant: backbone and head.
        dataset: name of the data set.
        splits: names of the splits that it holds for.
        videos: size of the gallery.
        setting: with or without training on the data set.
        rescoring: none, or DSL.
        v2t_protocol: captions, or groups (the best caption of each video competes, which is easier); empty: no v2t.
        source: who says so.
        t2v, v2t: metrics in percent and ranks from 1, as far as published.
    """

    model: str
    variant: str
    dataset: str
    splits: tuple[str, ...]
    videos: int
    setting: Setting
    rescoring: str
    v2t_protocol: str
    source: str
    t2v: Mapping[str, float]
    v2t: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """An entry of "published" in metrics.json."""
        return {**asdict(self), "splits": list(self.splits)}


@cache
def all_rows() -> tuple[PublishedRow, ...]:
    """Everything that published.csv holds."""
    with FILE.open(newline="", encoding="utf-8") as file:
        return tuple(_read(row) for row in csv.DictReader(file))


def _read(row: Mapping[str, str]) -> PublishedRow:
    sides = {side: {key: float(row[f"{side}_{key}"]) for key in METRICS if row[f"{side}_{key}"]} for side in DIRECTIONS}
    setting: Setting = "zero-shot" if row["setting"] == "zero-shot" else "fine-tuned"
    return PublishedRow(
        *(row["model"], row["variant"], row["dataset"], tuple(row["splits"].split()), int(row["videos"]), setting),
        *(row["rescoring"], row["v2t"], row["source"], sides["t2v"], sides["v2t"]),
    )


def published_rows(protocol: Mapping[str, object], setting: Setting) -> tuple[PublishedRow, ...]:
    """The rows of the same model, data set and split.

    Args:
        protocol: `model`, `dataset` and `split` of a run.
        setting: fine-tuned where the run trained, or evaluated a checkpoint.
    """
    model, dataset, split = (str(protocol.get(key)) for key in ("model", "dataset", "split"))
    return tuple(
        row
        for row in all_rows()
        if (row.model, row.dataset, row.setting) == (model, dataset, setting) and split in row.splits
    )


def published_tables(rows: Sequence[PublishedRow], result: RetrievalResult, further: Further) -> tuple[Table, ...]:
    """One table for each kind of re-scoring that was published, this run's numbers of that kind first.

    Args:
        rows: see `published_rows`.
        result: of this run, without re-scoring.
        further: what else the run found.
    """
    kinds = sorted({row.rescoring for row in rows}, key=lambda kind: kind != "none")
    return tuple(_table(kind, [row for row in rows if row.rescoring == kind], result, further) for kind in kinds)


def _table(kind: str, rows: Sequence[PublishedRow], result: RetrievalResult, further: Further) -> Table:
    first, ours = rows[0], _ours(kind, result, further)
    lines: list[tuple[str, ...]] = []
    for side, words in DIRECTIONS.items():
        lines += [(f"{words}: {name}", *_cells(sides[side])) for name, sides in ours.items() if side in sides]
        theirs = [(f"{row.source} ({row.variant})", getattr(row, side)) for row in rows]
        lines += [(f"{words}: {name}", *_cells(metrics)) for name, metrics in theirs if metrics]
    how = "without re-scoring" if kind == "none" else f"with {kind} (transductive: uses all test queries)"
    title = f"published: {first.model} {first.setting}, {first.dataset}/{first.splits[0]}, {first.videos} videos, {how}"
    columns = ("", *(METRIC_TITLES.get(key, key) for key in METRICS))
    return Table(title, columns, tuple(lines), tuple(_notes(kind, rows, result, further)))


def _ours(kind: str, result: RetrievalResult, further: Further) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """Name -> direction -> metrics of this run: ours, and by the published code's rules where the run has them."""
    rescored = further.rescored
    if kind == "none":
        found: dict[str, Mapping[str, Mapping[str, float]]] = {"this run": {"t2v": result.t2v, "v2t": result.v2t}}
        label = "plain"
    elif rescored is not None and rescored.name == RESCORED[kind]:
        found = {"this run": {side: rescored.metrics(side) or {} for side in rescored.sides}}
        label = rescored.label
    else:
        return {}
    if further.published is not None:
        renamed = {"MedianR": "MdR", "MeanR": "MnR"}
        found["this run, published rules"] = {
            side: {renamed.get(key, key): value for key, value in metrics.items()}
            for side, metrics in further.published[label].items()
        }
    return found


def _notes(kind: str, rows: Sequence[PublishedRow], result: RetrievalResult, further: Further) -> list[str]:
    """What keeps the numbers from being compared."""
    notes = []
    if not _ours(kind, result, further):
        notes.append(f"add rescoring={RESCORED[kind]} for the numbers of this run with {kind}")
    videos = {row.videos for row in rows}
    if videos != {len(result.video_ids)}:
        listed = " or ".join(map(str, sorted(videos)))
        notes.append(f"this run ranks {len(result.video_ids)} videos, not {listed}: its numbers do not compare")
    if result.v2t_protocol == "captions" and any(row.v2t_protocol == "groups" for row in rows):
        notes.append("published video to text ranks groups of captions, this run all captions, which is harder")
        if further.published is None:
            notes[-1] += "; add compatibility=clip4clip for the published rules"
    return notes


def _cells(metrics: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(number(metrics[key]) if key in metrics else "" for key in METRICS)
