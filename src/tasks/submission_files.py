"""The matrix that a competition asks for, from what a test encoded or from a matrix of scores.

It always has all captions and videos of the test part as its file lists them, whatever could be read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from omegaconf import DictConfig

from src.batch import InputSpec, TextEmbedding, VideoEmbedding
from src.data.splits import SplitPart
from src.errors import UserError
from src.models.base import RetrievalModule
from src.reports.submission import CAPTIONS, RECORD, VIDEOS, Order, write_matrix
from src.tasks.build import build_datamodule

BLOCK = 1024  # captions per call of the scorer


def whole_test(cfg: DictConfig) -> tuple[SplitPart, Order]:
    """The test part with all its videos, at hand or not, and the order of a submission.

    Raises:
        UserError: the data set is searched by topics, or its test part has no caption.
    """
    datamodule = build_datamodule(cfg, InputSpec(None))
    if datamodule.annotation.topics:
        raise UserError(
            f"task=export_submission is for captions, found that dataset={cfg.dataset.name} is searched by topics; "
            "task=evaluate writes the run files of TRECVID"
        )
    part = datamodule.part("test")
    lines = []
    for name, caption in zip(_names(part, range(len(part.captions))), part.captions, strict=True):
        lines.append(f"{name}\t{caption.video_id}\t{' '.join(caption.text.split())}")
    source = f"the test part of {cfg.dataset.name}, split {cfg.split.name}"
    return part, Order(tuple(lines), tuple(video.id for video in part.videos), source)


def file_order(cfg: DictConfig, order: Order) -> Order:
    """The order of the file that is handed in: that of the test part, or columns as `task.video_order` has them.

    Raises:
        UserError: the list cannot be read or names other videos.
    """
    if cfg.task.video_order is None:
        return order
    path = Path(cfg.task.video_order)
    videos = read_videos(path, "task.video_order")
    check_same(videos, order.videos, f"task.video_order: {path}", "videos")
    return Order(order.captions, tuple(videos), path.name)


def read_videos(path: Path, key: str) -> list[str]:
    """Video ids of a list: one per line, or the entries' `path` of an annotation in the layout of TextVR.

    Raises:
        UserError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".json":
            return [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
        return [str(PurePosixPath(entry["path"]).with_suffix("")) for entry in json.loads(text)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{key}: cannot read {path} ({error!r}), expected one video id per line, or the JSON list of TextVR"
        ) from None


def check_same(found: Sequence[str], expected: Sequence[str], name: str, what: str) -> None:
    """Refuse a list that is no permutation of another.

    Raises:
        UserError: says the first difference.
    """
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unknown or len(found) != len(expected):
        first = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is unknown" if unknown else "one is twice"
        raise UserError(
            f"{name} names {len(found)} {what}, of which {len(unknown)} are not among the {len(expected)} of the test "
            f"part and {len(missing)} of those are missing ({first}); give the list of the same test part"
        )


def write_embedded(
    cfg: DictConfig, part: SplitPart, embeddings: tuple[TextEmbedding, VideoEmbedding], model: RetrievalModule
) -> None:
    """Write the submission of an evaluation.

    Args:
        cfg: the run's configuration.
        part: what was evaluated.
        embeddings: of its captions and videos.
        model: scores them.

    Raises:
        UserError: captions or videos of the test part are missing, or the scores may not be submitted.
    """
    (text, video), (_, order) = embeddings, whole_test(cfg)
    row_of = {name: row for row, name in enumerate(_names(part, text.ids.tolist()))}
    column_of = {part.videos[i].id: column for column, i in enumerate(video.ids.tolist())}
    rows = [row_of.get(line.split("\t")[0], -1) for line in order.captions]
    columns = np.array([column_of.get(name, -1) for name in order.videos])
    lacking = _lacking(order, np.array(rows), columns, fill=bool(cfg.task.fill_unreadable))
    score = model.scorer(text, video)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(rows), BLOCK):
            found = score(text[torch.tensor(rows[start : start + BLOCK])], video).float().cpu().numpy()
            block = found[:, columns]
            if lacking:
                lowest = found.min(axis=1, keepdims=True)
                block = np.where(columns >= 0, block, np.nextafter(lowest, np.float32(-np.inf)))
            yield block

    write_files(cfg, order, blocks())


def _lacking(order: Order, rows: np.ndarray, columns: np.ndarray, *, fill: bool) -> int:
    """Number of videos without embedding.

    Raises:
        UserError: a caption has none, or a video though none may lack.
    """
    if (rows < 0).any():
        first = order.captions[int(np.argmax(rows < 0))].split("\t")[0]
        raise UserError(
            f"{int((rows < 0).sum())} of {len(rows)} captions of the test part were not encoded (first: {first!r}), "
            "expected all; get the videos and features that are missing (task=check_data), or use split.subset=full"
        )
    lacking = int((columns < 0).sum())
    if lacking and not fill:
        raise UserError(
            f"{lacking} of {len(columns)} videos of the test part could not be read (first: "
            f"{order.videos[int(np.argmax(columns < 0))]!r}), expected all; mend them, or let them rank last with "
            "task.fill_unreadable=true"
        )
    if lacking:
        sys.stdout.write(f"submission: {lacking} videos could not be read and rank last for every caption\n")
    return lacking


def write_files(cfg: DictConfig, order: Order, blocks: Iterable[np.ndarray]) -> Path:
    """Write the matrix in the order of the test part, then the file to hand in; returns the first one's path."""
    folder, options = Path(cfg.paths.run_dir), {"constant_rows": bool(cfg.task.allow_constant_rows)}
    path, handed = folder / cfg.task.matrix, file_order(cfg, order)
    names = [cfg.task.matrix]
    write_matrix(path, order, blocks, **options)
    if cfg.task.file is not None and cfg.task.file != cfg.task.matrix:
        place = {name: n for n, name in enumerate(order.videos)}
        columns = np.array([place[name] for name in handed.videos])
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
        copied = (matrix[n : n + BLOCK][:, columns] for n in range(0, len(matrix), BLOCK))
        write_matrix(folder / cfg.task.file, handed, copied, **options)
        names.append(cfg.task.file)
    words = f"{len(order.captions)} captions x {len(order.videos)} videos, float32, finite"
    sys.stdout.write(f"submission: {', '.join(str(folder / name) for name in names)}: {words}\n")
    sys.stdout.write(f"submission: columns of {names[-1]} in the order of {handed.source}\n")
    sys.stdout.write(f"submission: order and checksums in {CAPTIONS}, {VIDEOS} and {RECORD} beside them\n")
    sys.stdout.write(f"submission: read back by python -m src.run task=score similarity={path} ties={cfg.ties}\n")
    return path


def _names(part: SplitPart, ids: Iterable[int]) -> list[str]:
    """`<video id>#<number>` of each caption; of a paragraph that of its first sentence."""
    chosen = [part.captions[i] for i in ids]
    return [caption.keys[0] if caption.keys else caption.video_id for caption in chosen]
