"""task=score: metrics and report from a saved similarity matrix, or of files of results.

`similarity=S.npy`: float16, float32 or float64, rows captions, columns videos; read from disk block by block.
`videos=FILE`: one video id per line, line i names column i.
`captions=FILE`: one line per row of the matrix, either the id of the video that the caption describes, or
`caption_id<TAB>video_id` or `caption_id<TAB>video_id<TAB>text`.
Without the two files the matrix is square and row i belongs to column i; one of task=export_submission has its lists
beside it, and is refused when it was changed since.
`task.query_mask=M.npy`: rows that are no captions; of shape (videos, captions) it replaces `captions=`.
`rescoring=…`: also re-scored. `task.querybank=B.npy`: scores of other captions with the same videos, the bank of the
methods that have one; `task.videobank=C.npy`: scores of the captions with other videos, for video to text. Without a
file the bank are the matrix's own captions (and videos), which is transductive.

`task.labels=FILE`: the rows are labels and a video has any number of them (`src.tasks.score_labels`).
`task.predictions=FILE`: a submission to the Video Pentathlon instead (`src.tasks.pentathlon`).
`run_file=RUN qrels=JUDGEMENTS`: a run of an ad-hoc video search instead (scores, .xml or .treceval).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from src.data.caption_files import read_judgements
from src.errors import UserError
from src.metrics.domains import domain_report
from src.metrics.infap import evaluate_run
from src.metrics.legacy import check_captions
from src.metrics.retrieval import MatrixScore, evaluate_matrix
from src.metrics.score_blocks import Scores
from src.reports.domains import domains_table
from src.reports.report import ReportFacts, VideoFacts, write_report
from src.reports.submission import recorded_lists
from src.reports.table import print_table
from src.reports.topic_page import SHOWN, edition_of, write_topic_page
from src.reports.topic_table import editions_table, topics_table
from src.reports.trecvid import perf_text, read_run, with_names_of
from src.tasks import pentathlon
from src.tasks.rescoring import further_results, is_asked
from src.tasks.score_bank import read_banks, read_matrix
from src.tasks.score_labels import score_labels


@dataclass(frozen=True)
class Labels:
    """What the rows and columns of a matrix are: the column of each row's own video, and names to show."""

    column_of_row: list[int]
    captions: list[str]
    videos: list[str]


def run(cfg: DictConfig) -> float | None:
    """Rank both directions, print the table, write the report.

    Returns:
        The metric that `optimized_metric` names; of a run file infAP.

    Raises:
        UserError: the matrix, the id lists, the run or the judgements cannot be used.
    """
    run_dir = Path(cfg.paths.run_dir)
    others = [key for key in ("run_file", "predictions", "labels") if cfg.task.get(key) is not None]
    if others and is_asked(cfg):
        raise UserError(f"task.{others[0]} has no captions to re-score; drop rescoring and compatibility")
    if cfg.task.run_file is not None:
        return score_run(Path(cfg.task.run_file), _path(cfg.task.qrels), run_dir)
    if cfg.task.get("predictions") is not None:
        return pentathlon.score(Path(cfg.task.predictions), run_dir)
    if cfg.similarity is None:
        raise UserError("task=score found no matrix, expected similarity=FILE.npy with rows captions, columns videos")
    path = Path(cfg.similarity)
    matrix = read_matrix(path)
    _take_recorded_lists(cfg, path, matrix)
    if cfg.task.get("labels") is not None:
        names = _names(cfg.captions, "captions", matrix.shape[0]), _names(cfg.videos, "videos", matrix.shape[1])
        order = bool(cfg.task.upstream_order)
        found = score_labels(matrix, names, Path(cfg.task.labels), run_dir, upstream_order=order)
        return found.metrics["GeoMean"]
    return score_matrix(cfg, path.stem, matrix)


def _take_recorded_lists(cfg: DictConfig, path: Path, matrix: np.ndarray) -> None:
    """Of a matrix that task=export_submission wrote, check that it is as written, and use the lists beside it."""
    lists = recorded_lists(path, matrix)
    if lists is not None and cfg.captions is None and cfg.videos is None and cfg.task.get("query_mask") is None:
        cfg.captions, cfg.videos = map(str, lists)


