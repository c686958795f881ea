"""Own data: a folder of videos and one csv or jsonl file of captions."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.datamodule import RetrievalDataModule
from src.data.splits import PARTS, by_hash
from src.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".gif", ".mpg", ".mpeg", ".ts", ".flv", ".wmv")
CAPTION_FILES = ("captions.csv", "captions.tsv", "captions.jsonl")

LAYOUT = "a folder with the videos and captions.csv (header: video,caption and optionally split; one caption per row)"


@dataclass(frozen=True)
class Row:
    """One row of the caption file; `line` is its line number, for messages."""

    line: int
    values: Mapping[str, Any]


@dataclass(eq=False, kw_only=True, repr=False)
class FolderDataModule(RetrievalDataModule):
    """Any folder of videos with captions.

    Attributes:
        data_dir: the folder; paths in the video column are relative to it.
        captions_file: caption file, relative to the folder; null = captions.csv, .tsv or .jsonl.
        video_column: column with the path of the video; a name without extension is looked up among the known ones.
        caption_column: column with the caption; in jsonl it may be a list of captions.
        split_column: column with train, val or test; used when the file has it.
        ratios: shares of train, val and test videos when there is no split column. Which video goes where follows
            from the hash of its name alone.
        tag_columns: columns that become tags of the video, for filters and metrics per tag.
    """

    data_dir: str
    captions_file: str | None = None
    video_column: str = "video"
    caption_column: str = "caption"
    split_column: str = "split"
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
    tag_columns: tuple[str, ...] = ()

    def read(self) -> Annotation:
        root = Path(self.data_dir).expanduser()
        if not root.is_dir():
            raise UserError(f"dataset.data_dir={root} is not a folder; expected {LAYOUT}")
        path = _caption_file(root, self.captions_file)
        rows = list(read_rows(path))
        if not rows:
            raise UserError(f"{path} has no rows, expected at least one caption")
        has_split = self._check_columns(path, rows)
        videos: dict[str, VideoRecord] = {}
        captions: list[CaptionRecord] = []
        # Ordered ids per part; a video that rows put into two parts is found by the split's own check.
        members: dict[str, dict[str, None]] = {part: {} for part in PARTS}
        files = _FileIndex(root)
        for row in rows:
            video_id = self._video_id(path, row)
            if video_id not in videos:
                tags = tuple((column, _text(row.values[column])) for column in self.tag_columns)
                videos[video_id] = VideoRecord(video_id, files.claim(path, row, video_id), tags=tags)
            captions += [CaptionRecord(video_id, text) for text in self._captions(path, row)]
            if has_split:
                members[self._part(path, row)][video_id] = None
        by_column = {part: tuple(ids) for part, ids in members.items() if ids}
        splits = by_column if has_split else by_ratios(list(videos), self.ratios)
        return Annotation(tuple(videos.values()), tuple(captions), splits | {"all": tuple(videos)})

    def _check_columns(self, path: Path, rows: Sequence[Row]) -> bool:
        """Whether the file has a split column; UserError when a needed column is missing anywhere."""
        found = list(rows[0].values)
        has_split = self.split_column in found
        needed = [self.video_column, self.caption_column, *self.tag_columns]
        for row in rows:
            missing = [column for column in needed + [self.split_column] * has_split if column not in row.values]
            if missing:
                raise UserError(
                    f"{path}, line {row.line}: found columns {', '.join(row.values)}; expected also "
                    f"{', '.join(missing)}; add it, or name yours with dataset.{_option(missing[0], self)}=COLUMN"
                )
        return has_split

    def _video_id(self, path: Path, row: Row) -> str:
        name = _text(row.values[self.video_column]).strip().replace("\\", "/")
        if not name:
            raise UserError(f"{path}, line {row.line}: the {self.video_column} column is empty, expected a path")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"{path}, line {row.line}: found {name!r}, expected a path inside {self.data_dir}")
        return PurePosixPath(name).as_posix()

    def _part(self, path: Path, row: Row) -> str:
        part = _text(row.values[self.split_column]).strip()
        if part not in PARTS:
            raise UserError(
                f"{path}, line {row.line}: found split {part!r}, expected one of {', '.join(PARTS)}; "
                "write one of these, or name another column with dataset.split_column=COLUMN"
            )
        return part

    def _captions(self, path: Path, row: Row) -> list[str]:
        value = row.values[self.caption_column]
        texts = value if isinstance(value, list) else [value]
        if not all(text is None or isinstance(text, str) for text in texts):
            raise UserError(f"{path}, line {row.line}: {self.caption_column} is {value!r}, expected text")
        return [text or "" for text in texts]


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a csv, tsv or jsonl file.

    Raises:
        UserError: the file is not UTF-8, not of its format, or has a row of another length than the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            yield from _jsonl_rows(path, handle) if path.suffix == ".jsonl" else _csv_rows(path, handle)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def by_ratios(ids: Sequence[str], ratios: Sequence[float]) -> dict[str, tuple[str, ...]]:
    """Divide video ids into train, val and test.

    Args:
        ids: video ids; their order does not matter for which id goes where.
        ratios: share of each part; 0 leaves the part out.

    Returns:
        Part -> ids in the given order; every part with a positive ratio has at least one.

    Raises:
        UserError: the ratios are no shares, or there are fewer videos than parts.
    """
    if len(ratios) != len(PARTS) or min(ratios) < 0 or abs(sum(ratios) - 1) > 1e-6:
        raise UserError(f"dataset.ratios={list(ratios)}, expected three shares that add up to 1, as [0.8,0.1,0.1]")
    shares = {part: ratio for part, ratio in zip(PARTS, ratios, strict=True) if ratio > 0}
    if len(ids) < len(shares):
        raise UserError(f"found {len(ids)} videos for {len(shares)} parts; add videos or set dataset.ratios=[0,0,1]")
    counts = {part: max(1, round(len(ids) * ratio)) for part, ratio in shares.items()}
    largest = max(counts, key=lambda part: counts[part])
    counts[largest] += len(ids) - sum(counts.values())
    ordered = by_hash(ids)
    splits, start = {}, 0
    for part, count in counts.items():
        chosen = set(ordered[start : start + count])
        splits[part] = tuple(video_id for video_id in ids if video_id in chosen)
        start += count
    return splits


class _FileIndex:
    """Finds the file of a name; lists each folder once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[Path, dict[str, Path]] = {}
        self._names: dict[Path, str] = {}

    def claim(self, captions_file: Path, row: Row, name: str) -> Path:
        """The file of a new name; two names of one file would be two videos that nothing can tell apart."""
        file = self.find(name)
        other = self._names.setdefault(file, name)
        if other != name:
            raise UserError(
                f"{captions_file}, line {row.line}: {name!r} and {other!r} above are the same file {file.name}, "
                "expected one name for each video; write it the same way in all rows"
            )
        return file

    def find(self, name: str) -> Path:
        """The file itself, or the one with a known extension added; where it was expected when there is none."""
        path = self.root / name
        by_name = self._list(path.parent)
        for candidate in (path.name, *(path.name + suffix for suffix in VIDEO_SUFFIXES)):
            if candidate in by_name:
                return by_name[candidate]
        return path

    def _list(self, folder: Path) -> dict[str, Path]:
        if folder not in self._listed:
            entries = folder.iterdir() if folder.is_dir() else ()
            self._listed[folder] = {entry.name: entry for entry in entries}
        return self._listed[folder]


