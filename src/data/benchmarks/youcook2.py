"""YouCook2: 1,790 cooking videos cut into 13,829 described steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.benchmarks.published import PublishedDataModule, read_ids, read_json
from src.errors import UserError

# Part -> its file of the captioning release, and its name in the file of the authors.
FILES = {"train": ("captioning_train.json", "training"), "val": ("captioning_val.json", "validation")}
WHOLE = "youcookii_annotations_trainval.json"
CE_LISTS = {"ce_train": "train_list.txt", "ce_val": "val_list.txt"}
CLIPS, VIDEOS = "_clips", "_videos"


@dataclass(frozen=True)
class _Step:
    """One described step; times in seconds."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class _Entry:
    """One video; `recipe` is the number of the dish, where the file says it."""

    video_id: str
    end_s: float
    steps: tuple[_Step, ...]
    recipe: str | None


@dataclass(eq=False, kw_only=True, repr=False)
class Youcook2DataModule(PublishedDataModule):
    """YouCook2 for clip retrieval (lists train_clips, val_clips) and paragraph retrieval (train_videos, val_videos).

    A clip is a step of a video, called <YouTube id>#<number>; its sentence is its only caption. A video's paragraph is
    all of its sentences joined by a blank. The lists ce_train and ce_val are those of collaborative-experts, which may
    name videos or clips. The published test part has no sentences, so papers report on val.

    Source: facts of the published files.
    """

    steps: ClassVar[str] = (
        "get captioning_train.json and captioning_val.json, or youcookii_annotations_trainval.json "
        "(youcook2.eecs.umich.edu), and the videos from YouTube (some are gone: split.subset=available); expected "
        "layout: DATA/youcook2/annotations/*.json and DATA/youcook2/videos/GLd3aX16zBg.mp4 …, at any depth and in any "
        "format"
    )

    def read(self) -> Annotation:
        used = set(self.split.parts.values())
        files = self.find_videos()
        videos: dict[str, VideoRecord] = {}
        captions: list[CaptionRecord] = []
        splits: dict[str, tuple[str, ...]] = {}
        for part in FILES:
            # The lists of collaborative-experts name clips or videos of either file.
            kinds = {
                kind: items
                for kind, items in ((CLIPS, _clips), (VIDEOS, _whole))
                if part + kind in used or not used.isdisjoint(CE_LISTS)
            }
            entries = self._entries(part) if kinds else []
            for kind, items in kinds.items():
                ids: list[str] = []
                for entry in entries:
                    path = files.get(entry.video_id) or Path(self.videos_dir) / f"{entry.video_id}.mp4"
                    for record, of_record in items(entry, path):
                        ids.append(record.id)
                        videos[record.id] = record
                        captions += of_record
                splits[part + kind] = tuple(ids)
        for name, file in CE_LISTS.items():
            listed = self.need((file,), name)
            if listed is not None and name in used:
                splits[name] = read_ids(listed)
        return Annotation(tuple(videos.values()), tuple(captions), splits)

    def _entries(self, part: str) -> list[_Entry]:
        """Videos of a part, from whichever file is there; the authors' one also knows the dish.

        Raises:
            UserError: neither file is there, or one is of another layout.
        """
        file, subset = FILES[part]
        path = self.find((file, WHOLE))
        if path is None:
            raise UserError(f"no {file} and no {WHOLE} in {self.folder}; {self.advice}")
        document: dict[str, Any] = read_json(path, dict)
        whole = self.find((WHOLE,))
        database: Any = read_json(whole, dict).get("database", {}) if whole else {}
        if not isinstance(database, dict):
            raise UserError(
                f'{whole}: "database" is a {type(database).__name__}, expected videos by id; use the published file'
            )
        try:
            if path.name == WHOLE:
                chosen = {name: value for name, value in database.items() if value["subset"] == subset}
                return [_from_database(name, value) for name, value in chosen.items()]
            return [_from_captions(name, value, database.get(name, {})) for name, value in document.items()]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} has an entry of another layout ({type(error).__name__}: {error}), expected duration, "
                "timestamps and sentences of each video; use the published file"
            ) from error


def _from_captions(video_id: str, value: dict[str, Any], known: dict[str, Any]) -> _Entry:
    pairs = zip(value["timestamps"], value["sentences"], strict=True)
    steps = tuple(_Step(str(text), float(start), float(end)) for (start, end), text in pairs)
    return _Entry(video_id, float(value["duration"]), steps, known.get("recipe_type"))


def _from_database(video_id: str, value: dict[str, Any]) -> _Entry:
    steps = tuple(
        _Step(str(step["sentence"]), float(step["segment"][0]), float(step["segment"][1]))
        for step in value["annotations"]
    )
    return _Entry(video_id, float(value["duration"]), steps, value.get("recipe_type"))


def _tags(entry: _Entry) -> tuple[tuple[str, str], ...]:
    return () if entry.recipe is None else (("recipe", str(entry.recipe)),)


def _clips(entry: _Entry, path: Path) -> Iterator[tuple[VideoRecord, list[CaptionRecord]]]:
    for number, step in enumerate(entry.steps):
        name = f"{entry.video_id}#{number}"
        record = VideoRecord(name, path, step.start_s, step.end_s, tags=_tags(entry))
        yield record, [CaptionRecord(name, step.text, (name,))]


def _whole(entry: _Entry, path: Path) -> Iterator[tuple[VideoRecord, list[CaptionRecord]]]:
    captions = [
        CaptionRecord(entry.video_id, step.text, (f"{entry.video_id}#{number}",))
        for number, step in enumerate(entry.steps)
    ]
    yield VideoRecord(entry.video_id, path, tags=_tags(entry)), captions
