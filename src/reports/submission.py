"""Matrices of scores to hand in: written with what their order is, and recognised when they are read again.

Beside the matrices stand the lists of their rows and columns, and `submission.json`: of every matrix its shape, the
SHA-256 of its numbers and a sum that does not depend on their order. So a matrix whose rows or columns were permuted
later is told from one that was edited, even under another name. A matrix without such a record can only be checked
for its shape, its numbers, whether captions with the same words have the same scores (`check_repeated`), and whether
captions find their own videos at all (`check_own`).

Shapes: Q captions, V videos.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import UserError

log = logging.getLogger(__name__)

RECORD = "submission.json"
CAPTIONS, VIDEOS = "captions.txt", "videos.txt"
BLOCK = 1024  # rows read at a time
CHANCE, CLEAR = 4.0, 8.0  # standard deviations from what chance gives: no better than it, certainly better
REPEATED = 8  # captions that repeat another's words, fewer of which prove nothing


@dataclass(frozen=True)
class Order:
    """Rows and columns of a matrix.

    Attributes:
        captions: (Q,) `caption_id<TAB>video_id<TAB>text` of each row; ids are unique.
        videos: (V,) id of each column.
        source: where the order of the columns comes from, for people.
    """

    captions: tuple[str, ...]
    videos: tuple[str, ...]
    source: str

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.captions), len(self.videos)

    @property
    def own_columns(self) -> np.ndarray:
        """int64 (Q,), column of each caption's own video."""
        place = {name: n for n, name in enumerate(self.videos)}
        return np.array([place[line.split("\t")[1]] for line in self.captions], dtype=np.int64)


def write_matrix(
    path: Path, order: Order, blocks: Iterable[np.ndarray], *, constant_rows: bool = False
) -> dict[str, Any]:
    """Write one matrix as float32, check it as it stands on disk, and enter it in the folder's record.

    Args:
        path: .npy file; the lists of its order go beside it.
        order: of its rows and columns.
        blocks: its rows, in order, as one or more arrays (n, V).
        constant_rows: accept rows in which all videos score the same.

    Returns:
        Its entry in the record.

    Raises:
        UserError: it may not be submitted; nothing is left in place of the matrix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=order.shape)
    row = 0
    for block in blocks:
        with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, and is refused
            matrix[row : row + len(block)] = block
        row += len(block)
    matrix.flush()
    del matrix
    try:
        written = np.load(path, mmap_mode="r", allow_pickle=False)
        constant = check_matrix(written, order.shape, str(path), constant_rows=constant_rows)
    except UserError:
        path.unlink()
        raise
    names = _write_lists(path, order)
    entry = {
        "shape": list(order.shape),
        "dtype": str(written.dtype),
        **_numbers(written),
        "constant_rows": constant,
        "columns": order.source,
        **names,
    }
    _enter(path, entry)
    return entry


def _enter(path: Path, entry: dict[str, Any]) -> None:
    record = read_record(path.parent) or {"format": 1, "matrices": {}}
    record["matrices"][path.name] = entry
    (path.parent / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _write_lists(path: Path, order: Order) -> dict[str, str]:
    """The lists of rows and columns; those of a second matrix get its name where they differ from the first's."""
    names: dict[str, str] = {}
    for key, shared, lines in (("captions", CAPTIONS, order.captions), ("videos", VIDEOS, order.videos)):
        text = "".join(f"{line}\n" for line in lines)
        record = read_record(path.parent)
        others = [entry for name, entry in record["matrices"].items() if name != path.name] if record else []
        taken = {entry[key]: entry[f"{key}_sha256"] for entry in others}
        digest = hashlib.sha256(text.encode()).hexdigest()
        name = shared if taken.get(shared, digest) == digest else f"{path.stem}.{shared}"
        (path.parent / name).write_text(text, encoding="utf-8")
        names |= {key: name, f"{key}_sha256": digest}
    return names


