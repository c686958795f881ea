"""Further tables of a result: re-scored numbers, and those of the published code, each under a label of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from src.metrics.legacy import Metrics, published_rules
from src.metrics.rescoring import Rescored
from src.metrics.result import RetrievalResult
from src.metrics.score_blocks import Scores
from src.reports.protocol import full_protocol, protocol_line
from src.reports.table import DIRECTIONS, METRIC_TITLES, METRICS, Table, number

PUBLISHED = ("R1", "R5", "R10", "MedianR", "MeanR")
PLAIN = "plain"
PUBLISHED_TITLES = {"R1": "R@1", "R5": "R@5", "R10": "R@10", "MedianR": "MdR", "MeanR": "MnR"}


@dataclass(frozen=True)
class Further:
    """What a test says besides its plain result.

    Attributes:
        rescored: the result after re-scoring; None = not re-scored.
        published: label ("plain", "DSL (transductive)") -> direction -> metrics by the published code's rules.
    """

    rescored: Rescored | None = None
    published: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None

    def tables(self, result: RetrievalResult, protocol: Mapping[str, object]) -> tuple[Table, ...]:
        """To print below the plain table."""
        known = full_protocol(result, protocol)
        found = []
        if self.rescored is not None:
            found.append(rescored_table(self.rescored, known))
        for label, sides in (self.published or {}).items():
            found.append(_published_table(label, sides, known))
        return tuple(found)

    def details(self) -> dict[str, object]:
        """Entries of metrics.json."""
        found: dict[str, object] = {}
        if self.rescored is not None:
            found["rescored"] = self.rescored.to_json()
        if self.published is not None:
            found["clip4clip"] = self.published
        return found


def rescored_table(rescored: Rescored, protocol: Mapping[str, object]) -> Table:
    """The re-scored directions."""
    rows = []
    for side in rescored.sides:
        metrics = rescored.metrics(side) or {}
        rows.append((DIRECTIONS[side], *(number(metrics[key]) for key in METRICS)))
    notes = [f"SumR {number(rescored.result.sum_r)}"] if len(rescored.sides) == 2 else []
    if rescored.transductive:
        notes.append("transductive: a rank depends on the other test queries; not comparable with plain numbers")
    return Table(
        protocol_line({**protocol, "rescoring": rescored.words}),
        (rescored.label, *(METRIC_TITLES.get(key, key) for key in METRICS)),
        tuple(rows),
        tuple(notes),
    )


def by_published_rules(scores: Scores, rescored: Rescored | None) -> dict[str, dict[str, dict[str, float]]]:
    """The numbers of CLIP4Clip's own evaluation, of the plain and of the re-scored matrix.

    Raises:
        UserError: a video has no caption.
    """
    owner = scores.video_of_caption[scores.rows_Q].numpy()
    to_video, to_text = published_rules(scores.dense(), owner)
    found = {PLAIN: {"t2v": _kept(to_video), "v2t": _kept(to_text)}}
    if rescored is not None:
        changes = {"t2v": rescored.new.t2v, "v2t": rescored.new.v2t}
        found[rescored.label] = {
            side: _kept(published_rules(scores.dense(change), owner)[side == "v2t"])
            for side, change in changes.items()
            if change is not None
        }
    return found


def _kept(metrics: Metrics) -> dict[str, float]:
    return {key: float(metrics[key]) for key in PUBLISHED}  # type: ignore[arg-type]


def _published_table(label: str, sides: Mapping[str, Mapping[str, float]], protocol: Mapping[str, object]) -> Table:
    rows = tuple((DIRECTIONS[side], *(number(metrics[key]) for key in PUBLISHED)) for side, metrics in sides.items())
    rescoring = "none" if label == PLAIN else label
    rules = "ties clip4clip: a tied query counts once for each item it ties with; groups of captions, lower median"
    title = protocol_line({**protocol, "rescoring": rescoring, "ties": None, "v2t": None})
    return Table(f"{title} | {rules}", (f"CLIP4Clip's evaluation, {label}", *PUBLISHED_TITLES.values()), rows)
