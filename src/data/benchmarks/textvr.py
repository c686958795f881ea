"""TextVR: 10,500 web videos with text in the picture, in eight domains, and the OCR files that come with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.benchmarks.published import PublishedDataModule, read_json
from src.errors import UserError

TRAIN, TEST, SCRAMBLED = "TextVR_train.json", "TextVR_test.json", "TextVR_test_rand.json"
# SHA-256 of the sorted captions of the published test file and of its sorted pairs `<video id>\t<caption>`, one a line:
# what tells its scrambled copy, which has the same captions, under whatever name and in whatever order.
TEST_CAPTIONS = "b223f2bc51201409c064a8e5e798697b2b2121f75e28db88023a828955d0f4ef"
TEST_PAIRS = "0e35c389df4954a3aac22b10876a7403f88a7a909b9d4d74dd24ba243dfecb5c"
VIDEO_FOLDERS = ("Video", "Videos")  # the code reads the first, the README names the second

Entry = dict[str, Any]


@dataclass(eq=False, kw_only=True, repr=False)
class TextvrDataModule(PublishedDataModule):
    """TextVR in the authors' folder.

    A video's id is its path without extension (`Cooking/xyz`); its domain is the tag "domain". Its OCR file may stand
    under another domain than the video; one of `task=extract extractor=ocr` stands under the id.

    Source: facts of the files of callsys/TextVR@ae16786.
    Deviates: upstream selects on TextVR_test_rand.json, whose videos do not belong to their captions; it is refused.
    """

    steps: ClassVar[str] = (
        "get the annotations, the resized videos (5.4 GB) and Kwai_VideoOCR from the links of "
        "https://github.com/callsys/TextVR (Google or Baidu drive, by hand); expected layout: "
        "DATA/textvr/{TextVR_train.json,TextVR_test.json}, DATA/textvr/Video/<domain>/<id>.mp4 (or Videos/) and "
        "DATA/textvr/Kwai_VideoOCR/<domain>/<id>.json; set dataset.annotations_dir=, dataset.videos_dir= and "
        "dataset.ocr_dir= if yours is another; without the train file: split=textvr_test"
    )

    def read(self) -> Annotation:
        self._refuse_by_name()
        videos: dict[str, VideoRecord] = {}
        captions: list[CaptionRecord] = []
        splits: dict[str, tuple[str, ...]] = {}
        root = self._video_root()
        for name, path in (("train", self.need((TRAIN,), "train")), ("test", self._test_file())):
            if path is None:
                continue
            entries = _read_entries(path)
            _refuse_scrambled(path, entries)
            ids = []
            for entry in entries:
                file = PurePosixPath(entry["path"])
                video_id = _video_id(entry["path"])
                ids.append(video_id)
                # A video listed twice is found by the split's own check.
                domain, ocr = file.parts[0], str(entry["videos_info"]["Kwai_OCR"])
                videos[video_id] = VideoRecord(video_id, root / file, tags=(("domain", domain),), ocr=ocr)
                captions += [CaptionRecord(video_id, str(info["caption"])) for info in entry["captions_info"]]
            splits[name] = tuple(ids)
        return Annotation(tuple(videos.values()), tuple(captions), splits)

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

    def _refuse_by_name(self) -> None:
        """Raise UserError when the scrambled file is asked for as annotation or as a list of the split."""
        path, scrambled = Path(self.annotations_dir).expanduser(), PurePosixPath(SCRAMBLED).stem.casefold()
        wanted = {str(name).casefold() for name in self.split.parts.values()}
        if path.name.casefold() == SCRAMBLED.casefold():
            raise UserError(_refusal(path))
        if wanted & {scrambled, f"{scrambled}.json", "test_rand"}:
            raise UserError(_refusal(path / SCRAMBLED))


def _refuse_scrambled(path: Path, entries: Sequence[Entry]) -> None:
    """Raise UserError when a file is the scrambled one under another name, as test or as train file."""
    pairs = [(_video_id(entry["path"]), str(info["caption"])) for entry in entries for info in entry["captions_info"]]
    known = _digest(caption for _, caption in pairs) == TEST_CAPTIONS
    if known and _digest("\t".join(pair) for pair in pairs) != TEST_PAIRS:
        raise UserError(_refusal(path))


def _video_id(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogatepass")).hexdigest()


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
