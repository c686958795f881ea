"""QuerYD and QuerYDSegments: YouTube videos described aloud for blind viewers, as a paragraph or step by step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlparse

from src.data.annotation import Annotation
from src.data.benchmarks.published import PublishedDataModule, read_ids, read_json, read_lines, sentences, with_captions
from src.data.checks import Finding
from src.data.pickles import load_plain
from src.errors import UserError

LISTS = {name: (f"{name}_list.txt",) for name in ("train", "val", "test")}
LINKS = ("relevant-video-links-v2.txt", "relevant-video-links-v1.txt")
YOUTUBE_ID_LENGTH = 11


@dataclass(eq=False, kw_only=True, repr=False)
class QuerydDataModule(PublishedDataModule):
    """QuerYD from the lists and captions that collaborative-experts publishes.

    Captions are a dict: id -> captions, each a sentence or a list of words. The pickle is read without running code;
    a JSON file of the same name and shape does as well.

    Attributes:
        captions_name: name of the caption file without extension: raw_captions_combined_filtered (videos) or
            split_raw_captions_filtered (segments).

    Source: layout of albanie/collaborative-experts `data_loader/QuerYD_dataset.py`, read there and never seen as
        files: captions and lists could not be had, so the counts are unverified.
    """

    captions_name: str

    steps: ClassVar[str] = (
        "get the QuerYD experts of collaborative-experts (structured-symlinks: train_list.txt, val_list.txt, "
        "test_list.txt, raw_captions_combined_filtered.pkl; segments: split_raw_captions_filtered.pkl) and, for "
        "frames, the YouTube videos of relevant-video-links-v2.txt (some are gone: split.subset=available); expected "
        "layout: DATA/queryd/annotations/ (segments: DATA/querydsegments/annotations/) and "
        "DATA/queryd/videos/<id>.mp4 …"
    )

    def read(self) -> Annotation:
        names = (f"{self.captions_name}.pkl", f"{self.captions_name}.json")
        path = self.find(names)
        if path is None:
            raise UserError(f"no {' or '.join(names)} in {self.folder}; {self.advice}")
        document = load_plain(path) if path.suffix == ".pkl" else read_json(path, dict)
        if not isinstance(document, dict):
            raise UserError(
                f"{path} holds a {type(document).__name__}, expected captions by id; use the published file"
            )
        captions = {str(video_id): sentences(path, str(video_id), value) for video_id, value in document.items()}
        splits = {}
        for name, candidates in LISTS.items():
            file = self.need(candidates, name)
            if file is not None:
                splits[name] = read_ids(file)
        files = self.find_videos()
        links = self.links()
        paths = {
            video_id: files.get(video_id)
            or files.get(youtube_id(video_id, links) or "")
            or Path(self.videos_dir) / f"{video_id}.mp4"
            for video_id in captions
        }
        return with_captions(captions, paths, splits)

    def links(self) -> dict[str, str]:
        """YouTube id -> address, of the published list of links; empty where it is not there."""
        path = self.find(LINKS)
        return read_links(path) if path is not None else {}

    def own_findings(self) -> list[Finding]:
        """Videos of the split that the list of links does not name: they cannot be fetched again."""
        links = self.links()
        if not links:
            return []
        splits = self.read().splits
        lists = {part: splits.get(name, ()) for part, name in self.split.parts.items()}
        return [
            Finding("note", "video without published link", part, strangers)
            for part, ids in lists.items()
            if (strangers := tuple(video_id for video_id in ids if youtube_id(video_id, links) is None))
        ]


def read_links(path: Path) -> dict[str, str]:
    """YouTube id -> address.

    Raises:
        UserError: a line is no address of a YouTube video.
    """
    found: dict[str, str] = {}
    for line in read_lines(path):
        ids = parse_qs(urlparse(line).query).get("v", [])
        if not ids:
            raise UserError(
                f"{path}: found {line!r}, expected https://www.youtube.com/watch?v=ID; use the published file"
            )
        found.setdefault(ids[0], line)
    return found


def youtube_id(video_id: str, links: dict[str, str]) -> str | None:
    """The linked YouTube id that a video's name contains: names add a prefix or a segment number to it."""
    windows = range(len(video_id) - YOUTUBE_ID_LENGTH + 1)
    candidates = (video_id[start : start + YOUTUBE_ID_LENGTH] for start in windows)
    return next((candidate for candidate in candidates if candidate in links), None)