def _caption_file(root: Path, name: str | None) -> Path:
    candidates = [root / name] if name else [root / candidate for candidate in CAPTION_FILES]
    for path in candidates:
        if path.is_file():
            return path
    expected = " or ".join(candidate.name for candidate in candidates)
    raise UserError(f"no {expected} in {root}; expected {LAYOUT}; another name: dataset.captions_file=FILE")


def _csv_rows(path: Path, handle: Any) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(handle, delimiter="\t" if path.suffix == ".tsv" else ",")
    try:
        header = [column.strip() for column in next(reader, [])]
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: found {len(values)} values, expected {len(header)} "
                    f"({', '.join(header)}); put quotes around texts that hold the separator"
                )
            yield Row(reader.line_num, dict(zip(header, values, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; expected comma-separated values") from error


def _jsonl_rows(path: Path, handle: Any) -> Iterator[Row]:
    for number, line in enumerate(handle, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: no JSON ({error.msg}); expected one object per line") from error
        if not isinstance(values, dict):
            raise UserError(f"{path}, line {number}: found {type(values).__name__}, expected a JSON object")
        yield Row(number, values)


def _option(column: str, module: FolderDataModule) -> str:
    """The option that names a column."""
    names = {module.video_column: "video_column", module.caption_column: "caption_column"}
    return names.get(column, "tag_columns")


def _text(value: object) -> str:
    return "" if value is None else str(value)
