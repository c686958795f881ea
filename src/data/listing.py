"""One csv file with millions of rows, read in chunks and kept as columns: a file and a caption for each row."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from src.data.annotation import CaptionRecord, VideoRecord
from src.data.columns import RowSequence, TextBuilder, TextColumn, hashes, occurrence
from src.errors import UserError

logger = logging.getLogger(__name__)

CHUNK = 50_000  # rows that are objects at the same time


class Chunk(NamedTuple):
    """Rows of a csv that have everything they need.

    Attributes:
        rows: int64, their numbers in the file, from 0.
        folders, names, captions: of each row; names without extension.
    """

    rows: np.ndarray
    folders: Sequence[str]
    names: Sequence[str]
    captions: Sequence[str]


@dataclass(frozen=True, eq=False)
class Listing:
    """The rows of one csv.

    Attributes:
        source: the csv.
        total: rows of the csv, those included that were left out because a value is missing.
        rows_R: int64, number in the csv of each row that was kept.
        folders: distinct folders.
        folder_R: int32, index of each row's folder.
        names, captions: of each row.
        suffix: extension of the files.
        with_folder: whether ids are <folder>/<name>, not <name>.
        key_R: uint64 as int64, hash of each row's id.
        repeat_R: int32, how many rows before have the same id.
    """

    source: Path
    total: int
    rows_R: Tensor
    folders: tuple[str, ...]
    folder_R: Tensor
    names: TextColumn
    captions: TextColumn
    suffix: str
    with_folder: bool
    key_R: Tensor
    repeat_R: Tensor

    def __len__(self) -> int:
        return len(self.rows_R)

    def id_of(self, row: int) -> str:
        """Id of the video, without what tells rows with the same file apart."""
        name = self.names[row]
        return f"{self.folders[int(self.folder_R[row])]}/{name}" if self.with_folder else name

    def video(self, row: int, root: Path) -> VideoRecord:
        """The video of a row; the second row with the same file is <id>@2, as an id names one video of a gallery."""
        own, repeat = self.id_of(row), int(self.repeat_R[row])
        path = root / self.folders[int(self.folder_R[row])] / f"{self.names[row]}{self.suffix}"
        return VideoRecord(f"{own}@{repeat + 1}", path, same_as=own) if repeat else VideoRecord(own, path)

    def video_id(self, row: int) -> str:
        """Id of the video of a row."""
        own, repeat = self.id_of(row), int(self.repeat_R[row])
        return f"{own}@{repeat + 1}" if repeat else own

    def caption(self, row: int) -> CaptionRecord:
        """The caption of a row."""
        video_id = self.video_id(row)
        return CaptionRecord(video_id, self.captions[row], (f"{video_id}#0",))

    def is_blank(self) -> np.ndarray:
        """bool (R,): captions without a word."""
        ends = self.captions.ends_R.numpy()
        starts = np.r_[0, ends[:-1]][: len(ends)]
        blank_R = starts == ends
        first_N = self.captions.bytes_N.numpy()[np.where(blank_R, 0, starts)] if len(self.captions.bytes_N) else starts
        # Only what begins with a blank, or with a letter of more bytes, can consist of blanks.
        for row in np.flatnonzero(~blank_R & ((first_N <= 0x20) | (first_N >= 0x80))).tolist():
            blank_R[row] = not self.captions[row].strip()
        return blank_R

    def has_file(self, root: Path) -> np.ndarray:
        """bool (R,): whether the file of each row is there; asks for the contents of folders, not for each file."""
        folder_R = self.folder_R.numpy()
        order = np.argsort(folder_R, kind="stable")
        ends = np.cumsum(np.bincount(folder_R, minlength=len(self.folders)))
        found_R = np.zeros(len(self), dtype=bool)
        for index, folder in enumerate(self.folders):
            rows = order[(ends[index - 1] if index else 0) : ends[index]]
            there = _files_in(root / folder)
            for start in range(0, len(rows), CHUNK) if len(there) else ():
                some = rows[start : start + CHUNK]
                wanted = hashes([f"{self.names[row]}{self.suffix}" for row in some.tolist()])
                found_R[some] = np.isin(wanted, there)
        return found_R


def _files_in(folder: Path) -> np.ndarray:
    """uint64, hashes of the names of the files in a folder; none where there is no such folder."""
    found, names = [np.zeros(0, dtype=np.uint64)], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():
                    names.append(entry.name)
                if len(names) == CHUNK:
                    found.append(hashes(names))
                    names = []
    except (FileNotFoundError, NotADirectoryError):
        return found[0]
    return np.concatenate([*found, hashes(names)])


def read_listing(
    source: Path,
    columns: Sequence[str],
    chunk_of: Callable[[pd.DataFrame], Chunk],
    *,
    suffix: str,
    with_folder: bool,
) -> Listing:
    """Read a csv as columns.

    Args:
        source: the csv.
        columns: what it must have.
        chunk_of: takes a chunk of it, all values text or missing, and returns the rows to keep.
        suffix: extension of the files.
        with_folder: whether ids are <folder>/<name>, not <name>.

    Raises:
        UserError: it is damaged, or lacks a column.
    """
    names, captions = TextBuilder(), TextBuilder()
    codes: dict[str, int] = {}
    total = 0
    rows, folder_codes, keys = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.uint64)]
    for frame in _frames(source, columns):
        chunk = chunk_of(frame)
        total += len(frame)
        rows.append(chunk.rows)
        folder_codes.append(np.array([codes.setdefault(name, len(codes)) for name in chunk.folders], dtype=np.int32))
        ids = [f"{a}/{b}" for a, b in zip(chunk.folders, chunk.names, strict=True)] if with_folder else chunk.names
        keys.append(hashes(ids))
        names.add(chunk.names)
        captions.add(chunk.captions)
    key_R = np.concatenate(keys)
    if total > len(key_R):
        logger.warning(
            "%s: %s of %s rows lack a value and are left out", source, f"{total - len(key_R):,}", f"{total:,}"
        )
    return Listing(
        *(source, total, torch.from_numpy(np.concatenate(rows)), tuple(codes)),
        torch.from_numpy(np.concatenate(folder_codes)),
        *(TextColumn(*names.tensors()), TextColumn(*captions.tensors()), suffix, with_folder),
        *(torch.from_numpy(key_R.view(np.int64)), torch.from_numpy(occurrence(key_R))),
    )


def _frames(source: Path, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
    """Chunks of a csv, all values text; the index counts the rows of the file."""
    try:
        with pd.read_csv(source, dtype=str, chunksize=CHUNK) as reader:
            for frame in reader:
                lacking = [name for name in columns if name not in frame.columns]
                if lacking:
                    found = ", ".join(map(str, frame.columns))[:100]
                    raise UserError(
                        f"{source} has no column {lacking[0]} (found {found}), expected {', '.join(columns)}; "
                        "use the published file"
                    )
                yield frame
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{source} is damaged ({error}); expected the published csv, fetch it again") from error


class Videos(RowSequence[VideoRecord]):
    """Videos of some rows of a listing."""

    def __init__(self, listing: Listing, rows_R: Tensor, root: Path) -> None:
        super().__init__(rows_R)
        self.listing = listing
        self.root = root

    def at(self, row: int) -> VideoRecord:
        return self.listing.video(row, self.root)


class Captions(RowSequence[CaptionRecord]):
    """Captions of some rows of a listing."""

    def __init__(self, listing: Listing, rows_R: Tensor) -> None:
        super().__init__(rows_R)
        self.listing = listing

    def at(self, row: int) -> CaptionRecord:
        return self.listing.caption(row)


class Ids(RowSequence[str]):
    """Video ids of some rows of a listing."""

    def __init__(self, listing: Listing, rows_R: Tensor) -> None:
        super().__init__(rows_R)
        self.listing = listing

    def at(self, row: int) -> str:
        return self.listing.video_id(row)


class Texts(RowSequence[str]):
    """Captions of some rows of a listing, only their words."""

    def __init__(self, listing: Listing, rows_R: Tensor) -> None:
        super().__init__(rows_R)
        self.listing = listing

    def at(self, row: int) -> str:
        return self.listing.captions[row]
