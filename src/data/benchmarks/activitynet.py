"""ActivityNet Captions: long videos, each with a paragraph whose sentences belong to segments."""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.benchmarks.published import PublishedDataModule, read_ids, read_json
from src.errors import UserError

logger = logging.getLogger(__name__)

# Annotation file (train.json, …) and id list -> files that say which of its videos are used, and in which order.
LISTS = {
    "train": ("train_ids.json", "train_list.txt"),
    "val_1": ("val_ids.json", "val_1_list.txt"),
    "val_2": ("val_2_list.txt",),
}
CLIPS = "_clips"  # "val_1_clips": the segments of val_1


@dataclass(frozen=True)
class _Sentence:
    """One sentence: its text, its name `<video id>#<number>`, and its segment in seconds."""

    text: str
    key: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class _Entry:
    """One video of one annotator: its length rounded up to whole seconds, and its sentences."""

    end_s: float
    sentences: tuple[_Sentence, ...]


@dataclass(eq=False, kw_only=True, repr=False)
class ActivityNetDataModule(PublishedDataModule):
    """ActivityNet Captions for paragraph retrieval (lists train, val_1, val_2) and for clip retrieval (…_clips).

    A paragraph is all sentences of one annotator joined by a blank; leading blanks of the sentences stay. The video is
    seen from 0 to its length rounded up to a second. In clip retrieval every sentence is a query for its own segment;
    segment and sentence are both called <video id>#<number>. Numbers of a video run through val_1 and on through val_2.

    Video files are v_<YouTube id>.mp4 or <YouTube id>.mp4, at any depth and in any format.

    Source: facts of the files in CLIP4Clip@508ffa3 `dataloaders/dataloader_activitynet_retrieval.py`; order and
        duplicates as InternVideo@3965eef Video-Text-Retrieval (golden case `datasets`).
    Deviates: four of the 37,421 training segments end where they begin, or before. Their ends are exchanged; one
        without length is given one second.
    """

    steps: ClassVar[str] = (
        "get captions.zip of ActivityNet Captions (train.json, val_1.json, val_2.json, train_ids.json, "
        "val_ids.json) and the ActivityNet 200 videos (request form on the ActivityNet site; some are gone from "
        "YouTube: split.subset=available); expected layout: DATA/activitynet/annotations/*.json and "
        "DATA/activitynet/videos/v_QOlSCBRmfWY.mp4 …"
    )

    def read(self) -> Annotation:
        # Paragraphs, clips, or both where one part is searched otherwise than another.
        kinds = sorted({name.endswith(CLIPS) for name in self.split.parts.values()}) or [False]
        files = self.find_videos()
        numbers: Counter[str] = Counter()
        videos: dict[str, VideoRecord] = {}
        captions: list[CaptionRecord] = []
        splits: dict[str, tuple[str, ...]] = {}
        paired: dict[str, tuple[CaptionRecord, ...]] = {}
        for source, orders in LISTS.items():
            entries = self._entries(source, orders, numbers)
            for kind in kinds if entries else []:
                name = source + CLIPS if kind else source
                records = (_clips if kind else _wholes)(entries, files, Path(self.videos_dir))
                videos = {record.id: record for record in records} | videos
                splits[name] = tuple(record.id for record in records)
                paired[name] = tuple(
                    CaptionRecord(sentence.key if kind else video_id, sentence.text, (sentence.key,))
                    for video_id, entry in entries.items()
                    for sentence in entry.sentences
                )
                captions += paired[name]
        return Annotation(tuple(videos.values()), tuple(captions), splits, paired)

    def _entries(self, name: str, orders: tuple[str, ...], numbers: Counter[str]) -> dict[str, _Entry]:
        """Video id -> entry of one annotation file, in the order of its id list; empty where the file is not needed."""
        files = (f"{name}.json",)
        path = self.need(files, name) or self.need(files, name + CLIPS)
        if path is None:
            return {}
        found = {
            str(video_id): _entry(path, str(video_id), value, numbers)
            for video_id, value in read_json(path, dict).items()
        }
        order = self.find(orders)
        if order is None:
            return found
        ids = dict.fromkeys(read_ids(order))
        unused, silent = len(found.keys() - ids.keys()), len(ids.keys() - found.keys())
        if unused or silent:
            logger.info(
                "%s: %d videos of %s are not listed, %d listed ones have no sentences; both are left out",
                order.name,
                unused,
                path.name,
                silent,
            )
        return {video_id: found[video_id] for video_id in ids if video_id in found}


def _entry(path: Path, video_id: str, value: Any, numbers: Counter[str]) -> _Entry:
    """Check one entry of an annotation file and number its sentences.

    Raises:
        UserError: it is not as published.
    """
    try:
        end_s = float(math.ceil(value["duration"]))
        pairs = list(zip(value["timestamps"], value["sentences"], strict=True))
        times = [(float(start), float(end)) for (start, end), _ in pairs]
        texts = [str(text) for _, text in pairs]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: {video_id} is {str(value)[:60]!r}, expected duration and as many timestamps [start, end] as "
            "sentences; use the published file"
        ) from error
    found: list[_Sentence] = []
    for text, (start_s, last_s) in zip(texts, times, strict=True):
        first, last = sorted((start_s, last_s))
        key = f"{video_id}#{numbers[video_id]}"
        numbers[video_id] += 1
        found.append(_Sentence(text, key, first, last if last > first else first + 1.0))
    return _Entry(end_s, tuple(found))


def _wholes(entries: dict[str, _Entry], files: dict[str, Path], expected: Path) -> list[VideoRecord]:
    """One record per video."""
    return [
        VideoRecord(video_id, _file(video_id, files, expected), 0.0, entry.end_s) for video_id, entry in entries.items()
    ]


def _clips(entries: dict[str, _Entry], files: dict[str, Path], expected: Path) -> list[VideoRecord]:
    """One record per segment; segments of one video are a group."""
    return [
        VideoRecord(s.key, _file(video_id, files, expected), s.start_s, s.end_s, group=video_id)
        for video_id, entry in entries.items()
        for s in entry.sentences
    ]


def _file(video_id: str, files: dict[str, Path], expected: Path) -> Path:
    """The file, named with or without the "v_" of the id; where it is expected when there is none."""
    return files.get(video_id) or files.get(video_id.removeprefix("v_")) or expected / f"{video_id}.mp4"
