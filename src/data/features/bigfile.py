"""BigFile, the feature format of Dual Encoding: read into a store, and written from one.

A folder with `feature.bin` (little-endian float32 rows), `shape.txt` ("rows dims"), `id.txt` (ids of the rows,
separated by whitespace, ISO-8859-1) and `video2frames.txt` (a Python dict: video -> its frame ids
`<video>_<number>`). Without the last file every row is an item of its own.
Source: danieljf24/dual_encoding basic/bigfile.py, util/txt2bin.py and video2frames.py describe the layout.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from src.data.features.source import Source, Value, describe_files
from src.data.features.store import FeatureStore
from src.errors import UserError

FEATURES = "feature.bin"
SHAPE = "shape.txt"
ROW_IDS = "id.txt"
FRAMES = "video2frames.txt"
_ENCODING = "iso-8859-1"
_DTYPE = np.dtype("<f4")
_EXPORT_ITEMS = 256  # read at a time
# One token of a dict literal; text that was written by Python 2 has u'…'.
_TOKEN = re.compile(r"""\s*(?:[uU]?('(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")|([{}\[\](),:]))""")


def bigfile_source(folder: Path) -> Source:
    """The features of a BigFile folder; its rows are mapped, never read as a whole.

    Raises:
        UserError: files that are missing or contradict each other.
    """
    rows, dim = _read_shape(folder)
    names = _read(folder / ROW_IDS).split()
    size = _need(folder / FEATURES).stat().st_size
    if len(names) != rows or size != rows * dim * _DTYPE.itemsize:
        raise UserError(
            f"{folder}: {SHAPE} says {rows} rows of {dim}, {ROW_IDS} has {len(names)} ids and {FEATURES} {size} bytes; "
            f"expected {rows} ids and {rows * dim * _DTYPE.itemsize} bytes: the copy is incomplete, fetch it again"
        )
    position = {name: row for row, name in enumerate(names)}
    if len(position) != rows:
        twice = next(name for row, name in enumerate(names) if position[name] != row)
        raise UserError(f"{folder / ROW_IDS}: the id {twice!r} occurs more than once, expected unique ids; remove one")
    has_frames = (folder / FRAMES).is_file()
    frames = parse_frames(_read(folder / FRAMES), folder / FRAMES) if has_frames else {name: [name] for name in names}
    places, lost = _places(frames, position, sort=has_frames)
    features = (
        np.memmap(folder / FEATURES, dtype=_DTYPE, mode="r", shape=(rows, dim)).view(np.ndarray) if rows else None
    )

    def read(ids: Sequence[str]) -> Iterator[Value]:
        for item in ids:
            found = places[item]
            if features is None or not len(found):
                yield f"none of its {len(frames[item])} frames is in {ROW_IDS}"
            elif found[-1] - found[0] + 1 == len(found) and (np.diff(found) == 1).all():
                yield features[found[0] : found[-1] + 1]
            else:
                yield features[found]

    files = [folder / name for name in (FEATURES, SHAPE, ROW_IDS, *([FRAMES] if has_frames else []))]
    notes = (f"{lost} frames of {FRAMES} are not in {ROW_IDS}",) if lost else ()
    return Source(_name(folder), tuple(places), read, describe_files("bigfile", files), notes)


def parse_frames(text: str, path: Path) -> dict[str, list[str]]:
    """Read `{'video': ['video_0', …], …}` without evaluating it; the text may have tens of megabytes.

    Args:
        text: the literal; lists may be tuples.
        path: its file, for messages.

    Raises:
        UserError: anything but a dict of lists of strings, or a video that occurs twice.
    """
    frames: dict[str, list[str]] = {}
    tokens = _Tokens(text, path)
    tokens.take("{")
    while not tokens.skip("}"):
        if tokens.quoted in frames:
            tokens.fail()
        names = frames[tokens.take()] = []
        tokens.take(":")
        closing = ")" if tokens.skip("(") else "]"
        if closing == "]":
            tokens.take("[")
        while not tokens.skip(closing):
            names.append(tokens.take())
            if not tokens.skip(","):
                tokens.take(closing)
                break
        if not tokens.skip(","):
            tokens.take("}")
            break
    if tokens.sign or tokens.quoted is not None or text[tokens.at :].strip():
        tokens.fail()
    return frames


class _Tokens:
    """Signs and quoted words of a literal, one at a time.

    Attributes:
        sign: the current token if it is one, else "".
        quoted: the current token if it is a word, else None.
        at: where the current token begins, or the text goes on that is none.
    """

    def __init__(self, text: str, path: Path) -> None:
        self._text, self._path, self._end = text, path, 0
        self._advance()

    def _advance(self) -> None:
        match = _TOKEN.match(self._text, self._end)
        self.at, self.sign, self.quoted = self._end, "", None
        if match is not None:
            quoted, sign = match.groups()
            self._end, self.sign = match.end(), sign or ""
            if quoted is not None:
                self.quoted = ast.literal_eval(quoted) if "\\" in quoted else quoted[1:-1]

    def skip(self, sign: str) -> bool:
        """Pass over the sign if it is the current token."""
        found = self.sign == sign
        if found:
            self._advance()
        return found

    def take(self, sign: str = "") -> str:
        """Pass over the sign, or without one over a word, which is returned."""
        word = self.quoted
        if self.sign != sign or (not sign and word is None):
            self.fail()
        self._advance()
        return word or ""

    def fail(self) -> NoReturn:
        """Raise UserError: the current token should not be there."""
        found = self._text[self.at : self.at + 40]
        raise UserError(
            f"{self._path}: found {found!r} at character {self.at}, expected a dict of video -> list of frame ids"
        )


def export_bigfile(store: FeatureStore, folder: Path) -> int:
    """Write a store as a BigFile folder, which is there as a whole or not at all.

    Missing items are left out: the format has no place for them. float16 becomes float32.

    Returns:
        Number of missing items.

    Raises:
        UserError: the folder is in use, ids that the format cannot hold, or the disk is full.
    """
    for item in store.ids:
        if item.split() != [item] or not _fits(item):
            raise UserError(
                f"{store.path}: found the id {item!r}, expected ISO-8859-1 without spaces for {ROW_IDS}; rename it"
            )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists already, expected a new folder; give another task.output, or remove it")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        partial.mkdir(parents=True)
        lengths = store.lengths(store.ids).tolist()
        frames = {item: [f"{item}_{n}" for n in range(steps)] for item, steps in zip(store.ids, lengths, strict=True)}
        with (partial / FEATURES).open("wb") as file:
            for start in range(0, len(store.ids), _EXPORT_ITEMS):
                rows, _ = store.rows(store.ids[start : start + _EXPORT_ITEMS])
                file.write(np.ascontiguousarray(rows, dtype=_DTYPE).data)
        (partial / SHAPE).write_text(f"{store.num_rows} {store.dim}", encoding=_ENCODING)
        (partial / ROW_IDS).write_text(" ".join(i for of in frames.values() for i in of), encoding=_ENCODING)
        (partial / FRAMES).write_text(repr(frames), encoding=_ENCODING)
        partial.replace(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: could not be written ({error.strerror}); make room, or give another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(store.missing)


def _places(frames: dict[str, list[str]], position: dict[str, int], *, sort: bool) -> tuple[dict[str, np.ndarray], int]:
    """Video -> its rows in the order of the frame numbers; and the number of frames without a row."""
    places, lost = {}, 0
    for video, of_video in frames.items():
        ordered = sorted(of_video, key=_frame_number) if sort else of_video
        rows = [position[frame] for frame in ordered if frame in position]
        lost += len(of_video) - len(rows)
        places[video] = np.asarray(rows, dtype=np.int64)
    return places, lost


def _frame_number(frame: str) -> int:
    number = frame.rpartition("_")[2]
    if not number.isdecimal():
        raise UserError(f"{FRAMES}: found the frame id {frame!r}, expected <video>_<number>")
    return int(number)


def _read_shape(folder: Path) -> tuple[int, int]:
    words = _read(folder / SHAPE).split()
    if len(words) != 2 or not all(word.isdecimal() for word in words) or int(words[1]) < 1:
        raise UserError(f"{folder / SHAPE}: found {' '.join(words)[:40]!r}, expected two numbers: rows and dims")
    return int(words[0]), int(words[1])


def _read(path: Path) -> str:
    return _need(path).read_text(encoding=_ENCODING)


def _need(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: not found, expected a BigFile folder ({FEATURES}, {SHAPE}, {ROW_IDS}, {FRAMES})")
    return path


def _fits(item: str) -> bool:
    try:
        item.encode(_ENCODING)
    except UnicodeEncodeError:
        return False
    return True


def _name(folder: Path) -> str:
    return folder.resolve().name
