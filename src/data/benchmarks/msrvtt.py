"""MSR-VTT: 10,000 web clips with 20 captions each, and the splits in use."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.benchmarks.published import PublishedDataModule, read_lines, read_text
from src.data.caption_files import caption_file, read_captions
from src.data.pickles import load_plain
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
# Lists that only the feature archives of Dual Encoding have, in their caption files: collection and part.
DUAL = {
    "val_1kb": ("msrvtt10kmiech", "val"),
    "train_yu": ("msrvtt10kyu", "train"),
    "val_yu": ("msrvtt10kyu", "val"),
    "test_yu": ("msrvtt10kyu", "test"),
}
LISTS |= {name: (f"{collection}{part}.caption.txt",) for name, (collection, part) in DUAL.items()}
# Id list without sentences -> pickle that says which caption of each video is the query.
CAPTION_INDEX = {"val_list_jsfusion.txt": "jsfusion_val_caption_idx.pkl"}
# Lists that the "split" field of the annotation itself defines.
FIELDS = {
    "train_full": ("train",),
    "val_full": ("validate",),
    "test_full": ("test",),
    "train_7k": ("train", "validate"),
}
CAPTION_FILE = ".caption.txt"

STEPS = (
    "get the MSR-VTT videos and train_val_annotation.zip + test_videodatainfo.json.zip (or MSRVTT_data.json), and the "
    "split csv files of CLIP4Clip (msrvtt10k*.caption.txt: in the feature archives of Dual Encoding); expected layout: "
    "DATA/msrvtt/annotations/*.{zip,json,csv,txt} and DATA/msrvtt/videos/video0.mp4 …"
)


@dataclass(eq=False, kw_only=True, repr=False)
class MsrvttDataModule(PublishedDataModule):
    """MSR-VTT from the published annotation files (zipped or not); videos are <video id>.mp4 or .webm.

    Source: facts of the files in CLIP4Clip@master `dataloaders/dataloader_msrvtt_retrieval.py` and
        collaborative-experts@master `data_loader/MSRVTT_dataset.py`; lists of the Yu split as Dual Encoding
        (danieljf24/hybrid_space) lays out its archives.
    """

    steps: ClassVar[str] = STEPS

    def read(self) -> Annotation:
        documents = self._read_documents()
        # category.txt comes with the train archive only.
        categories = {number: name for document in documents for number, name in document["categories"].items()}
        files = self.find_videos()
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
        splits, paired = self._read_lists(captions, by_field)
        return Annotation(tuple(videos), tuple(captions), splits, paired)

    def _read_documents(self) -> list[dict[str, Any]]:
        """The annotation as one merged document or as the two of the original release."""
        merged = self.find(MERGED)
        if merged is not None:
            return [_read_document(merged)]
        parts = [(self.find(names), names) for names in (TRAIN_VAL, TEST)]
        missing = [" or ".join(names) for path, names in parts if path is None]
        if missing:
            raise UserError(f"no {' and no '.join(missing)} in {self.folder}, nor {MERGED[0]}; {self.advice}")
        return [_read_document(path) for path, _ in parts if path is not None]

    def _read_lists(
        self, captions: Sequence[CaptionRecord], by_field: dict[str, list[str]]
    ) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[CaptionRecord, ...]]]:
        """The id lists that the split names, and the captions that come with them (1k-A)."""
        splits: dict[str, tuple[str, ...]] = {}
        paired: dict[str, tuple[CaptionRecord, ...]] = {}
        for part, name in self.split.parts.items():
            path = self._list_file(name)
            if path is not None:
                rows = _list_rows(path)
                ids = [row["video_id"] for row in rows]
                # A caption file names a video once for each of its captions; a list may not.
                splits[name] = tuple(dict.fromkeys(ids) if path.name.endswith(CAPTION_FILE) else ids)
                if rows and "sentence" in rows[0]:
                    paired[name] = tuple(CaptionRecord(row["video_id"], row["sentence"]) for row in rows)
                elif path.name in CAPTION_INDEX and (path.parent / CAPTION_INDEX[path.name]).is_file():
                    index = path.parent / CAPTION_INDEX[path.name]
                    paired[name] = _indexed(index, splits[name], captions)
            elif all(by_field.get(value) for value in FIELDS.get(name, ("",))):
                splits[name] = tuple(video_id for value in FIELDS[name] for video_id in by_field[value])
            elif name in LISTS:
                raise UserError(
                    f"split {self.split.name!r} ({part}) needs {' or '.join(LISTS[name])}, "
                    f"not found in {self.folder}; {self.advice}"
                )
        return splits, paired

    def _list_file(self, name: str) -> Path | None:
        """The first file that publishes a list."""
        if name in DUAL:
            return caption_file(self.folder, *DUAL[name])
        return self.find(LISTS.get(name, ()))


def _read_document(path: Path) -> dict[str, Any]:
    """`videos`, `sentences` and `categories` (number -> name) of one annotation file, zipped or not."""
    try:
        text, categories = _read_texts(path)
        document = json.loads(text)
    except (zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); expected the published file, fetch it again") from error
    if not isinstance(document, dict) or not {"videos", "sentences"} <= set(document):
        raise UserError(f'{path} has no "videos" and "sentences", expected the published annotation')
    for name, keys in (("videos", {"video_id"}), ("sentences", {"video_id", "caption"})):
        for entry in document[name]:
            if not isinstance(entry, dict) or not keys <= set(entry):
                raise UserError(
                    f"{path}: {name} has {str(entry)[:60]!r}, expected {' and '.join(sorted(keys))}; "
                    "use the published annotation"
                )
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
    """Rows with at least `video_id`: of a csv with a header, of a txt with one id per line, or of a caption file."""
    if path.name.endswith(CAPTION_FILE):
        return [{"video_id": line.video_id, "sentence": line.text} for line in read_captions(path)]
    if path.suffix == ".txt":
        return [{"video_id": line} for line in read_lines(path)]
    rows = list(csv.DictReader(io.StringIO(read_text(path))))
    if rows and "video_id" not in rows[0]:
        raise UserError(f"{path} has columns {', '.join(rows[0])}, expected video_id; use the published file")
    if any(value is None for row in rows for value in row.values()):
        raise UserError(f"{path} has a row that ends too early; fetch the published file again")
    return rows


def _indexed(path: Path, ids: Sequence[str], captions: Sequence[CaptionRecord]) -> tuple[CaptionRecord, ...]:
    """The caption of each video that a pickle (video id -> position among its captions) points at."""
    index = load_plain(path)
    of_video: defaultdict[str, list[CaptionRecord]] = defaultdict(list)
    for caption in captions:
        of_video[caption.video_id].append(caption)
    chosen: list[CaptionRecord] = []
    for video_id in ids:
        position = index.get(video_id) if isinstance(index, dict) else None
        if not isinstance(position, int) or not 0 <= position < len(of_video[video_id]):
            raise UserError(
                f"{path}: {video_id} has {position!r}, expected the position of one of its "
                f"{len(of_video[video_id])} captions; use the published file"
            )
        chosen.append(of_video[video_id][position])
    return tuple(chosen)
