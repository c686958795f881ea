"""Submissions to the Video Pentathlon: the ten best videos of each query, their check and their score.

`{Dataset}-{phase}-predictions.csv` has one line for each caption that exists, in the order of the videos and of their
captions: ten positions of videos in the official list, from 0, best first. `predictions.json` says which file belongs
to which data set and phase; the files of one phase travel in one zip without folders.

Source: Albanie et al., "The End-of-End-to-End: A Video Understanding Pentathlon Challenge" (2020), and
    collaborative-experts @ 7eb3b9d, `misc/cvpr2020_challenge`.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from torch import Tensor

from src.errors import UserError
from src.metrics.result import RetrievalResult

DEPTH = 10
PHASES = ("public_server_val", "public_server_test")


@dataclass(frozen=True)
class Size:
    """How many videos a part of the challenge has, and how many lines its file."""

    videos: int
    lines: int


# Data set -> sizes of both phases; captions that videos lack are no lines (MSR-VTT's test misses 6 of 20 x 2990).
SIZES: dict[str, tuple[Size, Size]] = {
    "MSRVTT": (Size(497, 9_940), Size(2_990, 59_794)),
    "MSVD": (Size(100, 4_290), Size(670, 27_763)),
    "DiDeMo": (Size(1_065, 1_065), Size(1_004, 1_004)),
    "LSMDC": (Size(7_408, 7_408), Size(1_000, 1_000)),
    "YouCook2": (Size(969, 969), Size(3_310, 3_310)),
    "ActivityNet": (Size(1_001, 1_001), Size(4_917, 4_917)),
}


def challenge_name(dataset: str) -> str:
    """The challenge's name of a data set; that of any other data set stays as it is."""
    return next((name for name in SIZES if name.lower() == dataset.lower().replace("-", "")), dataset)


def expected_size(dataset: str, phase: str) -> Size | None:
    """What the server expects; None for a data set that is not part of the challenge.

    Raises:
        UserError: no such phase.
    """
    if phase not in PHASES:
        raise UserError(f"pentathlon: found phase {phase!r}, expected {' or '.join(PHASES)}")
    sizes = SIZES.get(challenge_name(dataset))
    return sizes[PHASES.index(phase)] if sizes else None


def valid_queries(result: RetrievalResult) -> Tensor:
    """int64 ids of the captions that get a line, in order.

    Raises:
        UserError: a caption was left out because its video could not be read, so that lines would be missing.
    """
    if result.excluded_captions:
        raise UserError(
            f"pentathlon: {len(result.excluded_captions)} captions were left out because their video could not be "
            "read, expected every line of the submission; add the missing videos or features"
        )
    return result.caption_ids


def ranking_lines(result: RetrievalResult, num_videos: int, depth: int = DEPTH) -> list[str]:
    """One line per caption: positions of its best videos among `num_videos`, separated by commas.

    Raises:
        UserError: fewer videos were ranked than there are, or fewer than a line has to name.
    """
    valid_queries(result)
    videos_QK = result.t2v_topk[0]
    if len(result.video_ids) != num_videos or videos_QK.shape[1] < depth:
        raise UserError(
            f"pentathlon: found {len(result.video_ids)} ranked videos of {num_videos} and the best "
            f"{videos_QK.shape[1]} of each query, expected all videos and {depth} of them on each line"
        )
    return [",".join(map(str, row)) for row in videos_QK[:, :depth].tolist()]


def predictions_name(dataset: str, phase: str) -> str:
    """Name of the file of one data set."""
    return f"{challenge_name(dataset)}-{phase}-predictions.csv"


def write_predictions(folder: Path, dataset: str, phase: str, lines: Sequence[str]) -> Path:
    """Write the file of one data set, and predictions.json that names it, and return the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / predictions_name(dataset, phase)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    index = {challenge_name(dataset): {phase: path.name}}
    (folder / "predictions.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return path


def read_index(path: Path) -> dict[tuple[str, str], Path]:
    """(data set, phase) -> file, from predictions.json; relative paths are meant from its folder.

    Raises:
        UserError: no such file, or not `data set -> phase -> path`.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        found = {(name, phase): path.parent / file for name, files in index.items() for phase, file in files.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: cannot read it ({error}), expected a JSON of data set -> phase -> file") from None
    if not found:
        raise UserError(f"{path}: names no file, expected data set -> phase -> file")
    for name, phase in found:
        if expected_size(name, phase) is None:
            raise UserError(f"{path}: found data set {name!r}, expected some of {', '.join(SIZES)}")
    return found


def read_predictions(path: Path, size: Size | None = None) -> np.ndarray:
    """int64 (lines, 10) positions, checked.

    Args:
        path: the file of one data set.
        size: how many lines it must have, and which positions exist; None = any.

    Raises:
        UserError: a line is malformed, names a video twice or one that does not exist, or lines are missing.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read it ({error}), expected a csv of {DEPTH} numbers per line") from None
    rows = [_row(path, number, line, size) for number, line in enumerate(lines, start=1)]
    if not rows or (size is not None and len(rows) != size.lines):
        wanted = "at least one" if size is None else f"{size.lines:,} (one for each caption that exists)"
        raise UserError(f"{path}: found {len(rows):,} lines, expected {wanted}")
    return np.array(rows, dtype=np.int64)


def _row(path: Path, number: int, line: str, size: Size | None) -> list[int]:
    cells = line.split(",")
    row = [int(cell) for cell in cells if cell.strip().isdecimal()]
    most = np.inf if size is None else size.videos - 1
    if len(cells) != DEPTH or len(set(row)) != DEPTH or max(row) > most:
        between = "from 0" if size is None else f"from 0 to {size.videos - 1}"
        raise UserError(
            f"{path}: line {number} is {line[:80]!r}, expected {DEPTH} different whole numbers {between}, "
            "separated by commas"
        )
    return row


def score_predictions(predictions: np.ndarray, true_Q: np.ndarray) -> dict[str, float]:
    """R1, R5, R10 and their geometric mean, in percent; a line that misses the video is a miss at every depth.

    Args:
        predictions: int64 (Q, 10).
        true_Q: int64, position of each caption's own video.

    Raises:
        UserError: another number of captions than of lines.
    """
    if len(predictions) != len(true_Q):
        raise UserError(f"found {len(predictions):,} lines and {len(true_Q):,} true videos, expected equal numbers")
    hits = predictions == true_Q[:, None]
    recalls = {f"R{k}": 100 * float(hits[:, :k].any(1).mean()) for k in (1, 5, 10)}
    return {**recalls, "GeoMean": float(np.prod(list(recalls.values())) ** (1 / 3))}


def write_submission(folder: Path, files: Mapping[str, Path], phase: str, now: datetime) -> Path:
    """Zip the files of one phase without folders: `{phase}-{hash of their paths}-{time}.zip`; returns its path.

    Args:
        folder: gets the zip.
        files: data set -> its file.
        phase: of all of them.
        now: for the name.
    """
    paths = sorted(str(path) for path in files.values())
    digest = hashlib.sha256("\n".join(paths).encode()).hexdigest()[:10]
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{phase}-{digest}-{now:%Y-%m-%d_%H-%M-%S}.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for dataset, path in sorted(files.items()):
            archive.write(path, predictions_name(dataset, phase))
    return target
