"""VATEX: 10-second clips with ten English and ten Chinese captions each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from src.data.annotation import Annotation
from src.data.benchmarks.published import PublishedDataModule, read_ids, read_json, sentences, with_captions
from src.errors import UserError

TRAINING = ("vatex_training_v1.0.json", "vatex_training_v1.0_ceph.json", "vatex_data.json")
VALIDATION = ("vatex_validation_v1.0.json", "vatex_validation_v1.0_ceph.json", "vatex_data.json")
# Id list -> files that publish it, and the captions of its videos.
LISTS = {
    "train": (("train_list.txt",), TRAINING),
    "val": (("val_list.txt", "val_list_split1.txt"), VALIDATION),
    "test": (("test_list.txt", "val_list_split2.txt"), VALIDATION),
    "test_1k5": (("test1k5_sec_list.txt",), VALIDATION),
}
KEYS = {"en": "enCap", "zh": "chCap"}


@dataclass(eq=False, kw_only=True, repr=False)
class VatexDataModule(PublishedDataModule):
    """VATEX from its published captions and the id lists of HGR and CLIP2Video.

    Video files are called <id>.mp4 with id = <YouTube id>_<start>_<end>, both in seconds with six digits. An entry's
    own "path" (files of InternVideo, `*_ceph.json`) is used where it exists.

    Attributes:
        language: en = "enCap", zh = "chCap".

    Source: facts of the files in CLIP2Video@master `dataloaders/dataloader_vatexEnglish_frame.py`; InternVideo@3965eef
        Video-Text-Retrieval `dataloaders/dataloader_vatex_retrieval.py`.
    Deviates: InternVideo drops entries without "path"; here a video is missing only when its file is.
    """

    language: Literal["en", "zh"] = "en"
    steps: ClassVar[str] = (
        "get vatex_training_v1.0.json and vatex_validation_v1.0.json from the VATEX site, the id lists of "
        "CLIP2Video, and the 10-second clips (cut from YouTube; some are gone: split.subset=available); expected "
        "layout: DATA/vatex/annotations/{*.json,train_list.txt,val_list.txt,test_list.txt,test1k5_sec_list.txt} "
        "and DATA/vatex/videos/Ptf_2VRj-V0_000122_000132.mp4 …"
    )

    def read(self) -> Annotation:
        splits: dict[str, tuple[str, ...]] = {}
        sources: dict[Path, None] = {}
        for name, (lists, documents) in LISTS.items():
            ids, source = self.need(lists, name), self.need(documents, name)
            if ids is not None and source is not None:
                splits[name] = read_ids(ids)
                sources[source] = None
        captions: dict[str, list[str]] = {}
        given: dict[str, Path] = {}
        for source in sources:
            for video_id, entry in _entries(source):
                if KEYS[self.language] not in entry:
                    raise UserError(
                        f"{source}: {video_id} has no {KEYS[self.language]!r}, expected the captions of "
                        f"dataset.language={self.language}; use {TRAINING[0]} and {VALIDATION[0]}, "
                        "which have both languages"
                    )
                captions[video_id] = sentences(source, video_id, entry[KEYS[self.language]])
                if isinstance(entry.get("path"), str):
                    given[video_id] = Path(entry["path"])
        files = self.find_videos()
        paths = {video_id: files.get(video_id, Path(self.videos_dir) / f"{video_id}.mp4") for video_id in captions}
        if self.inputs.frames is not None:
            # Paths of somebody else's machine lead nowhere.
            paths |= {video_id: path for video_id, path in given.items() if video_id not in files and path.is_file()}
        return with_captions(captions, paths, splits)


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(video id, entry) of a list of entries with "videoID", or of an object by id (vatex_data.json of CLIP2Video)."""
    if path.name == "vatex_data.json":
        pairs = [(str(video_id), entry) for video_id, entry in read_json(path, dict).items()]
    else:
        entries = read_json(path, list)
        pairs = [(str(entry.get("videoID", "")) if isinstance(entry, dict) else "", entry) for entry in entries]
    for number, (video_id, entry) in enumerate(pairs):
        if not video_id or not isinstance(entry, dict):
            raise UserError(
                f"{path}: entry {number} is {str(entry)[:60]!r}, expected videoID, enCap and chCap; "
                "use the published file"
            )
        yield video_id, entry
