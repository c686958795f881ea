"""Tables over run folders: seeds become mean (std), protocols are never mixed, two runs get a paired bootstrap."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from src.errors import UserError
from src.reports.protocol import protocol_line
from src.reports.table import METRIC_TITLES, Table

COLUMNS = tuple((side, key) for side in ("t2v", "v2t") for key in ("R1", "R5", "R10", "R50", "MdR", "MnR", "GeoMean"))
POPULATION = {"GeoMean"}  # last word of a heading: published with the standard deviation of the population
TOPIC_COLUMNS = ("infAP", "infNDCG")  # of each edition of a search by topics
LOWER_IS_BETTER = {"MdR", "MnR"}  # last word of a heading
# Runs that differ in nothing else are seeds of one configuration.
NOT_THE_METHOD = {"seed", "paths", "tags", "logger", "callbacks", "save_similarity", "optimized_metric"} | {
    *("rescoring", "compatibility"),  # what a test says besides its plain numbers
}
OF_THE_RUN = {"hub_videos", "changed_captions", "row_error"}  # settings of a re-scoring that seeds differ in
NOT_THE_PROTOCOL = {"model", "checkpoint", "seed", "search", "caption_mask", "without_ocr"}


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: where it is.
        metrics: the content of metrics.json.
        config: dotted key -> value, without what does not define the method; empty when the run left no configuration.
        overrides: what was typed, key -> value, without what does not define the method; empty when nobody knows.
        is_rescored: these are the re-scored numbers of the run; its ranks.csv holds the plain ranks.
    """

    folder: Path
    metrics: Mapping[str, Any]
    config: Mapping[str, str]
    overrides: Mapping[str, str] = field(default_factory=dict)
    is_rescored: bool = False

    @property
    def seed(self) -> object:
        return self.metrics["protocol"].get("seed")

    @property
    def protocol(self) -> dict[str, object]:
        """What has to be equal before two numbers may stand in one table."""
        return {key: value for key, value in self.metrics["protocol"].items() if key not in NOT_THE_PROTOCOL}

    @property
    def scores(self) -> dict[str, float]:
        """Heading -> value in percent or ranks, of both directions or of each edition that is searched by topics."""
        if self.by_topics:
            editions = self.metrics["topics"].items()
            return {f"{name} {key}": 100 * found["all"][key] for name, found in editions for key in TOPIC_COLUMNS}
        columns = [(side, key) for side, key in COLUMNS if self.metrics[side] is not None]
        found = {f"{side} {METRIC_TITLES.get(key, key)}": self.metrics[side][key] for side, key in columns}
        return found | ({"SumR": self.metrics["SumR"]} if "SumR" in self.metrics else {})

    @property
    def rescored(self) -> Run | None:
        """The run's re-scored numbers as a run with a protocol of its own; None where there are none."""
        found = self.metrics.get("rescored")
        if found is None:
            return None
        settings = [(key, value) for key, value in found["settings"].items() if key not in OF_THE_RUN]
        words = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in settings
        )
        protocol = {**self.metrics["protocol"], "rescoring": f"{found['label']}: {words}"}
        numbers = {key: found[key] for key in ("t2v", "v2t", "SumR") if key in found}
        kept = {key: self.metrics[key] for key in ("parameters",) if key in self.metrics}
        return replace(self, metrics={"protocol": protocol, **numbers, **kept}, is_rescored=True)

    @property
    def by_topics(self) -> bool:
        """Whether its test was an ad-hoc search."""
        return "topics" in self.metrics

    @property
    def method(self) -> str:
        """Equal for runs that differ only in their seed."""
        model = {key: self.metrics["protocol"].get(key) for key in ("model", "checkpoint", "caption_mask")}
        return json.dumps([dict(self.config) or model, model["model"]], sort_keys=True)


