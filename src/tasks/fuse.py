"""task=compare fuse=[runA,runB]: several runs as one, by a weighted sum of their scores (late fusion).

Each run has saved the scores of its test and of its validation part (`save_similarity=true`, by task=fit or
task=evaluate). The weights, and the mean and standard deviation by which each run's scores are standardised, are
learnt on the validation part; the test part is only ranked. Rows and columns are matched by what they are, so the order
of the files does not matter.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from omegaconf import DictConfig

from src.errors import UserError
from src.metrics.fusion import Scale, fused_score, learn_weights
from src.metrics.order import better
from src.metrics.ranks import ScoreFn
from src.metrics.retrieval import RetrievalResult, Ties, evaluate_matrix
from src.reports.compare import COLUMNS, ComparisonTable, Run, read_run
from src.reports.protocol import full_protocol, protocol_line
from src.reports.report import ReportFacts, VideoFacts, write_report
from src.reports.table import METRIC_TITLES, Table
from src.tasks.score_bank import read_matrix

PREFIXES = {"val": "val_", "test": ""}
MAY_DIFFER = {"selection", "windows", "without_ocr", "ties"}  # of the runs; what is ranked stays the same
DEFAULT_TIES = "optimistic"  # of conf/config.yaml
AGAIN = "write it by task=evaluate ckpt_path=… save_similarity=true with the run's own settings"

Part = Literal["val", "test"]
Row = tuple[str, str, str]  # caption's name, its video, its text


@dataclass(frozen=True)
class Saved:
    """The scores of one run on one part.

    Attributes:
        matrix: rows captions, columns videos.
        rows: one key per row that is a query.
        kept: number of each of these rows in the matrix.
        videos: one per column.
    """

    matrix: np.ndarray
    rows: tuple[Row, ...]
    kept: np.ndarray
    videos: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path, part: Part) -> Saved:
        """Captions whose video has no column are no queries, as in the evaluation of the run.

        Raises:
            UserError: a file is missing, or they do not belong together.
        """
        prefix = PREFIXES[part]
        paths = [folder / f"{prefix}{name}" for name in ("similarity.npy", "captions.tsv", "videos.txt")]
        for path in paths:
            if not path.is_file():
                hint = " (a split without val part has none)" if part == "val" else ""
                raise UserError(f"fuse: {folder} has no {path.name}{hint}, expected the scores of its {part}; {AGAIN}")
        matrix = read_matrix(paths[0])
        rows = [_row(line, paths[1]) for line in _lines(paths[1])]
        videos = _lines(paths[2])
        if matrix.shape != (len(rows), len(videos)):
            raise UserError(
                f"fuse: {paths[0]} is {matrix.shape[0]} x {matrix.shape[1]}, its lists name {len(rows)} captions and "
                f"{len(videos)} videos, expected as many; {AGAIN}"
            )
        known = set(videos)
        kept = np.array([number for number, row in enumerate(rows) if row[1] in known], dtype=np.int64)
        return cls(matrix, tuple(rows[n] for n in kept), kept, tuple(videos))

    def like(self, other: Saved) -> np.ndarray:
        """The scores with the rows and columns of `other`, which has the same ones."""
        row = dict(zip(_numbered(self.rows), self.kept, strict=True))
        column = {video: number for number, video in enumerate(self.videos)}
        rows = np.array([row[key] for key in _numbered(other.rows)])
        columns = np.array([column[video] for video in other.videos])
        if np.array_equal(rows, np.arange(len(self.matrix))) and np.array_equal(columns, np.arange(len(self.videos))):
            return self.matrix
        return np.asarray(self.matrix[rows])[:, columns]


@dataclass(frozen=True)
class Aligned:
    """The scores of all runs on one part, rows and columns in one order."""

    matrices: tuple[np.ndarray, ...]
    rows: tuple[Row, ...]
    videos: tuple[str, ...]

    @cached_property
    def owners(self) -> torch.Tensor:
        """Column of the video of each caption."""
        column = {video: number for number, video in enumerate(self.videos)}
        return torch.tensor([column[row[1]] for row in self.rows])

    def result(self, score: ScoreFn | np.ndarray, ties: Ties, topk: int = 10) -> RetrievalResult:
        return evaluate_matrix(score, self.owners, len(self.videos), ties=ties, topk=topk)


def run(cfg: DictConfig) -> None:
    """Learn the weights, rank the test, print one table of all runs and their fusion, write the report.

    Raises:
        UserError: the runs cannot be fused; says why.
    """
    folders = [_folder(str(name)) for name in cfg.task.fuse]
    if len(folders) < 2 or len(set(folders)) < len(folders):
        raise UserError(f"fuse: found {len(folders)} runs, expected at least two different ones: fuse=[RUN,RUN]")
    runs = [read_run(folder) for folder in folders]
    objective = str(cfg.task.objective)
    _check_protocols(runs)
    cfg.ties = _ties(runs, cfg.ties)
    val, test = _aligned(runs, "val"), _aligned(runs, "test")
    if shared := len(set(val.rows) & set(test.rows)):
        raise UserError(
            f"fuse: {shared} captions are in the validation and in the test part, expected none: the weights would be "
            "learnt on the test; choose runs of a split with a validation part of its own"
        )
    names = _names(runs)
    scales = [Scale.of(matrix, f"{name}: val_similarity.npy") for matrix, name in zip(val.matrices, names, strict=True)]

    def value(weights: tuple[float, ...]) -> float:
        return _value(val.result(fused_score(val.matrices, scales, weights), cfg.ties, topk=1), objective)

    weights, _ = learn_weights(value, len(runs))
    fused = {part.rows: part.result(fused_score(part.matrices, scales, weights), cfg.ties) for part in (val, test)}
    found = _Fusion(runs, names, weights, objective)
    _report(cfg, found, (val, test), (fused[val.rows], fused[test.rows]))


def _ties(runs: Sequence[Run], chosen: str) -> str:
    """The rule by which all runs ranked, so that their rows are their own numbers, unless another one is chosen."""
    rules = {run.metrics["protocol"].get("ties") for run in runs}
    common = rules.pop() if len(rules) == 1 else None
    return str(common) if chosen == DEFAULT_TIES and common in get_args(Ties) else chosen


@dataclass(frozen=True)
class _Fusion:
    runs: Sequence[Run]
    names: Sequence[str]
    weights: tuple[float, ...]
    objective: str

    @property
    def words(self) -> str:
        """For the protocol line."""
        mixed = " + ".join(f"{weight:.2f} {name}" for weight, name in zip(self.weights, self.names, strict=True))
        return f"{mixed} (standardised; weights learnt on val for {self.objective})"

    def protocol(self) -> dict[str, object]:
        known = [run.metrics["protocol"] for run in self.runs]
        kept = {key: value for key, value in known[0].items() if all(other.get(key) == value for other in known)}
        selections = sorted({str(one.get("selection")) for one in known})
        own: dict[str, object] = {"model": "fusion", "checkpoint": None, "seed": None}
        return {**kept, **own, "selection": "+".join(selections), "fusion": self.words}

    def details(self, val: RetrievalResult) -> dict[str, Any]:
        """For metrics.json."""
        rows = zip(self.names, self.runs, self.weights, strict=True)
        return {
            "fusion": {
                "runs": [{"name": name, "folder": str(one.folder), "weight": weight} for name, one, weight in rows],
                "objective": self.objective,
                "learnt_on": "val",
                "val": val.to_json(),
            }
        }


def _report(
    cfg: DictConfig, found: _Fusion, parts: tuple[Aligned, Aligned], fused: tuple[RetrievalResult, RetrievalResult]
) -> None:
    """Print and write the tables, metrics.json, ranks.csv and the page."""
    run_dir, test = Path(cfg.paths.run_dir), parts[1]
    protocol = found.protocol()
    singles = [[part.result(matrix, cfg.ties) for matrix in part.matrices] for part in parts]
    line = protocol_line(full_protocol(fused[1], protocol))
    tables = (
        _table(found, (*singles[1], fused[1]), line),
        _table(found, (*singles[0], fused[0]), "validation part, on which the weights were learnt"),
    )
    facts = ReportFacts(
        protocol=protocol,
        captions={number: row[2] or row[0] for number, row in enumerate(test.rows)},
        videos={number: VideoFacts(name) for number, name in enumerate(test.videos)},
        details=found.details(fused[0]),
        tables=tables,
    )
    page = write_report(run_dir, fused[1], facts)
    comparison = ComparisonTable(tables)
    comparison.print()
    for path in (*comparison.write(run_dir), page):
        sys.stdout.write(f"{path}\n")


def _table(found: _Fusion, results: Sequence[RetrievalResult], title: str) -> Table:
    headings = [f"{side} {METRIC_TITLES.get(key, key)}" for side, key in COLUMNS]
    values = [[*(getattr(result, side)[key] for side, key in COLUMNS), result.sum_r] for result in results]
    weights = [*(f"{weight:.2f}" for weight in found.weights), ""]
    names = [*found.names, "fusion"]
    rows = [
        (name, weight, *(f"{number:.1f}" for number in row))
        for name, weight, row in zip(names, weights, values, strict=True)
    ]
    keys = [*(key for _, key in COLUMNS), "SumR"]
    best = set()
    for column, key in enumerate(keys):
        numbers = [row[column] for row in values]
        goal = min(numbers) if better(key) == "min" else max(numbers)
        best |= {(number, column + 2) for number, found_ in enumerate(numbers) if found_ == goal}
    return Table(title, ("run", "weight", *headings, "SumR"), tuple(rows), best=frozenset(best))


def _value(result: RetrievalResult, objective: str) -> float:
    """What the weights maximise."""
    numbers = {"SumR": result.sum_r, "SumAP": result.sum_ap}
    numbers |= {f"{side}/{key}": number for side in ("t2v", "v2t") for key, number in getattr(result, side).items()}
    if objective not in numbers:
        raise UserError(f"task.objective={objective}, expected one of {', '.join(numbers)}")
    return -numbers[objective] if better(objective) == "min" else numbers[objective]


def _check_protocols(runs: Sequence[Run]) -> None:
    """Refuse runs whose tests are not the same one."""
    for run in runs:
        if run.by_topics:
            raise UserError(
                f"fuse: {run.folder} was searched by topics, expected runs that rank captions; leave it out"
            )
    first = {key: value for key, value in runs[0].protocol.items() if key not in MAY_DIFFER}
    for run in runs[1:]:
        other = {key: value for key, value in run.protocol.items() if key not in MAY_DIFFER}
        wrong = [key for key in {**first, **other} if first.get(key) != other.get(key)]
        if wrong:
            named = ", ".join(f"{key} {first.get(key)} and {other.get(key)}" for key in wrong)
            raise UserError(
                f"fuse: {runs[0].folder} and {run.folder} were tested under different protocols (found {named}), "
                "expected the same; fuse runs of one data set, split and set of captions"
            )


def _aligned(runs: Sequence[Run], part: Part) -> Aligned:
    """The scores of a part, of all runs in the order of the first.

    Raises:
        UserError: the runs have other captions or videos.
    """
    saved = [Saved.read(run.folder, part) for run in runs]
    first = saved[0]
    for run, other in zip(runs[1:], saved[1:], strict=True):
        pair = f"{runs[0].folder} and {run.folder}"
        _same(first.videos, other.videos, f"{pair}: the videos of {part}")
        _same(_numbered(first.rows), _numbered(other.rows), f"{pair}: the captions of {part}")
    if not first.rows:
        raise UserError(f"fuse: {runs[0].folder} has no captions in its {part} part, expected some; {AGAIN}")
    plain = [first.matrix[first.kept] if len(first.kept) < len(first.matrix) else first.matrix]
    return Aligned((*plain, *(other.like(first) for other in saved[1:])), first.rows, first.videos)


def _same(first: Sequence[Any], second: Sequence[Any], what: str) -> None:
    left, right = set(first), set(second)
    if left != right:
        example = min(left ^ right)
        shown = example if isinstance(example, str) else f"{example[0][2]!r} of {example[0][1]}"
        owner = "first" if example in left else "second"
        raise UserError(
            f"fuse: {what} are not the same (found {len(left - right)} only in the first run, {len(right - left)} only "
            f"in the second; {shown} only in the {owner}), expected equal ones; evaluate both on one split"
        )


def _numbered(rows: Sequence[Row]) -> list[tuple[Row, int]]:
    """Captions that are the same in all respects are told apart by their order."""
    seen: Counter[Row] = Counter()
    found = []
    for row in rows:
        found.append((row, seen[row]))
        seen[row] += 1
    return found


def _names(runs: Sequence[Run]) -> list[str]:
    """The model, and the folder where models are the same."""
    models = [str(run.metrics["protocol"].get("model") or run.folder.name) for run in runs]
    if len(set(models)) == len(models):
        return models
    places = [run.folder.name for run in runs]
    if len(set(places)) < len(places):
        places = [f"{run.folder.parent.name}/{run.folder.name}" for run in runs]
    named = [f"{model} {place}" for model, place in zip(models, places, strict=True)]
    return named if len(set(named)) == len(named) else [f"{n}: {name}" for n, name in enumerate(named, 1)]


def _folder(name: str) -> Path:
    folder = Path(name)
    if not (folder / "metrics.json").is_file():
        raise UserError(f"fuse: {name} holds no metrics.json, expected the folder of one finished run; check the path")
    return folder.resolve()


def _row(line: str, path: Path) -> Row:
    caption, _, rest = line.partition("\t")
    video, tab, text = rest.partition("\t")
    if not tab:
        raise UserError(f"fuse: {path} has the line {line!r}, expected caption<TAB>video<TAB>text; {AGAIN}")
    return caption, video, text


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"fuse: {path} cannot be read ({error}), expected UTF-8; {AGAIN}") from None
