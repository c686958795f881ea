"""Where the OCR of a data set lies: a folder of Kwai files, or the feature store of `extractor=ocr`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from src.data.annotation import VideoRecord
from src.data.features.store import MANIFEST, PLAN, FeatureStore
from src.data.ocr import OcrTrack, load_kwai, parse_kwai
from src.data.video import VideoShape
from src.errors import UserError

SHAPE_KEY = "video"  # of each track: [width, height, num_frames, start], in the files that `extractor=ocr` writes
NO_TEXT = "no text"  # the store's reason for a video that was read and shows none


class OcrDocument(NamedTuple):
    """What was read in one video.

    Attributes:
        tracks: in the order of the file.
        shape: of the video that was read; None where the document does not say (published files).
    """

    tracks: tuple[OcrTrack, ...]
    shape: VideoShape | None


class OcrReader(Protocol):
    """Finds and reads the OCR of a video; travels to the loader's workers."""

    folder: Path

    def where(self, record: VideoRecord) -> str | None:
        """The file, for messages; None = the video has no OCR."""
        ...

    def expected(self, record: VideoRecord) -> str:
        """Where it would be found, for messages."""
        ...

    def read(self, record: VideoRecord) -> OcrDocument:
        """Read what `where` names.

        Raises:
            UserError: it is damaged.
        """
        ...


def open_ocr(folder: Path) -> OcrReader:
    """The reader of a folder, by what the folder holds.

    Raises:
        UserError: there is no such folder, or it is a store of other features.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    if (folder / MANIFEST).is_file() or (folder / PLAN).is_file():
        return OcrStore(folder)
    return OcrFolder(folder)


class OcrFolder:
    """Kwai files: the file that the data set names for the video, else `<key>.json`; keys may hold folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def where(self, record: VideoRecord) -> str | None:
        path = self._find(record)
        return None if path is None else str(path)

    def expected(self, record: VideoRecord) -> str:
        return str(self.folder / (record.ocr or f"{record.key}.json"))

    def read(self, record: VideoRecord) -> OcrDocument:
        path = self._find(record)
        if path is None:
            raise UserError(f"no OCR file {self.expected(record)}; write it with task=extract extractor=ocr")
        try:
            document = load_kwai(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); fetch it again") from error
        return OcrDocument(parse_kwai(document, str(path)), _noted_shape(document))

    def _find(self, record: VideoRecord) -> Path | None:
        for name in (record.ocr, f"{record.key}.json"):
            # Ids come from files of others: they must not lead out of the folder.
            if name is None or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                continue
            path = self.folder / name
            if path.exists():
                return path
        return None


class OcrStore:
    """The details of a feature store: the video's Kwai document, and the size and span that were read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = FeatureStore.open(folder)
        recipe = self.store.recipe.get("extractor")
        made_by = recipe.get("extractor") if isinstance(recipe, dict) else None
        if made_by != "ocr":
            raise UserError(
                f"{folder}: found a feature store of {made_by or 'other origin'}, expected one of extractor=ocr; "
                "set dataset.ocr_dir to a folder of OCR files or to such a store"
            )

    def where(self, record: VideoRecord) -> str | None:
        has = record.key in self.store or self.store.missing.get(record.key) == NO_TEXT
        return self.expected(record) if has else None

    def expected(self, record: VideoRecord) -> str:
        return f"{self.folder}, item {record.key!r}"

    def read(self, record: VideoRecord) -> OcrDocument:
        try:
            details = self.store.details(record.key)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.expected(record)} cannot be read ({error}); make the store again") from error
        if details is None or not isinstance(details.get("kwai"), dict):
            if self.store.missing.get(record.key) == NO_TEXT:
                return OcrDocument((), None)
            raise UserError(f"{self.expected(record)} holds no OCR document; make the store again with extractor=ocr")
        document = _in_order(details["kwai"])
        return OcrDocument(parse_kwai(document, self.expected(record)), _noted_shape(document))


def _in_order(document: dict[str, Any]) -> dict[str, Any]:
    """Tracks and frames by number, as the file has them: a store sorts all keys as text, "157" before "22"."""
    return {
        name: track | {"tracks": dict(sorted(track["tracks"].items(), key=_number))}
        if isinstance(track, dict) and isinstance(track.get("tracks"), dict)
        else track
        for name, track in sorted(document.items(), key=_number)
    }


def _number(item: tuple[str, Any]) -> tuple[int, str]:
    return int(item[0]) if item[0].isdecimal() and len(item[0]) < 20 else 0, item[0]


def _noted_shape(document: Any) -> VideoShape | None:
    """The shape that the first track notes; None without tracks, or in files of others."""
    for track in document.values():
        noted = track.get(SHAPE_KEY) if isinstance(track, dict) else None
        if isinstance(noted, list) and len(noted) == 4 and all(type(number) is int for number in noted):
            return VideoShape(*noted) if min(noted[:3]) > 0 else None
        return None
    return None
