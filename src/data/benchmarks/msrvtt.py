"""MSR-VTT: 10,000 web clips with 20 captions each, and the four splits in use."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.datamodule import RetrievalDataModule
from src.errors import UserError

# Annotation files by preference: the merged one, or the two of the original release; each plain or zipped.
MERGED = ("MSRVTT_data.json", "MSRVTT_data.json.zip", "MSRVTT_data.zip", "msrvtt_data.zip")
TRAIN_VAL = ("train_val_videodatainfo.json", "train_val_annotation.zip")
TEST = ("test_videodatainfo.json", "test_videodatainfo.json.zip")

# Id list -> files that publish it: csv of CLIP4Clip, txt of collaborative-experts.
LISTS = {
    "train_full": ("MSRVTT_train.full.csv", "train_list_full.txt"),
    "val_full": ("MSRVTT_val.full.csv", "val_list_full.txt"),
    "test_full": ("MSRVTT_test.full.csv", "test_list_full.txt"),
    "train_9k": ("MSRVTT_train.9k.csv", "train_list_jsfusion.txt"),
    "train_7k": ("MSRVTT_train.7k.csv",),
    "test_1ka": ("MSRVTT_JSFUSION_test.csv", "val_list_jsfusion.txt"),
    "train_1kb": ("train_list_miech.txt",),
    "test_1kb": ("test_list_miech.txt",),
}
# Lists that the "split" field of the annotation itself defines.
FIELDS = {
    "train_full": ("train",),
    "val_full": ("validate",),
    "test_full": ("test",),
    "train_7k": ("train", "validate"),
}
SUFFIXES = (".mp4", ".webm", ".avi", ".mkv")

STEPS = (
    "get the MSR-VTT videos and train_val_annotation.zip + test_videodatainfo.json.zip (or MSRVTT_data.json), and the "
    "split csv files of CLIP4Clip; expected layout: DATA/msrvtt/annotations/*.{zip,json,csv,txt} and "
    "DATA/msrvtt/videos/video0.mp4 …; set dataset.annotations_dir= and dataset.videos_dir= if yours is another"
)


@dataclass(eq=False, kw_only=True, repr=False)
class MsrvttDataModule(RetrievalDataModule):
    """MSR-VTT from the published annotation files.

    Attributes:
        annotations_dir: folder with the annotation and split files, as published (zipped or not).
        videos_dir: folder with <video id>.mp4 (or .webm, …), at any depth.

    Source: facts of the files in CLIP4Clip@master `dataloaders/dataloader_msrvtt_retrieval.py` and
        collaborative-experts@master `data_loader/MSRVTT_dataset.py`.
    """

    annotations_dir: str
    videos_dir: str

    def read(self) -> Annotation:
        folder = Path(self.annotations_dir).expanduser()
        if not folder.is_dir():
            raise UserError(f"dataset.annotations_dir={folder} is not a folder; {STEPS}")
        documents = _read_documents(folder)
        # category.txt comes with the train archive only.
        categories = {number: name for document in documents for number, name in document["categories"].items()}
        files = self._video_files()
        videos: list[VideoRecord] = []
        captions: list[CaptionRecord] = []
        by_field: dict[str, list[str]] = {}
        for document in documents:
            for video in document["videos"]:
                video_id = str(video["video_id"])
                path = files.get(video_id, Path(self.videos_dir) / f"{video_id}.mp4")
                category = categories.get(video.get("category"))
                videos.append(VideoRecord(video_id, path, tags=(("category", category),) if category else ()))
                by_field.setdefault(str(video.get("split")), []).append(video_id)
            captions += [CaptionRecord(str(s["video_id"]), str(s["caption"])) for s in document["sentences"]]
        splits, paired = self._read_lists(folder, by_field)
        return Annotation(tuple(videos), tuple(captions), splits, paired)

    def _video_files(self) -> dict[str, Path]:
        """Video id -> file; mp4 wins where a video exists in several formats."""
        root = Path(self.videos_dir).expanduser()
        if self.inputs.frames is None:
            return {}
        if not root.is_dir():
            if self.cache == "disk" or self.split.subset == "available":
                return {}
            raise UserError(f"dataset.videos_dir={root} is not a folder; {STEPS}")
        found = [path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES]
        found.sort(key=lambda path: SUFFIXES.index(path.suffix.lower()), reverse=True)
        return {path.stem: path for path in found}

    def _read_lists(
        self, folder: Path, by_field: dict[str, list[str]]
    ) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[CaptionRecord, ...]]]:
        """The id lists that the split names, and the captions that come with them (1k-A)."""
        splits: dict[str, tuple[str, ...]] = {}
        paired: dict[str, tuple[CaptionRecord, ...]] = {}
        for part, name in self.split.parts.items():
            path = next((folder / file for file in LISTS.get(name, ()) if (folder / file).is_file()), None)
            if path is not None:
                rows = _list_rows(path)
                splits[name] = tuple(row["video_id"] for row in rows)
                if rows and "sentence" in rows[0]:
                    paired[name] = tuple(CaptionRecord(row["video_id"], row["sentence"]) for row in rows)
            elif all(by_field.get(value) for value in FIELDS.get(name, ("",))):
                splits[name] = tuple(video_id for value in FIELDS[name] for video_id in by_field[value])
            elif name in LISTS:
                raise UserError(
                    f"split {self.split.name!r} ({part}) needs {' or '.join(LISTS[name])}, "
                    f"not found in {folder}; {STEPS}"
                )
        return splits, paired


def _read_documents(folder: Path) -> list[dict[str, Any]]:
    """The annotation as one merged document or as the two of the original release."""
    merged = _first(folder, MERGED)
    if merged is not None:
        return [_read_document(merged)]
    parts = [(_first(folder, names), names) for names in (TRAIN_VAL, TEST)]
    missing = [" or ".join(names) for path, names in parts if path is None]
    if missing:
        raise UserError(f"no {' and no '.join(missing)} in {folder}, nor {MERGED[0]}; {STEPS}")
    return [_read_document(path) for path, _ in parts if path is not None]


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_document(path: Path) -> dict[str, Any]:
    """`videos`, `sentences` and `categories` (number -> name) of one annotation file, zipped or not."""
    try:
        text, categories = _read_texts(path)
        document = json.loads(text)
    except (zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); expected the published file, fetch it again") from error
    if not isinstance(document, dict) or not {"videos", "sentences"} <= set(document):
        raise UserError(f'{path} has no "videos" and "sentences", expected the published annotation')
    rows = csv.reader(io.StringIO(categories), delimiter="\t")
    names = {int(row[1]): row[0] for row in rows if len(row) == 2 and row[1].strip().isdigit()}
    return document | {"categories": names}


def _read_texts(path: Path) -> tuple[str, str]:
    """The JSON text, and category.txt where the archive has it."""
    if path.suffix != ".zip":
        beside = path.parent / "category.txt"
        return path.read_text(encoding="utf-8"), beside.read_text(encoding="utf-8") if beside.is_file() else ""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.startswith("__MACOSX")]
        inside = [name for name in names if name.endswith(".json")]
        if len(inside) != 1:
            raise UserError(f"{path} holds {len(inside)} json files, expected one; fetch the published archive again")
        categories = [name for name in names if name.endswith("category.txt")]
        return archive.read(inside[0]).decode(), archive.read(categories[0]).decode() if categories else ""


def _list_rows(path: Path) -> list[dict[str, str]]:
    """Rows with at least `video_id`, of a csv with a header or of a txt with one id per line."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".txt":
        return [{"video_id": line.strip()} for line in text.splitlines() if line.strip()]
    rows = list(csv.DictReader(io.StringIO(text)))
    if rows and "video_id" not in rows[0]:
        raise UserError(f"{path} has columns {', '.join(rows[0])}, expected video_id; use the published file")
    return rows
