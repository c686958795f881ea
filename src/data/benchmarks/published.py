"""What the readers of published benchmarks share: their folders, and how lists, JSON and captions are read."""

from __future__ import annotations

import json
import os
from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, ClassVar

from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.benchmarks.folder import VIDEO_SUFFIXES
from src.data.datamodule import RetrievalDataModule
from src.errors import UserError


@dataclass(eq=False, kw_only=True, repr=False)
class PublishedDataModule(RetrievalDataModule, ABC):
    """A benchmark in its published files.

    Attributes:
        annotations_dir: folder with the annotation and split files, as published.
        videos_dir: folder with the video files, at any depth.
        steps: what to get, and the expected layout.
    """

    annotations_dir: str
    videos_dir: str
    steps: ClassVar[str]

    @property
    def advice(self) -> str:
        """End of every message about something that is not there."""
        advice = f"{self.steps}; task=prepare download=true fetches what can be fetched"
        if "dataset.annotations_dir=" in self.steps:  # a reader with further folders says it itself
            return advice
        return f"{advice}; set dataset.annotations_dir= and dataset.videos_dir= if your layout is another"

    @property
    def folder(self) -> Path:
        """The annotation folder.

        Raises:
            UserError: there is none.
        """
        folder = Path(self.annotations_dir).expanduser()
        if not folder.is_dir():
            raise UserError(f"dataset.annotations_dir={folder} is not a folder; {self.advice}")
        return folder

    def find(self, names: Sequence[str]) -> Path | None:
        """The first of these files that the annotation folder has."""
        return next((self.folder / name for name in names if (self.folder / name).is_file()), None)

    def need(self, names: Sequence[str], list_name: str) -> Path | None:
        """Like `find`, but the split must not use the id list `list_name` where the file is missing.

        Raises:
            UserError: the split uses the list and none of the files is there.
        """
        path = self.find(names)
        parts = [part for part, used in self.split.parts.items() if used == list_name]
        if path is None and parts:
            raise UserError(
                f"split {self.split.name!r} ({parts[0]}) needs {' or '.join(names)}, not found in {self.folder}; "
                f"{self.advice}"
            )
        return path

    def find_videos(
        self,
        key: Callable[[str], str] = lambda name: PurePath(name).stem,
        suffixes: Sequence[str] | None = VIDEO_SUFFIXES,
    ) -> dict[str, Path]:
        """Key -> file of all video files; empty for a model that reads no frames.

        Args:
            key: of a file name; its stem unless given.
            suffixes: lower case, best first: it wins where a video exists in several formats; None = any file.

        Raises:
            UserError: there is no such folder though every file is wanted.
        """
        _ = self.folder  # without annotation, that is what to get first
        root = Path(self.videos_dir).expanduser()
        if self.inputs.frames is None:
            return {}
        if not root.is_dir():
            if self.cache == "disk" or self.split.subset == "available":
                return {}
            raise UserError(f"dataset.videos_dir={root} is not a folder; {self.advice}")
        order = {suffix: rank for rank, suffix in enumerate(suffixes or VIDEO_SUFFIXES)}
        found: list[tuple[int, str, Path]] = []
        for parent, _, names in os.walk(root, followlinks=True):
            for name in names:
                suffix = PurePath(name).suffix.lower()
                if suffix in order or suffixes is None:
                    found.append((order.get(suffix, len(order)), str(Path(parent, name)), Path(parent, name)))
        return {key(path.name): path for _, _, path in sorted(found, reverse=True)}


def read_text(path: Path) -> str:
    """A text file without its byte order mark.

    Raises:
        UserError: the file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); use the published file") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without the blanks around them; empty lines are left out.

    Raises:
        UserError: the file is not UTF-8.
    """
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def read_ids(path: Path) -> tuple[str, ...]:
    """Ids of a .txt file with one per line, or of a .json file with one list.

    Raises:
        UserError: the file is not of its format.
    """
    if path.suffix != ".json":
        return tuple(read_lines(path))
    return tuple(str(item) for item in read_json(path, list))


def read_json(path: Path, kind: type[list[Any]] | type[dict[Any, Any]]) -> Any:
    """A JSON document that is a list or an object.

    Raises:
        UserError: it is no JSON, or of another kind.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); expected the published file, fetch it again") from error
    if not isinstance(document, kind):
        raise UserError(
            f"{path} holds a {type(document).__name__}, expected a {kind.__name__}; use the published annotation"
        )
    return document


def sentences(path: Path, video_id: str, value: object) -> list[str]:
    """Captions of one video: strings, or lists of words that are joined by blanks.

    Raises:
        UserError: `value` is something else.
    """
    texts: list[str] = []
    for item in value if isinstance(value, list | tuple) else [None]:
        words = [item] if isinstance(item, str) else item
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            raise UserError(
                f"{path}: {video_id} has {str(value)[:60]!r}, expected a list of captions; use the published file"
            )
        texts.append(" ".join(words))
    return texts


def with_captions(
    captions: Mapping[str, Iterable[str]], paths: Mapping[str, Path], splits: dict[str, tuple[str, ...]]
) -> Annotation:
    """An annotation of all videos that have captions, in their order.

    Args:
        captions: video id -> its captions.
        paths: video id -> its file, or where it is expected.
        splits: name of an id list -> ids.
    """
    return Annotation(
        tuple(VideoRecord(video_id, paths[video_id]) for video_id in captions),
        tuple(CaptionRecord(video_id, text) for video_id, texts in captions.items() for text in texts),
        splits,
    )
