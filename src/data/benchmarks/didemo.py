"""DiDeMo: personal videos of up to 30 seconds, each with a paragraph of about four descriptions."""

from __future__ import annotations

import csv
import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.benchmarks.published import PublishedDataModule, read_ids, read_json
from src.errors import UserError

logger = logging.getLogger(__name__)

# Part -> its descriptions: one entry for each (original release), or one row with the whole paragraph.
SOURCES = {part: (f"{part}_data.json", f"didemo_{part}_label.csv") for part in ("train", "val", "test")}
END_S = 31.0  # the reference loaders read seconds 0 to 31 of videos that were cut at 30 s


@dataclass(eq=False, kw_only=True, repr=False)
class DidemoDataModule(PublishedDataModule):
    """DiDeMo for paragraph retrieval, from the annotation of the release and the id lists of collaborative-experts.

    An id is the published name up to its first dot, `100233434@N08_9622921646_c39ac10ea3`: the lists and copies of the
    videos carry all sorts of extensions, and some only the dot. Any file of that name is taken, at any depth.
    Videos stand in the order in which the annotation first names them. Where a part has no *_data.json, the paragraphs
    of didemo_*_label.csv are read (30 of the 8,392 training videos have none there; they are counted as excluded).

    Source: facts of the files in CLIP4Clip@508ffa3 `dataloaders/dataloader_didemo_retrieval.py`; ids as
        collaborative-experts@master `data_loader/DiDeMo_dataset.py`; order as InternVideo@3965eef
        Video-Text-Retrieval (golden case `datasets`).
    """

    steps: ClassVar[str] = (
        "get train_data.json, val_data.json and test_data.json of LocalizingMoments, the id lists "
        "{train,val,test}_list.txt of CLIP4Clip or collaborative-experts, and the Flickr videos; expected layout: "
        "DATA/didemo/annotations/*.{json,txt} (or didemo_{train,val,test}_label.csv) and "
        "DATA/didemo/videos/100233434@N08_9622921646_c39ac10ea3.mp4 …"
    )

    def read(self) -> Annotation:
        files = self.find_videos(key=video_id_of, suffixes=None)
        captions: dict[str, list[str]] = {}
        names: dict[str, str] = {}
        splits: dict[str, tuple[str, ...]] = {}
        for part, sources in SOURCES.items():
            source, listed = self.need(sources, part), self.need((f"{part}_list.txt",), part)
            if source is None or listed is None:
                continue
            published = {video_id_of(name): name for name in read_ids(listed)}
            described, others = _of_listed(_descriptions(source), published)
            silent = [video_id for video_id in published if video_id not in described]
            if silent or others:
                logger.info(
                    "%s describes %d of the %d videos of %s; "
                    "%d descriptions of copies with another extension are left out",
                    source.name,
                    len(described),
                    len(published),
                    listed.name,
                    others,
                )
            splits[part] = (*described, *silent)
            names.update(published)
            captions.update(described)
        folder = Path(self.videos_dir)
        return Annotation(
            tuple(VideoRecord(i, files.get(i, folder / name), 0.0, END_S) for i, name in names.items()),
            tuple(CaptionRecord(video_id, text) for video_id, texts in captions.items() for text in texts),
            splits,
        )


def video_id_of(name: str) -> str:
    """The id in a published name or a path."""
    return PurePosixPath(name).name.partition(".")[0]


def _of_listed(described: dict[str, list[str]], listed: dict[str, str]) -> tuple[dict[str, list[str]], int]:
    """Keep the descriptions of listed videos.

    Some videos occur twice in the annotation, with two extensions. As in the reference loaders, the listed name counts;
    another extension does only where the listed name has no description.

    Args:
        described: published name -> descriptions.
        listed: video id -> published name.

    Returns:
        Video id -> descriptions in the order of `described`, and how many were left out for their extension.
    """
    kept: dict[str, list[str]] = {}
    left_out = 0
    for name, texts in described.items():
        video_id = video_id_of(name)
        if name != listed.get(video_id) and listed.get(video_id) in described:
            left_out += len(texts)
        elif video_id in listed:
            kept.setdefault(video_id, []).extend(texts)
    return kept, left_out


def _descriptions(path: Path) -> dict[str, list[str]]:
    """Published name -> descriptions in the order of the file (a csv has the whole paragraph as one).

    Raises:
        UserError: the file is not as published.
    """
    found: dict[str, list[str]] = {}
    video, text = ("video", "description") if path.suffix == ".json" else ("video_path", "text")
    rows = read_json(path, list) if path.suffix == ".json" else _table(path)
    for number, row in enumerate(rows):
        values = [row.get(key) for key in (video, text)] if isinstance(row, dict) else [None]
        if not all(isinstance(value, str) for value in values):
            raise UserError(
                f"{path}: entry {number} is {str(row)[:60]!r}, expected {video} and {text}; use the published file"
            )
        found.setdefault(PurePosixPath(str(values[0])).name, []).append(str(values[1]))
    return found


def _table(path: Path) -> list[dict[str, str]]:
    """Rows of a csv file; texts may hold line breaks."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            return list(csv.DictReader(handle))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({error}); expected the published file, fetch it again") from error
