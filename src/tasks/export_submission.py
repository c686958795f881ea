"""task=export_submission: the matrix of scores that a competition asks for, checked as it will be read.

`sim_matrix.npy` (float32, rows captions, columns videos, both in the order of the test file) and the same under the
name that is handed in, for TextVR `textvr.npy`; beside them captions.txt, videos.txt and submission.json, by which
`task=score similarity=sim_matrix.npy` finds what rows and columns are, and refuses a matrix that was changed since.

A checkpoint is evaluated as by task=evaluate. With `similarity=S.npy` that matrix is checked and written instead: its
order is what `captions=` and `videos=` say, or the lists beside it; without lists only its shape and its scores speak.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from src.errors import UserError
from src.reports.submission import CAPTIONS, VIDEOS, Order, check_matrix, check_own, check_repeated, recorded_lists
from src.tasks import evaluate, score
from src.tasks.score_bank import read_matrix
from src.tasks.submission_files import BLOCK, check_same, file_order, read_videos, whole_test, write_files


def run(cfg: DictConfig) -> float | None:
    """Write the files of a submission.

    Returns:
        The metric that `optimized_metric` names.

    Raises:
        UserError: the matrix may not be submitted; says why.
    """
    part, order = whole_test(cfg)
    file_order(cfg, order)  # a wrong list shows before anything is encoded
    if not part.captions:
        raise UserError(f"the test part of split {cfg.split.name!r} has no caption, expected at least one")
    if cfg.similarity is None:
        return evaluate.run(cfg)  # whose test writes the files, in the process that has the embeddings
    path, folder = Path(cfg.similarity), Path(cfg.paths.run_dir)
    if path.resolve() in [(folder / name).resolve() for name in (cfg.task.matrix, cfg.task.file) if name]:
        raise UserError(f"similarity={path} would be overwritten while it is read; give another hydra.run.dir=FOLDER")
    matrix = read_matrix(path)
    rows, columns = _places(cfg, path, matrix, order)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(rows), BLOCK):
            yield matrix[rows[start : start + BLOCK]][:, columns]

    written = write_files(cfg, order, blocks())
    matrix = read_matrix(written)
    lists = recorded_lists(written, matrix)
    assert lists is not None  # just recorded
    cfg.captions, cfg.videos = map(str, lists)
    return score.score_matrix(cfg, cfg.dataset.name, matrix, [dict(video.tags).get("domain") for video in part.videos])


def _places(cfg: DictConfig, path: Path, matrix: np.ndarray, order: Order) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the matrix for each row and column of the submission.

    Raises:
        UserError: it is not a matrix of this test part, or in another order.
    """
    lists = recorded_lists(path, matrix)
    found = (cfg.captions, cfg.videos) if cfg.captions or cfg.videos else lists or _beside(path)
    captions, videos = (Path(name) if name else None for name in found or (None, None))
    constant = bool(cfg.task.allow_constant_rows)
    check_matrix(matrix, order.shape, str(path), constant_rows=constant, dtype=str(matrix.dtype))
    own = [line.split("\t")[0] for line in order.captions]
    rows = np.arange(len(own)) if captions is None else _rows_of(captions, order, own)
    columns = np.arange(len(order.videos)) if videos is None else _columns_of(videos, order)
    for axis, places, source in (("rows", rows, captions), ("columns", columns, videos)):
        moved = int((places != np.arange(len(places))).sum())
        if moved and not cfg.task.reorder:
            raise UserError(
                f"{path}: {moved} of its {len(places)} {axis} are permuted: {source} has another order than "
                f"{order.source}; put them in order with task.reorder=true"
            )
    if captions is None or videos is None:
        view = matrix if captions is None and videos is None else matrix[rows][:, columns]
        others = {"their sorted ids": sorted(order.videos)}
        if cfg.task.video_order is not None:
            others[Path(cfg.task.video_order).name] = list(file_order(cfg, order).videos)
        if captions is None:
            check_repeated(view, order, str(path))
        check_own(view, order, others, str(path))
    return rows, columns


def _beside(path: Path) -> tuple[Path, Path] | None:
    """The lists that `save_similarity=true` writes with a matrix."""
    lists = path.with_name(CAPTIONS), path.with_name(VIDEOS)
    return lists if path.name == "similarity.npy" and all(name.is_file() for name in lists) else None


def _columns_of(path: Path, order: Order) -> np.ndarray:
    videos = read_videos(path, "videos")
    check_same(videos, order.videos, f"videos: {path}", "videos")
    place = {name: n for n, name in enumerate(videos)}
    return np.array([place[name] for name in order.videos])


def _rows_of(path: Path, order: Order, own: list[str]) -> np.ndarray:
    """Rows by caption id; in a list of video ids only, captions of one video are in the order of the test file."""
    lines = [line.split("\t") for line in read_videos(path, "captions")]
    if all(len(line) == 1 for line in lines):
        found, expected = (
            _numbered(line[0] for line in lines),
            _numbered(line.split("\t")[1] for line in order.captions),
        )
    else:
        found, expected = [line[0] for line in lines], own
    check_same(found, expected, f"captions: {path}", "captions")
    place = {name: n for n, name in enumerate(found)}
    return np.array([place[name] for name in expected])


def _numbered(videos: Iterator[str]) -> list[str]:
    """`<video>\\t<how many times it was there before>`, unique."""
    seen: dict[str, int] = {}
    names = []
    for video in videos:
        seen[video] = seen.get(video, -1) + 1
        names.append(f"{video}\t{seen[video]}")
    return names