def score_matrix(cfg: DictConfig, name: str, matrix: np.ndarray, domains_V: Sequence[str | None] = ()) -> float | None:
    """Rank the captions and videos of a matrix, and return the metric that `optimized_metric` names.

    Args:
        cfg: the run's configuration.
        name: of the data set, for the report.
        matrix: rows captions, columns videos.
        domains_V: of the videos, where they have some.
    """
    started = time.perf_counter()
    mask = read_mask(matrix.shape, _path(cfg.task.get("query_mask")))
    labels = read_labels(matrix.shape, _path(cfg.captions), _path(cfg.videos), mask)
    owner, videos = torch.tensor(labels.column_of_row), len(labels.videos)
    kept = None if mask is None else torch.from_numpy(mask.ravel())
    scores = Scores(MatrixScore(matrix), owner, videos, kept)
    if cfg.compatibility != "none":
        check_captions(np.bincount(owner[scores.rows_Q].numpy(), minlength=videos))
    banks = read_banks(cfg, matrix.shape, scores.rows_Q)
    result = evaluate_matrix(matrix, owner, videos, mask=kept, ties=cfg.ties)
    further = further_results(cfg, scores, result, banks)
    protocol: dict[str, object] = {"dataset": name}
    domains = domain_report(result, domains_V) if any(domains_V) else {}
    facts = ReportFacts(
        protocol=protocol,
        captions=dict(enumerate(labels.captions)),
        videos={n: VideoFacts(name) for n, name in enumerate(labels.videos)},
        timing={"score_s": round(time.perf_counter() - started, 3)},
        details={**further.details(), **({"domains": domains} if domains else {})},
        tables=(*further.tables(result, protocol), *([domains_table(domains)] if domains else [])),
    )
    page = write_report(Path(cfg.paths.run_dir), result, facts)
    print_table(result, facts.protocol, further=facts.tables)
    sys.stdout.write(f"report: {page}\n")
    metric = cfg.optimized_metric
    if not metric:
        return None
    stage = metric.split("/")[0]
    more = further.rescored.scalars(stage) if further.rescored is not None else {}
    return {**result.scalars(stage), **more}.get(metric)


def score_run(run_file: Path, qrels: Path | None, run_dir: Path) -> float:
    """Print the measures of every topic, write metrics.json and perf.txt (as the official script prints it).

    Returns:
        Mean infAP.

    Raises:
        UserError: one of the files cannot be used.
    """
    if qrels is None:
        raise UserError(
            f"task=score run_file={run_file} has no judgements; give qrels=FILE, for example avs.qrels.tv18"
        )
    judgements = read_judgements(qrels, ())
    run = with_names_of(read_run(run_file), {line.topic for line in judgements})
    result = evaluate_run(run, judgements)
    title = f"{run_file.name} | {qrels.name}"
    topics_table(title, result).print()
    run_dir.mkdir(parents=True, exist_ok=True)
    protocol = {"dataset": qrels.name, "model": run_file.name, "judged_topics": {qrels.name: len(result.topics)}}
    content = {"protocol": protocol, "topics": {qrels.name: result.to_json()}}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (run_dir / "metrics.json").write_text(text + "\n", encoding="utf-8")
    (run_dir / "perf.txt").write_text(perf_text(result), encoding="utf-8")
    best = {
        topic: sorted(sorted(found, reverse=True), key=lambda pair: -pair[1])[:SHOWN] for topic, found in run.items()
    }
    edition = edition_of(qrels.name, {}, best, result, judgements)
    page = write_topic_page(run_dir, [edition], editions_table(title, {qrels.name: result}), protocol)
    sys.stdout.write(f"evaluation: {run_dir / 'perf.txt'}\nreport: {page}\n")
    return result.all["infAP"]