def check_matrix(
    matrix: np.ndarray, shape: tuple[int, ...], name: str, *, constant_rows: bool = False, dtype: str = "float32"
) -> int:
    """Refuse what no competition would rank.

    Args:
        matrix: of any shape and type.
        shape: (captions, videos) expected.
        name: of the file, for messages.
        constant_rows: accept rows in which all videos score the same.
        dtype: expected type.

    Returns:
        Number of rows in which all videos score the same.

    Raises:
        UserError: another shape or type, numbers that are not finite, or constant rows.
    """
    if matrix.shape != tuple(shape):
        advice = (
            "it is transposed: rows are captions" if matrix.shape == tuple(shape)[::-1] else "score all of the test"
        )
        raise UserError(f"{name}: found shape {matrix.shape}, expected {tuple(shape)} (captions, videos); {advice}")
    if matrix.dtype != np.dtype(dtype):
        raise UserError(f"{name}: found {matrix.dtype}, expected {dtype}; write it with matrix.astype('{dtype}')")
    constant: list[int] = []
    for start, rows in _blocks(matrix):
        if not np.isfinite(rows).all():
            at = np.argwhere(~np.isfinite(rows))
            raise UserError(
                f"{name}: found {rows[tuple(at[0])]} in row {start + at[0][0]}, column {at[0][1]} (counted from 0), "
                "expected finite numbers; look for a broken video or caption with task=check_data"
            )
        constant += (start + np.flatnonzero((rows == rows[:, :1]).all(axis=1))).tolist()
    if constant and matrix.shape[1] > 1 and not constant_rows:
        raise UserError(
            f"{name}: found {len(constant)} rows in which all videos score the same (first: row {constant[0]}), "
            "expected scores that rank them; add task.allow_constant_rows=true where the model means it"
        )
    return len(constant) if matrix.shape[1] > 1 else 0


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a folder; None where there is none.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        usable = record["format"] == 1 and isinstance(record["matrices"], dict)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} is not a record of submissions ({error!r}); export the submission again") from None
    if not usable:
        raise UserError(f"{path}: found another format, expected 1; export the submission again")
    return record


def recorded_lists(path: Path, matrix: np.ndarray) -> tuple[Path, Path] | None:
    """Check a matrix against the record beside it.

    Args:
        path: of the matrix.
        matrix: its numbers.

    Returns:
        Lists of its captions and of its videos; None where no record knows the matrix.

    Raises:
        UserError: the record knows it, and the matrix or a list has been changed since.
    """
    record = read_record(path.parent)
    if record is None:
        return None
    entries: Mapping[str, dict[str, Any]] = record["matrices"]
    entry = entries.get(path.name)
    if entry is not None:
        check_matrix(matrix, tuple(entry["shape"]), str(path), constant_rows=entry["constant_rows"] > 0)
    found = _numbers(matrix)
    known = [
        one for one in ([entry] if entry is not None else entries.values()) if one["unordered"] == found["unordered"]
    ]
    exact = [one for one in known if one["sha256"] == found["sha256"]]
    if not exact and known:
        raise UserError(
            f"{path} holds the numbers of a written submission in another order: its rows or columns were permuted "
            f"and no longer are those of {known[0]['captions']} and {known[0]['videos']}; hand in the file as written"
        )
    if not exact and entry is not None:
        raise UserError(f"{path} holds other numbers than were written; export it again")
    return _checked_lists(path.parent, exact[0]) if exact else None


def _checked_lists(folder: Path, entry: Mapping[str, Any]) -> tuple[Path, Path]:
    for key in ("captions", "videos"):
        path = folder / entry[key]
        if not path.is_file():
            raise UserError(f"{path} is missing, expected the list that was written with the matrix; export it again")
        if hashlib.sha256(path.read_bytes()).hexdigest() != entry[f"{key}_sha256"]:
            raise UserError(
                f"{path} was changed since the matrix was written, so nobody knows its {key}' order; export it again"
            )
    return folder / entry["captions"], folder / entry["videos"]


def _numbers(matrix: np.ndarray) -> dict[str, str]:
    """SHA-256 of the numbers in C order, and a hash that is the same for every order of them."""
    digest, total = hashlib.sha256(), 0
    for _, rows in _blocks(matrix):
        block = np.ascontiguousarray(rows, dtype=np.float32)
        digest.update(block.tobytes())
        mixed = block.view(np.uint32).astype(np.uint64) + np.uint64(1)
        for shift, factor in ((33, 0xFF51AFD7ED558CCD), (29, 0xC4CEB9FE1A85EC53)):  # murmur's mixing of bits
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        total = (total + int((mixed ^ (mixed >> np.uint64(32))).sum(dtype=np.uint64))) % 2**64
    return {"sha256": digest.hexdigest(), "unordered": f"{total:016x}"}


def _blocks(matrix: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(matrix), BLOCK):
        yield start, np.asarray(matrix[start : start + BLOCK])


def check_repeated(matrix: np.ndarray, order: Order, name: str) -> None:
    """Look at captions with the same words, whose rows a text encoder makes equal; other columns mean nothing to it.

    Args:
        matrix: (Q, V) finite.
        order: its order, if it is what it should be.
        name: of the file, for messages.

    Raises:
        UserError: their rows differ, but the columns of their videos are equal, or other rows are.
    """
    first: dict[str, int] = {}
    texts = [line.split("\t")[2] for line in order.captions]
    pairs = [(first.setdefault(text, row), row) for row, text in enumerate(texts)]
    pairs_P2 = np.array([pair for pair in pairs if pair[0] != pair[1]]).reshape(-1, 2)
    enough = max(REPEATED, len(pairs_P2) / 2)
    if len(pairs_P2) < REPEATED or _equal(matrix, pairs_P2) >= enough:
        return
    found = f"{name}: the rows of {len(pairs_P2)} captions that repeat another's words differ from it"
    one_each = matrix.shape[0] == matrix.shape[1] and np.array_equal(order.own_columns, np.arange(len(matrix)))
    if one_each and _equal(matrix.T, pairs_P2) >= enough:
        raise UserError(
            f"{found}, and the columns of their videos are equal: it is transposed, expected a row for each caption; "
            "write it with numpy.ascontiguousarray(matrix.T)"
        )
    projected_Q = np.concatenate([rows @ np.random.default_rng(0).random(rows.shape[1]) for _, rows in _blocks(matrix)])
    places_Q = np.argsort(projected_Q, kind="stable")
    if _equal(matrix, np.stack([places_Q[:-1], places_Q[1:]], axis=1)) >= enough:
        raise UserError(
            f"{found}, and other rows are equal: rows are permuted; give captions=FILE with their order and "
            "task.reorder=true"
        )


