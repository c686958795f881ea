"""TextVR: 10,500 web videos with text in the picture, in eight domains, and the OCR files that come with them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.benchmarks.published import PublishedDataModule, read_json
from src.data.checks import Finding
from src.errors import UserError

TRAIN, TEST, SCRAMBLED = "TextVR_train.json", "TextVR_test.json", "TextVR_test_rand.json"
# SHA-256 of the captions and of the paths of the published test file, one a line: what tells its scrambled copy,
# which has the same captions, under whatever name.
TEST_CAPTIONS = "04d5c4995f2b513522501f4a44fbcdb2ec31ffbc0da07a37fcb9c4191f9a5325"
TEST_PATHS = "a6825b34ae8b2a83595ba04a506106008894426cb31c7f16d74e3955c71c6816"
VIDEO_FOLDERS = ("Video", "Videos")  # the code reads the first, the README names the second

Entry = dict[str, Any]


@dataclass(eq=False, kw_only=True, repr=False)
class TextvrDataModule(PublishedDataModule):
    """TextVR in the authors' folder.

    A video's id is its path without extension (`Cooking/xyz`); its domain is the tag "domain". `ocr_files` says where
    each video's OCR file is expected: the file may stand under another domain than the video.

    Attributes:
        ocr_dir: folder with <domain>/<id>.json.

    Source: facts of the files of callsys/TextVR@ae16786.
    Deviates: upstream selects on TextVR_test_rand.json, whose videos do not belong to their captions; it is refused.
    """

    ocr_dir: str
    ocr_files: dict[str, Path] = field(default_factory=dict, init=False)

    steps: ClassVar[str] = (
        "get the annotations, the resized videos (5.4 GB) and Kwai_VideoOCR from the links of "
        "https://github.com/callsys/TextVR (Google or Baidu drive, by hand); expected layout: "
        "DATA/textvr/{TextVR_train.json,TextVR_test.json}, DATA/textvr/Video/<domain>/<id>.mp4 (or Videos/) and "
        "DATA/textvr/Kwai_VideoOCR/<domain>/<id>.json; set dataset.annotations_dir=, dataset.videos_dir= and "
        "dataset.ocr_dir= if yours is another; without the train file: split=textvr_test"
    )

    def read(self) -> Annotation:
        videos: dict[str, VideoRecord] = {}
        captions: list[CaptionRecord] = []
        splits: dict[str, tuple[str, ...]] = {}
        root = self._video_root()
        for name, path in (("train", self.need((TRAIN,), "train")), ("test", self._test_file())):
            if path is None:
                continue
            entries = _read_entries(path)
            if name == "test":
                self._refuse_scrambled(path, entries)
            ids = []
            for entry in entries:
                file = PurePosixPath(entry["path"])
                video_id = str(file.with_suffix(""))
                ids.append(video_id)
                # A video listed twice is found by the split's own check.
                videos[video_id] = VideoRecord(video_id, root / file, tags=(("domain", file.parts[0]),))
                captions += [CaptionRecord(video_id, str(info["caption"])) for info in entry["captions_info"]]
                self.ocr_files[video_id] = Path(self.ocr_dir).expanduser() / entry["videos_info"]["Kwai_OCR"]
            splits[name] = tuple(ids)
        return Annotation(tuple(videos.values()), tuple(captions), splits)

    def describe(self, part: str = "test") -> dict[str, Any]:
        """Protocol facts, with the number of videos that have no OCR file."""
        ids = [video.id for video in self.part(part).videos]
        return super().describe(part) | {"without_ocr": len(self.without_ocr(ids))}

    def own_findings(self) -> list[Finding]:
        """Videos without OCR file, per part: their word list is empty."""
        splits = self.read().splits
        lists = {part: splits.get(name, ()) for part, name in self.split.parts.items()}
        return [
            Finding("note", "missing OCR file", part, tuple(f"{i} at {self.ocr_files[i]}" for i in lacking))
            for part, ids in lists.items()
            if (lacking := self.without_ocr(ids))
        ]

    def without_ocr(self, ids: Sequence[str]) -> list[str]:
        """Those of the videos that have no OCR file."""
        return [video_id for video_id in ids if not self.ocr_files[video_id].is_file()]

    def _video_root(self) -> Path:
        """videos_dir itself where it has the domains, else its folder Video or Videos.

        Raises:
            UserError: there is no such folder though every file is wanted.
        """
        _ = self.folder  # without annotation, that is what to get first
        root = Path(self.videos_dir).expanduser()
        found = next((root / name for name in VIDEO_FOLDERS if (root / name).is_dir()), root)
        optional = self.inputs.frames is None or self.cache == "disk" or self.split.subset == "available"
        if not optional and not found.is_dir():
            raise UserError(f"dataset.videos_dir={root} is not a folder; {self.advice}")
        return found

    def _test_file(self) -> Path | None:
        if self.find((TEST,)) is None and self.find((SCRAMBLED,)) is not None and "test" in self.split.parts.values():
            raise UserError(_refusal(self.folder / SCRAMBLED))
        return self.need((TEST,), "test")

    def _refuse_scrambled(self, path: Path, entries: Sequence[Entry]) -> None:
        """Raise UserError when the test file is the scrambled one under another name."""
        captions, paths = _captions(entries), [entry["path"] for entry in entries]
        if _digest(captions) == TEST_CAPTIONS and _digest(paths) != TEST_PATHS:
            raise UserError(_refusal(path))


def _captions(entries: Sequence[Entry]) -> list[str]:
    return [str(info["caption"]) for entry in entries for info in entry["captions_info"]]


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _refusal(path: Path) -> str:
    return (
        f"{path} pairs captions with the wrong videos (the videos of {SCRAMBLED} are shuffled, so every metric is at "
        f"chance: R@1 0.0, median rank 1390), expected {TEST}; get it from the TextVR repository"
    )


def _read_entries(path: Path) -> list[Entry]:
    """The entries of one file, checked as far as they are used.

    Raises:
        UserError: an entry is of another layout.
    """
    entries: list[Entry] = read_json(path, list)
    for number, entry in enumerate(entries):
        problem = _problem(entry)
        if problem:
            raise UserError(f"{path}, entry {number}: {problem}; use the published file")
    return entries


def _problem(entry: object) -> str | None:
    if not isinstance(entry, dict) or not {"path", "captions_info", "videos_info"} <= set(entry):
        return "expected an object with path, captions_info and videos_info"
    parts = PurePosixPath(str(entry["path"])).parts
    if len(parts) != 2 or ".." in parts or parts[0] == "/":
        return f"found path {entry['path']!r}, expected <domain>/<file>"
    infos = entry["captions_info"]
    if not isinstance(infos, list) or not all(isinstance(info, dict) and "caption" in info for info in infos):
        return "captions_info is no list of captions"
    ocr = entry["videos_info"].get("Kwai_OCR") if isinstance(entry["videos_info"], dict) else None
    if not isinstance(ocr, str) or PurePosixPath(ocr).is_absolute() or ".." in PurePosixPath(ocr).parts:
        return f"found Kwai_OCR {ocr!r}, expected <domain>/<file>.json"
    return None
