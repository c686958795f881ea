"""The report page of a search by topics: one file that works from disk, without scripts and without a network.

Topics and shot ids are data from outside: they reach the page through jinja2 with autoescape only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from src.metrics.infap import JudgementLine, SearchResult
from src.reports.html import MAX_TEXT, TEMPLATES
from src.reports.report import ProblemFacts
from src.reports.table import Table
from src.reports.topic_table import COLUMNS, NOT_JUDGED, cells, left_out

SHOWN = 10  # shots of a topic
JUDGED = {1: "relevant", 0: "not relevant", -1: "pooled, not judged"}
UNKNOWN = "not pooled"


@dataclass(frozen=True)
class Topic:
    """One row of the page.

    Attributes:
        id: topic number.
        text: what was asked; empty where it is not known.
        metrics: texts for `topic_table.COLUMNS`, empty without judgements.
        shots: (shot, its score, its judgement), best first.
    """

    id: str
    text: str
    metrics: tuple[str, ...]
    shots: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Edition:
    """The topics of one edition.

    Attributes:
        name: for example tv18.
        topics: in the order of the query file.
        means: as `Topic.metrics`; empty without judgements.
        notes: what was left out.
    """

    name: str
    topics: tuple[Topic, ...]
    means: tuple[str, ...]
    notes: tuple[str, ...]


def edition_of(
    name: str,
    texts: Mapping[str, str],
    best: Mapping[str, Sequence[tuple[str, object]]],
    result: SearchResult | None,
    judgements: Iterable[JudgementLine],
) -> Edition:
    """Put together what the page shows of an edition.

    Args:
        name: of the edition.
        texts: topic -> what was asked.
        best: topic -> (shot, score), best first; the first ones are shown.
        result: the evaluation, if there are judgements.
        judgements: lines of the qrels file.
    """
    relevance = {(line.topic, line.shot): line.relevance for line in judgements}
    topics = []
    for topic, found in best.items():
        row = result.topics.get(topic) if result is not None else None
        known = {shot: JUDGED.get(relevance.get((topic, shot), -2), UNKNOWN) for shot, _ in islice(found, SHOWN)}
        shots = tuple(
            (shot, f"{float(str(score)):.4g}", known[shot] if row else "") for shot, score in islice(found, SHOWN)
        )
        text = texts.get(topic, "")
        short = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text)} characters)"
        topics.append(Topic(topic, short, cells(row) if row else (), shots))
    means = cells(result.all) if result is not None else ()
    notes = (NOT_JUDGED,) if result is None else tuple(left_out(result))
    return Edition(name, tuple(topics), means, notes)


def write_topic_page(
    run_dir: Path,
    editions: Sequence[Edition],
    summary: Table,
    protocol: Mapping[str, object],
    problems: Sequence[ProblemFacts] = (),
) -> Path:
    """Write report/index.html of the run folder and return its path.

    Args:
        run_dir: the run.
        editions: their topics.
        summary: one row per edition.
        protocol: shown in full.
        problems: what was excluded.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template("topics.html").render(
        editions=editions,
        summary=summary,
        columns=COLUMNS,
        protocol=protocol,
        problems=problems,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
    )
    page = run_dir / "report" / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    return page
