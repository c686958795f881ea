"""What a finished evaluation leaves in its run folder: metrics.json, ranks.csv, report/index.html."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from src.metrics.result import RetrievalResult
from src.reports.protocol import full_protocol

if TYPE_CHECKING:
    from src.reports.table import Table

RANK_COLUMNS = (
    "direction", "query_id", "query", "rank", "tied", "true_id", "true", "score", "top1_id", "top1", "top1_score",
)  # fmt: skip


class ProblemFacts(Protocol):
    """A video or caption that could not be used, or not all of it."""

    @property
    def video_id(self) -> str: ...
    @property
    def path(self) -> object: ...
    @property
    def reason(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def part(self) -> str: ...
    @property
    def kept(self) -> bool: ...


@dataclass(frozen=True)
class VideoFacts:
    """What a report shows of a video.

    Attributes:
        name: the data set's id.
        path: local file, which the page links to and plays; None = not linked.
        start_s, end_s: the segment of the file.
        tags: filterable facts, for example ("skill", "motion").
    """

    name: str
    path: Path | None = None
    start_s: float | None = None
    end_s: float | None = None
    tags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ReportFacts:
    """Everything about a run that the metrics do not know.

    Attributes:
        protocol: values for `src.reports.protocol.PROTOCOL_KEYS`; sizes and the tie rule are taken from the result.
        captions: caption id -> text.
        videos: video id -> facts.
        history: one row of logged values per epoch.
        problems: videos and captions that were excluded, of every part that the run used.
        skills: skill -> metrics, where the benchmark has skills.
        timing: phase -> seconds.
        thumbnail: video id -> JPEG bytes, or None where there is no picture.
        words: video id -> what was read in its picture, best first, or None where nothing could be looked up (no OCR
            file, or a damaged one); asked for the videos that the page shows. None = the model reads no words.
        details: more entries for metrics.json.
        tables: further tables of the same test, below the one of all metrics.
    """

    protocol: Mapping[str, object]
    captions: Mapping[int, str]
    videos: Mapping[int, VideoFacts]
    history: Sequence[Mapping[str, float]] = ()
    problems: Sequence[ProblemFacts] = ()
    skills: Mapping[str, Mapping[str, float]] | None = None
    timing: Mapping[str, float] = field(default_factory=dict)
    thumbnail: Callable[[int], bytes | None] | None = None
    words: Mapping[int, Sequence[str] | None] | None = None
    details: Mapping[str, object] = field(default_factory=dict)
    tables: Sequence[Table] = ()


def write_report(run_dir: Path, result: RetrievalResult, facts: ReportFacts) -> Path:
    """Write all three files and return the page's path."""
    from src.reports.html import render_page

    run_dir.mkdir(parents=True, exist_ok=True)
    protocol = full_protocol(result, facts.protocol)
    text = json.dumps(metrics_json(result, facts), indent=2, ensure_ascii=False, allow_nan=False)
    (run_dir / "metrics.json").write_text(text + "\n", encoding="utf-8")
    write_ranks(run_dir / "ranks.csv", result, facts)
    page = run_dir / "report" / "index.html"
    page.parent.mkdir(exist_ok=True)
    page.write_text(render_page(result, facts, protocol, page.parent), encoding="utf-8")
    return page


def metrics_json(result: RetrievalResult, facts: ReportFacts) -> dict[str, object]:
    """The content of metrics.json."""
    content: dict[str, object] = {"protocol": full_protocol(result, facts.protocol), **result.to_json()}
    if facts.skills:
        content["skills"] = {skill: dict(row) for skill, row in facts.skills.items()}
    content |= facts.details
    content["timing"] = dict(facts.timing)
    content["excluded"] = {
        "captions_of_unreadable_videos": len(result.excluded_captions),
        "videos_without_caption": len(result.video_ids) - len(result.v2t_ids),
        "by_part": excluded_counts(facts.problems),
    }
    kept = _counts([problem for problem in facts.problems if problem.kept])
    return content | ({"kept": {"by_part": kept}} if kept else {})


def excluded_counts(problems: Sequence[ProblemFacts]) -> dict[str, dict[str, int]]:
    """Part -> what was left out -> how many."""
    return _counts([problem for problem in problems if not problem.kept])


def _counts(problems: Sequence[ProblemFacts]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for problem in problems:
        of_part = counts.setdefault(problem.part or "unknown", {})
        of_part[problem.kind] = of_part.get(problem.kind, 0) + 1
    return counts


def rank_rows(result: RetrievalResult, facts: ReportFacts) -> list[tuple[object, ...]]:
    """One row per query, see RANK_COLUMNS; `true` of video to text is the video's best-scored caption."""
    text, name = facts.captions.get, video_names(facts)
    rows: list[tuple[object, ...]] = []
    columns = (result.caption_ids, result.caption_videos, result.t2v_tied.int(), result.own_scores)
    best = _firsts(result.t2v_topk)
    for (caption, video, tied, own), rank, (top, score) in zip(
        _rows(columns), rank_numbers(result.t2v_ranks), best, strict=True
    ):
        found = (rank, tied, video, name(video), own, top, name(top), score)
        rows.append(("t2v", caption, text(caption, ""), *found))
    best_own = best_own_captions(result)
    best = _firsts(result.v2t_topk)
    for (video, tied), rank, (top, score) in zip(
        _rows((result.v2t_ids, result.v2t_tied.int())), rank_numbers(result.v2t_ranks), best, strict=True
    ):
        caption, own = best_own[video]
        found = (rank, tied, caption, text(caption, ""), own, top, text(top, ""), score)
        rows.append(("v2t", video, name(video), *found))
    return rows


def _rows(columns: Sequence[torch.Tensor]) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.tolist() for column in columns), strict=True)


def _firsts(topk: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[int, float | str]]:
    """The best item of each query and its score; -1 and nothing where no item was kept."""
    return [(i[0], s[0]) if i else (-1, "") for i, s in zip(topk[0].tolist(), topk[1].tolist(), strict=True)]


def write_ranks(path: Path, result: RetrievalResult, facts: ReportFacts) -> None:
    """Write `rank_rows` as csv."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(RANK_COLUMNS)
        writer.writerows(rank_rows(result, facts))


def best_own_captions(result: RetrievalResult) -> dict[int, tuple[int, float]]:
    """Video id -> its best-scored caption and that score."""
    order = torch.argsort(result.own_scores, stable=True)
    columns = (result.caption_videos[order], result.caption_ids[order], result.own_scores[order])
    return {video: (caption, score) for video, caption, score in _rows(columns)}


def video_names(facts: ReportFacts) -> Callable[[int], str]:
    """Video id -> name; ids without facts keep their number."""

    def name(video: int) -> str:
        known = facts.videos.get(video)
        return known.name if known else "" if video < 0 else str(video)

    return name


def rank_numbers(ranks: torch.Tensor) -> list[int | float]:
    """Whole ranks without a decimal point (the average rule has halves)."""
    return [int(rank) if rank == int(rank) else rank for rank in ranks.tolist()]