@dataclass(frozen=True)
class ComparisonTable:
    """One table per protocol."""

    tables: tuple[Table, ...]

    def print(self) -> None:
        """Write all tables to stdout."""
        for table in self.tables:
            table.print()

    def write(self, folder: Path) -> list[Path]:
        """Write comparison.md, comparison.tex and comparison.csv, and return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for suffix, text in (("md", Table.markdown), ("tex", Table.latex), ("csv", _csv)):
            path = folder / f"comparison.{suffix}"
            path.write_text("\n".join(map(text, self.tables)), encoding="utf-8")
            written.append(path)
        return written


def _csv(table: Table) -> str:
    return f"# {table.title}\n" + table.csv()


def compare_runs(run_dirs: Sequence[Path]) -> ComparisonTable:
    """Read runs and put them into tables, of a benchmark with skills two.

    Runs with equal configurations except for the seed share a row: mean and sample standard deviation. Runs
    whose protocol differs (data set, split, gallery, captions, re-scoring, selection, tie rule) get tables of
    their own, and so do re-scored numbers: one for each method and its settings, whose title names them. When a table
    of plain numbers has exactly two rows of one run each, a paired bootstrap says whether they differ.

    Raises:
        UserError: a folder holds no readable metrics.json.
    """
    runs = [read_run(folder) for folder in run_dirs]
    if not runs:
        raise UserError("found no run to compare, expected run folders with metrics.json; give runs=[FOLDER,FOLDER]")
    rescored = [run.rescored for run in runs]
    protocols: dict[str, list[Run]] = {}
    for run in [*_once(runs), *(run for run in rescored if run is not None)]:
        protocols.setdefault(json.dumps(run.protocol, sort_keys=True, default=str), []).append(run)
    several = f"{len(protocols)} protocols: compare numbers within one table only" if len(protocols) > 1 else ""
    tables = [table for group in protocols.values() for table in (_table(group, several), _skills_table(group))]
    return ComparisonTable(tuple(table for table in tables if table is not None))


def _once(runs: Sequence[Run]) -> list[Run]:
    """Runs that differ in their re-scoring only have the same plain numbers: the first of them counts."""
    keys = [json.dumps([run.method, run.protocol, run.seed, run.scores], sort_keys=True, default=str) for run in runs]
    seen = {key for key, run in zip(keys, runs, strict=True) if "rescored" not in run.metrics}
    kept = []
    for key, run in zip(keys, runs, strict=True):
        if "rescored" not in run.metrics or key not in seen:
            kept.append(run)
        seen.add(key)
    return kept


def read_run(folder: Path) -> Run:
    """Read metrics.json, and the configuration where there is one."""
    path = folder / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        topics = [found["all"] for found in metrics.get("topics", {}).values()]
        complete = isinstance(metrics["protocol"], dict) and (
            all(key in row for row in topics for key in TOPIC_COLUMNS)
            if "topics" in metrics
            else all(key in metrics[side] for side, key in COLUMNS)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: no usable metrics.json ({error}), expected the folder of a finished run") from None
    if not complete:
        wanted = ", ".join(f"{side}/{key}" for side, key in COLUMNS)
        raise UserError(f"{path}: metrics are missing, expected {wanted}, or {', '.join(TOPIC_COLUMNS)} of topics")
    written = [path for path in (folder / "config.yaml", folder / ".hydra" / "config.yaml") if path.is_file()]
    values = yaml.safe_load(written[0].read_text(encoding="utf-8")) if written else {}
    own = str((values.get("paths") or {}).get("run_dir") or folder)  # some settings name the run's own folder
    kept = {key: value for key, value in values.items() if key not in NOT_THE_METHOD}
    return Run(folder, metrics, {key: value.replace(own, "RUN") for key, value in _flat(kept)}, _overrides(folder))


def _overrides(folder: Path) -> dict[str, str]:
    """What was typed for a job of a multirun, or a single run, as Hydra keeps it."""
    path = folder / ".hydra" / "overrides.yaml"
    words = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else []
    pairs = [str(word).lstrip("+").partition("=") for word in words or []]
    named = [(key.replace("/", "."), value) for key, _, value in pairs]  # model/head=… is typed model.head=…
    return {key: value for key, value in named if key.split(".")[0] not in {*NOT_THE_METHOD, "hydra"}}


def _flat(value: object, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _flat(item, f"{path}.{key}" if path else str(key))]
    return [(path, json.dumps(value, default=str).strip('"'))]


def _table(runs: Sequence[Run], note: str) -> Table:
    groups = _by_method(runs)
    headings = list(runs[0].scores)
    first, names = _names(groups)
    counted = any(run.metrics.get("parameters") is not None for run in runs)
    cells, means = [], []
    for name, group in zip(names, groups, strict=True):
        values = list(zip(*(run.scores.values() for run in group), strict=True))
        means.append([float(np.mean(column)) for column in values])
        spread = [mean_std(column, _ddof(heading)) for heading, column in zip(headings, values, strict=True)]
        cells.append((name, *([_parameters(group[0])] if counted else []), *spread, _seeds(group)))
    notes = [note] if note else []
    if any(len(group) > 1 for group in groups):
        of_population = "; GeoMean: of the population, as published" if not runs[0].by_topics else ""
        notes.append(f"mean (sample standard deviation) over seeds{of_population}")
    if len(groups) == 2 and len(runs) == 2 and not runs[0].by_topics and not runs[0].is_rescored:
        notes += bootstrap_notes(runs[0], runs[1], names)
    if runs[0].by_topics:
        notes.append("in percent")
    columns = (first, *(["Params"] if counted else []), *headings, "seeds")
    best = _best(np.array(means), headings, first=1 + counted)
    return Table(protocol_line(runs[0].protocol), columns, tuple(cells), tuple(notes), best)


def _skills_table(runs: Sequence[Run]) -> Table | None:
    """Pair accuracy of each skill, for benchmarks that have skills."""
    if not all(run.metrics.get("skills") for run in runs):
        return None
    groups = _by_method(runs)
    first, names = _names(groups)
    skills = [skill for skill, row in runs[0].metrics["skills"].items() if "pair_accuracy" in row]
    values = [
        [[run.metrics["skills"][skill]["pair_accuracy"] for run in group] for skill in skills] for group in groups
    ]
    cells = tuple((name, *map(mean_std, row)) for name, row in zip(names, values, strict=True))
    means = np.array([[np.mean(column) for column in row] for row in values])
    title = "pair accuracy of each skill in percent, chance is 50"
    return Table(title, (first, *skills), cells, best=_best(means, skills, first=1))


def _by_method(runs: Sequence[Run]) -> list[list[Run]]:
    """The seeds of each configuration."""
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    return list(methods.values())


def _best(means: np.ndarray, headings: Sequence[str], first: int) -> frozenset[tuple[int, int]]:
    """Cells with the best mean of each column, from column `first` on, if there is anything to be better than."""
    if len(means) < 2:
        return frozenset()
    marked = set()
    for c, heading in enumerate(headings):
        best = means[:, c].min() if heading.split()[-1] in LOWER_IS_BETTER else means[:, c].max()
        marked |= {(int(r), c + first) for r in np.flatnonzero(means[:, c] == best)}
    return frozenset(marked)


def _names(groups: Sequence[Sequence[Run]]) -> tuple[str, list[str]]:
    """Heading of the first column, and the name of each row: what was typed differently where that is known."""
    firsts = [group[0] for group in groups]
    typed = [key for key in firsts[0].overrides if len({run.overrides.get(key) for run in firsts}) > 1]
    typed += sorted({key for run in firsts for key in run.overrides} - set(firsts[0].overrides))
    if typed:
        alone = len(typed) == 1
        settings = [[(k, run.overrides[k]) for k in typed if k in run.overrides] for run in firsts]
        names = [" ".join(v if alone else f"{k}={v}" for k, v in pairs) or "default" for pairs in settings]
        if len(set(names)) == len(names):
            return (typed[0] if alone else "run"), names
    return "run", _names_by_configuration(firsts)


def _names_by_configuration(firsts: Sequence[Run]) -> list[str]:
    """The model, and every setting in which the rows differ (the model's own settings only within one model)."""
    models = [str(run.metrics["protocol"].get("model") or run.folder.name) for run in firsts]
    names = []
    for run, model in zip(firsts, models, strict=True):
        kin = [other for other, its in zip(firsts, models, strict=True) if its == model]
        keys = _varying(kin) | {key for key in _varying(firsts) if not key.startswith("model.")}
        settings = [f"{key}={run.config.get(key, 'absent')}" for key in sorted(keys)]
        names.append(" ".join([model, *settings]))
    if len(set(names)) < len(names):  # runs without config.yaml
        names = [f"{name} ({run.folder.name})" for name, run in zip(names, firsts, strict=True)]
    return names


def _varying(runs: Sequence[Run]) -> set[str]:
    keys = {key for run in runs for key in run.config}
    return {key for key in keys if len({run.config.get(key) for run in runs}) > 1}


def _seeds(group: Sequence[Run]) -> str:
    seeds = [str(run.seed) for run in group if run.seed is not None]
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    return ",".join(sorted(seeds, key=lambda s: (len(s), s))) + (" (repeated)" if twice else "")


def mean_std(values: Sequence[float], ddof: int = 1) -> str:
    """`mean (standard deviation)` with one decimal; of a single value only that."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ({np.std(values, ddof=ddof):.1f})"


def _ddof(heading: str) -> int:
    return 0 if heading.split()[-1] in POPULATION else 1


def _parameters(run: Run) -> str:
    """Trained parameters as the published tables have them: 183.45M."""
    count = run.metrics.get("parameters")
    if count is None:
        return ""
    power = next((p for p in (3, 2, 1) if count >= 1000**p), 0)
    return f"{count / 1000**power:.2f}{' kMB'[power]}" if power else str(count)


def read_ranks(folder: Path, direction: str) -> dict[str, tuple[str, float]]:
    """query id -> (id of the video it belongs to, rank), from ranks.csv."""
    path = folder / "ranks.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["direction"] == direction]
        video = "true_id" if direction == "t2v" else "query_id"
        return {row["query_id"]: (row[video], float(row["rank"])) for row in rows}
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: cannot read ranks ({error}), expected the ranks.csv of a finished run") from None


@dataclass(frozen=True)
class Difference:
    """B minus A of one metric in percent points, its 95 % interval, and a two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    ranks_a: Mapping[str, tuple[str, float]],
    ranks_b: Mapping[str, tuple[str, float]],
    k: int = 1,
    samples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Does recall at k differ between two runs on the same queries?

    Whole videos are drawn with replacement, each with all its captions, because the captions of one video are
    not independent.

    Args:
        ranks_a: query id -> (video id, rank) of the first run, see `read_ranks`.
        ranks_b: the same of the second run.
        k: recall at k.
        samples: bootstrap samples.
        seed: of the sampling.

    Raises:
        UserError: the runs did not answer the same queries.
    """
    if {q: v for q, (v, _) in ranks_a.items()} != {q: v for q, (v, _) in ranks_b.items()} or not ranks_a:
        raise UserError(
            f"paired bootstrap: found {len(ranks_a)} and {len(ranks_b)} queries that are not the same ones, "
            "expected two runs on one test part"
        )
    gain = np.array([float(ranks_b[q][1] <= k) - float(rank <= k) for q, (_, rank) in ranks_a.items()])
    _, cluster = np.unique([video for video, _ in ranks_a.values()], return_inverse=True)
    gains, sizes = np.bincount(cluster, gain), np.bincount(cluster)
    rng = np.random.default_rng(seed)
    differences = np.empty(samples)
    step = max(1, 4_000_000 // len(sizes))
    for start in range(0, samples, step):
        drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), min(step, samples - start))
        differences[start : start + step] = 100 * (drawn @ gains) / (drawn @ sizes)
    low, high = np.percentile(differences, [2.5, 97.5])
    tail = min(np.mean(differences <= 0), np.mean(differences >= 0))
    return Difference(100 * float(gain.mean()), float(low), float(high), min(1.0, 2 * float(tail)))


def bootstrap_notes(a: Run, b: Run, names: Sequence[str]) -> list[str]:
    """One line per direction; says so when the runs left no ranks or other queries."""
    notes = []
    for direction in ("t2v", "v2t"):
        try:
            found = paired_bootstrap(read_ranks(a.folder, direction), read_ranks(b.folder, direction))
        except UserError as error:
            notes.append(f"{direction} R@1: not compared: {error}")
            continue
        p = f"p = {found.p:.3f}" if not math.isclose(found.p, 0) else "p < 0.001"
        notes.append(
            f"{direction} R@1: {names[1]} minus {names[0]} = {found.value:+.1f} points, "
            f"95 % interval [{found.low:+.1f}, {found.high:+.1f}], {p} (paired bootstrap over videos)"
        )
    return notes
