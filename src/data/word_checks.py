"""What can be wrong with the OCR of a data set: no folder, missing files, damaged ones, files without words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from src.data.annotation import VideoRecord
from src.data.checks import Finding, Severity
from src.data.ocr import ocr_format
from src.data.ocr_files import OcrReader, open_ocr
from src.errors import UserError


def find_in_words(
    folder: Path | None, lists: Mapping[str, Sequence[VideoRecord]], *, read_all: bool = False
) -> tuple[list[Finding], dict[str, int]]:
    """Compare the OCR folder with the videos of every part.

    Args:
        folder: of the OCR; without it there is nothing to say, unless the data set itself names OCR files.
        lists: part -> its videos.
        read_all: also read every file.

    Returns:
        Findings, and part -> number of videos with OCR; no numbers where there is no OCR at all.
    """
    named = any(record.ocr is not None for records in lists.values() for record in records)
    if folder is None or not folder.is_dir():
        if not named:
            return [], {}
        reason = f"dataset.ocr_dir={folder} is not a folder"
        return [Finding("note", "missing OCR file", part, (reason,)) for part, records in lists.items() if records], {}
    try:
        reader = open_ocr(folder)
    except UserError as error:
        return [Finding("error", "no usable OCR", "dataset.ocr_dir", (str(error),))], {}
    findings: list[Finding] = []
    counts: dict[str, int] = {}
    for part, records in lists.items():
        lacking = [record for record in records if reader.where(record) is None]
        counts[part] = len(records) - len(lacking)
        missing = [f"{record.id} at {reader.expected(record)}" for record in lacking]
        findings += _some("note", "missing OCR file", part, missing)
        if read_all:
            findings += _contents(part, reader, records)
    return findings, counts


def _contents(part: str, reader: OcrReader, records: Sequence[VideoRecord]) -> list[Finding]:
    """Damaged files, and those of which no word is left under the default rule."""
    damaged: list[str] = []
    empty: list[str] = []
    for record in records:
        if reader.where(record) is None:
            continue
        try:
            tracks = reader.read(record).tracks
        except UserError as error:
            damaged.append(f"{record.id}: {error}")
            continue
        if not ocr_format(tracks).words:
            empty.append(record.id)
    return _some("error", "damaged OCR file", part, damaged) + _some("note", "OCR without words", part, empty)


def _some(severity: Severity, kind: str, where: str, items: Sequence[str]) -> list[Finding]:
    return [Finding(severity, kind, where, tuple(items))] if items else []