def _equal(matrix: np.ndarray, pairs_P2: np.ndarray) -> int:
    """Number of pairs of rows that are equal but for rounding."""
    equal = 0
    for start in range(0, len(pairs_P2), BLOCK):
        one, other = (matrix[rows].astype(np.float32) for rows in pairs_P2[start : start + BLOCK].T)
        spread_P = one.max(axis=1) - one.min(axis=1)
        equal += int((abs(one - other).max(axis=1) <= 0.01 * spread_P).sum())
    return equal


def check_own(matrix: np.ndarray, order: Order, others: Mapping[str, Sequence[str]], name: str) -> None:
    """Look at the ranks of the captions' own videos, which is all that a matrix without lists can be recognised by.

    Args:
        matrix: (Q, V) finite.
        order: its order, if it is what it should be.
        others: name -> ids of the videos in an order that was perhaps taken instead.
        name: of the file, for messages.

    Raises:
        UserError: own videos rank as by chance, but not in another order, or other videos stand out clearly.
    """
    shift = _better_than_chance(matrix, order.own_columns)
    if shift > CHANCE:
        return
    for source, videos in others.items():
        if _better_than_chance(matrix, Order(order.captions, tuple(videos), source).own_columns) > CLEAR:
            raise UserError(
                f"{name}: captions find their own videos as by chance in the order of {order.source}, but not in that "
                f"of {source}: its columns are permuted; give videos=FILE with their order and task.reorder=true"
            )
    if _stands_out(matrix) or _choose_each_other(matrix):
        raise UserError(
            f"{name}: most captions single out one video, each another, but it is their own no more often than by "
            "chance: rows or columns are permuted; give captions=FILE videos=FILE with their order"
        )
    log.warning(
        "%s: captions find their own videos as by chance, so nothing shows whether rows and columns are in order; "
        "give captions=FILE videos=FILE to have that checked",
        name,
    )


def _better_than_chance(matrix: np.ndarray, own_Q: np.ndarray) -> float:
    """How far the mean rank of the own video is better than chance, in its standard deviations."""
    number = matrix.shape[1]
    total = 0.0
    for start, rows in _blocks(matrix):
        own = rows[np.arange(len(rows)), own_Q[start : start + len(rows)]][:, None]
        total += float((rows > own).sum() + ((rows == own).sum() - len(rows)) / 2 + len(rows))
    spread = np.sqrt((number**2 - 1) / 12 / len(own_Q))
    return float(((number + 1) / 2 - total / len(own_Q)) / max(spread, 1e-9))


def _stands_out(matrix: np.ndarray) -> bool:
    """Whether half of the captions have a best video that is a standard deviation ahead, and few share one."""
    if matrix.shape[1] < 3:
        return False
    ahead, best = 0, set()
    for _, rows in _blocks(matrix):
        top = np.partition(rows, -2, axis=1)[:, -2:].astype(np.float64)
        clear = top[:, 1] - top[:, 0] > rows.std(axis=1, dtype=np.float64)
        ahead += int(clear.sum())
        best |= set(rows.argmax(axis=1)[clear].tolist())
    return ahead > len(matrix) / 2 and len(best) > min(ahead, matrix.shape[1]) / 2


def _choose_each_other(matrix: np.ndarray) -> bool:
    """Whether more captions and videos are each other's best than among independent scores."""
    number, videos = matrix.shape
    best_Q = np.concatenate([rows.argmax(axis=1) for _, rows in _blocks(matrix)])
    highest_V, caption_V = np.full(videos, -np.inf), np.zeros(videos, dtype=np.int64)
    for start, rows in _blocks(matrix):
        row_V = rows.argmax(axis=0)
        value_V = rows[row_V, np.arange(videos)].astype(np.float64)
        better_V = value_V > highest_V
        highest_V[better_V], caption_V[better_V] = value_V[better_V], start + row_V[better_V]
    mutual = int((caption_V[best_Q] == np.arange(number)).sum())
    # An entry is the highest of its row and its column with probability 1 / (Q + V - 1); the spread is from simulation.
    expected, spread = number * videos / (number + videos - 1), 0.4 * np.sqrt(min(number, videos))
    return mutual > expected + CLEAR * spread