def read_mask(shape: tuple[int, ...], path: Path | None) -> np.ndarray | None:
    """bool (rows,), which rows of the matrix are captions; and whether the file has one row per video.

    Raises:
        UserError: it cannot be read, or does not fit the matrix.
    """
    if path is None:
        return None
    try:
        mask = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(
            f"task.query_mask: {path} is not a readable .npy file ({error}); write it with numpy.save"
        ) from None
    if not isinstance(mask, np.ndarray) or mask.size != shape[0] or mask.ndim > 2:
        found = getattr(mask, "shape", "an archive")
        raise UserError(
            f"task.query_mask: found {found} in {path}, expected {shape[0]} numbers, one per row of the matrix"
        )
    return mask != 0


def read_labels(
    shape: tuple[int, ...], captions: Path | None, videos: Path | None, mask: np.ndarray | None = None
) -> Labels:
    """Read the id lists, or number rows and columns where there are none.

    Args:
        shape: of the matrix.
        captions: list of its rows.
        videos: list of its columns.
        mask: see `read_mask`; one with a row per video stands for a missing list of captions.

    Raises:
        UserError: the lists do not fit the matrix or each other.
    """
    rows, columns = shape
    names = _lines(videos, "videos", columns, "columns") if videos else [str(n) for n in range(columns)]
    place = {name: n for n, name in enumerate(names)}
    if len(place) < columns:
        twice = next(name for n, name in enumerate(names) if place[name] != n)
        raise UserError(f"videos: {videos} names {twice!r} twice, expected one line per column of the matrix")
    if captions is None and mask is not None and mask.ndim == 2:
        return _labels_of_mask(mask, names)
    entries = [line.split("\t") for line in _lines(captions, "captions", rows, "rows")] if captions else None
    if entries is None or (videos is None and all(len(e) == 1 for e in entries) and _all_differ(entries)):
        if rows != columns:
            raise UserError(
                f"similarity: found {rows} rows and {columns} columns, expected as many rows as columns when no list "
                "says which video a row belongs to; give captions=FILE (video id of each row) and videos=FILE"
            )
        return Labels(
            list(range(rows)), [e[0] for e in entries] if entries else [f"row {n}" for n in range(rows)], names
        )
    if videos is None:
        raise UserError(
            "captions= names videos, but no list names the columns; give videos=FILE, one video id per line"
        )
    owners = [entry[1] if len(entry) > 1 else entry[0] for entry in entries]
    unknown = sorted(set(owners) - set(place))
    if unknown:
        raise UserError(
            f"captions: {captions} names {len(unknown)} videos that {videos} does not (first: {unknown[0]!r}), "
            "expected lines 'video_id' or 'caption_id<TAB>video_id<TAB>text'"
        )
    return Labels([place[owner] for owner in owners], ["\t".join(e[2:]) or e[0] for e in entries], names)


def _labels_of_mask(mask: np.ndarray, videos: list[str]) -> Labels:
    """Rows in the order of the videos, as many for each of them."""
    if len(mask) != len(videos):
        raise UserError(
            f"task.query_mask: found {len(mask)} rows, expected {len(videos)}, one per column of the matrix"
        )
    per_video = mask.shape[1]
    shown = [f"{name} #{n}" for name in videos for n in range(per_video)]
    return Labels([row // per_video for row in range(mask.size)], shown, videos)


def _lines(path: Path, key: str, expected: int, axis: str) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: cannot read {path} ({error}); expected a UTF-8 text file, one id per line") from None
    lines = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if len(lines) != expected:
        raise UserError(f"{key}: found {len(lines)} lines in {path}, expected {expected}, one for each of the {axis}")
    if "" in lines:
        raise UserError(f"{key}: line {lines.index('') + 1} of {path} is empty, expected an id")
    return lines


def _names(path: str | None, key: str, expected: int) -> list[str]:
    """Names of rows or columns, or their numbers where there is no list."""
    axis = "rows" if key == "captions" else "columns"
    return _lines(Path(path), key, expected, axis) if path is not None else [str(n) for n in range(expected)]


def _all_differ(entries: list[list[str]]) -> bool:
    return len({entry[0] for entry in entries}) == len(entries)


def _path(value: str | None) -> Path | None:
    return Path(value) if value is not None else None
