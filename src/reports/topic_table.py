"""Tables of searches by topics."""

from __future__ import annotations

from collections.abc import Mapping

from src.metrics.infap import SearchResult
from src.reports.table import Table, number

COLUMNS = ("infAP", "infNDCG", "iP10", "iP100", "iP1000", "inum_rel_ret", "inum_rel")
NOT_JUDGED = "no judgements, run files only"


def editions_table(title: str, results: Mapping[str, SearchResult | None]) -> Table:
    """One row per edition; its cells stay empty where there are no judgements."""
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for name, result in results.items():
        if result is None:
            rows.append((name, *[""] * (1 + len(COLUMNS))))
            notes.append(f"{name}: {NOT_JUDGED}")
        else:
            rows.append((name, str(len(result.topics)), *cells(result.all)))
            notes += [f"{name}: {note}" for note in left_out(result)]
    return Table(title, ("", "topics", *COLUMNS), tuple(rows), tuple(notes))


def topics_table(title: str, result: SearchResult) -> Table:
    """One row per topic, and their means."""
    rows = [(name, *cells(row)) for name, row in [*result.topics.items(), ("all", result.all)]]
    return Table(title, ("topic", *COLUMNS), tuple(rows), tuple(left_out(result)))


def cells(row: Mapping[str, float]) -> tuple[str, ...]:
    """The values of `COLUMNS` as they are shown."""
    return tuple(number(row[key], 1 if key.startswith("inum") else 4) for key in COLUMNS)


def left_out(result: SearchResult) -> list[str]:
    """One line for each kind of topic that the means do not hold."""
    found = (("judged, but not in the run", result.not_searched), ("in the run, but not judged", result.not_judged))
    return [
        f"{len(topics)} topics {what} are left out of the means: {', '.join(topics)}"
        for what, topics in found
        if topics
    ]
