"""Frames on disk, ready for the model: decoded, cropped, memory-mapped; `src.data.cache_writer` writes them.

A cache folder holds `manifest.json` (the recipe), and pairs `shard-*.bin` + `shard-*.json`. A shard counts once its
json exists, which is written last; both are written under a temporary name, synced and renamed. A process killed at
any moment therefore leaves whole shards and some files that the next run removes.

- raw: every video has the same number of bytes, (num_frames + extra_frames) x 3 x S x S, padded with zeros;
  12 frames of 224 px are 1.8 MB, read without decoding.
- jpeg: the frames as JPEG one after another, lengths in the json; about a tenth of the size, some 1 ms a frame to read.

What is stored first are exactly the frames that evaluation asks for. `extra_frames` adds candidates spread evenly over
the video, among which training picks with jitter; without them training sees the evaluation frames.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from PIL import Image

from src.batch import FrameSpec
from src.data.annotation import VideoRecord
from src.data.sampling import check_spec, frame_indices, segment_frames, uniform_indices
from src.data.transforms import to_square, to_training_square
from src.data.video import DEFAULT_TIMEOUT_S, Backend, VideoError, VideoReader, VideoShape, open_video
from src.errors import UserError

logger = logging.getLogger(__name__)

# Raise it whenever the same recipe gives other pixels than before.
RECIPE_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which bytes are stored.

    Attributes:
        spec: the model's frames.
        extra_frames: further frames for training with jitter; 0 = none.
        format: raw or jpeg.
        quality: JPEG quality; of no meaning for raw.
        backend: decoder. All read the same pixels; it stays part of the recipe so that a doubt can be settled.
    """

    spec: FrameSpec
    extra_frames: int = 0
    format: Literal["raw", "jpeg"] = "raw"
    quality: int = 90
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        if self.format not in ("raw", "jpeg"):
            raise UserError(f"found frame cache format {self.format!r}, expected raw or jpeg; set task.format=raw")
        if self.extra_frames < 0 or not 1 <= self.quality <= 95:
            raise UserError(
                f"found task.extra_frames={self.extra_frames} and task.quality={self.quality}, expected 0 or more and "
                "1 to 95; set task.extra_frames=0 task.quality=90"
            )

    def facts(self) -> dict[str, Any]:
        """Flat and comparable, as the manifest holds it."""
        rest = {key: value for key, value in asdict(self).items() if key != "spec"}
        return {"version": RECIPE_VERSION} | stored_facts(self.spec) | rest

    @property
    def row_shape(self) -> tuple[int, int, int, int]:
        """Shape of one video in a raw shard."""
        size = self.spec.image_size
        return (self.spec.num_frames + self.extra_frames, 3, size, size)


def stored_facts(spec: FrameSpec) -> dict[str, Any]:
    """What of a model's wishes decides which bytes are stored: not how training changes them."""
    return {key: value for key, value in asdict(spec).items() if key != "augment"}


def fingerprint(facts: dict[str, Any]) -> str:
    """Short hash of a recipe."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Frames:
    """Frames of one video, uint8 (n, 3, S, S): those of evaluation, and the candidates of training (maybe none).

    `shape` is that of the video before it was made square; None where it was read from a cache.
    """

    shown: np.ndarray
    candidates: np.ndarray
    shape: VideoShape | None = None

    def pick(self, num_frames: int, rng: np.random.Generator | None) -> np.ndarray:
        """At most `num_frames` frames; with `rng` jittered among the candidates."""
        if rng is None or len(self.candidates) == 0:
            return self.shown
        return self.candidates[uniform_indices(num_frames, len(self.candidates), rng)]


def decode(
    record: VideoRecord,
    recipe: Recipe,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    rng: np.random.Generator | None = None,
) -> Frames:
    """Read one video's frames from its file.

    Raises:
        VideoError: when the file or its segment cannot be read.
    """
    check_spec(recipe.spec)
    if record.path is None:
        raise VideoError(record.id, "the annotation names no file")
    with open_video(record.path, recipe.backend, timeout_s) as reader:
        segment = (record.start_s, record.end_s)
        even = replace(recipe.spec, num_frames=recipe.extra_frames, sampling="uniform")
        try:
            shown = frame_indices(len(reader), reader.fps, recipe.spec, rng, segment)
            extra = frame_indices(len(reader), reader.fps, even, None, segment) if recipe.extra_frames else []
        except UserError as error:
            raise VideoError(record.path, str(error)) from error
        frames_THWC = reader.read(shown + extra)
        shape = _shape(frames_THWC, reader, record)
    if rng is None:
        frames_TCHW = to_square(frames_THWC, recipe.spec)
    else:
        frames_TCHW = to_training_square(frames_THWC, recipe.spec, rng)
    return Frames(frames_TCHW[: len(shown)], frames_TCHW[len(shown) :], shape)


def read_shape(record: VideoRecord, backend: Backend = "auto", timeout_s: float = DEFAULT_TIMEOUT_S) -> VideoShape:
    """Size and length of a video or its segment, at the cost of opening the file and decoding its first frame.

    Raises:
        VideoError: when the file or its segment cannot be read.
    """
    if record.path is None:
        raise VideoError(record.id, "the annotation names no file")
    with open_video(record.path, backend, timeout_s) as reader:
        try:
            return _shape(reader.read([0]), reader, record)
        except VideoError:
            raise
        except UserError as error:
            raise VideoError(record.path, str(error)) from error


def _shape(frames_THWC: np.ndarray, reader: VideoReader, record: VideoRecord) -> VideoShape:
    start, stop = segment_frames(len(reader), reader.fps, (record.start_s, record.end_s))
    return VideoShape(frames_THWC.shape[2], frames_THWC.shape[1], stop - start, start)


def load_frames(
    record: VideoRecord,
    spec: FrameSpec,
    backend: Backend = "auto",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    *,
    cache: FrameCache | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, int]:
    """The frames of one video as the model wants them, from the cache or else from the file.

    Args:
        record: which video, and which segment of it.
        spec: which frames.
        backend: see `open_video`.
        timeout_s: limit per file, seconds.
        cache: frames decoded before; a video that it lacks, or whose file changed since, is decoded.
        rng: given in training: the rule's jitter, and the changes of `spec.augment`, which start from the whole
            picture or, where it comes from a cache, from the square.

    Returns:
        uint8 (T, 3, S, S) with T = spec.num_frames, zeros behind the valid frames, and the number of these.

    Raises:
        VideoError: when the video cannot be read.
        UserError: when the cache was made for other frames.
    """
    frames_TCHW = None
    if cache is not None:
        cache.require(spec)
        frames_TCHW = cache.get(record, rng)
        if frames_TCHW is not None and rng is not None and spec.augment != "none":
            frames_TCHW = to_training_square(frames_TCHW.transpose(0, 2, 3, 1), spec, rng)
    if frames_TCHW is None:
        frames_TCHW = decode(record, Recipe(spec, backend=backend), timeout_s, rng).shown
    valid = len(frames_TCHW)
    if valid == spec.num_frames:
        return frames_TCHW, valid
    padded_TCHW = np.zeros((spec.num_frames, *frames_TCHW.shape[1:]), dtype=np.uint8)
    padded_TCHW[:valid] = frames_TCHW
    return padded_TCHW, valid


class FrameCache:
    """Reads a cache folder. Cheap to pickle and safe to fork: files are mapped by the process that uses them."""

    def __init__(self, folder: Path, facts: dict[str, Any], entries: dict[str, dict[str, Any]]) -> None:
        self.folder = folder
        self.facts = facts
        self._entries = entries
        self._maps: dict[str, np.memmap] = {}
        self._pid = os.getpid()
        self._warned = False

    @classmethod
    def open(cls, folder: Path, spec: FrameSpec | None = None) -> Self:
        """Read the manifest and the shards' tables.

        Raises:
            UserError: no cache there, a damaged one, or one made for other frames than `spec`.
        """
        facts = read_manifest(folder)
        if facts is None:
            raise UserError(f"{folder}: no frame cache there (no {MANIFEST}); fill it by task=prepare")
        cache = cls(folder, facts, read_entries(folder))
        if spec is not None:
            cache.require(spec)
        return cache

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._entries

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that filled the folder."""
        return recipe_of(self.facts)

    def require(self, spec: FrameSpec) -> None:
        """Refuse a cache that holds other frames.

        Raises:
            UserError: naming each key that differs, with both values.
        """
        if stored_facts(spec) != stored_facts(self.recipe.spec):
            raise_difference(self.folder, self.facts, {**self.facts, **stored_facts(spec)})

    def get(self, record: VideoRecord, rng: np.random.Generator | None = None) -> np.ndarray | None:
        """Valid frames (n, 3, S, S), a copy; None when the video is not there or its file has changed since."""
        entry = self._entries.get(record.id)
        if entry is None:
            return None
        if not is_current(entry, record):
            if not self._warned:
                self._warned = True
                logger.warning(
                    "%s: the file or segment of %s changed since it was cached, so it is decoded again and again; "
                    "run task=prepare to refresh it (said once)",
                    self.folder,
                    record.id,
                )
            return None
        return self._stored(entry).pick(self.recipe.spec.num_frames, rng).copy()

    def shape(self, record: VideoRecord) -> VideoShape | None:
        """What was noted of the video when its frames were stored; None for others, and for caches made before."""
        entry = self._entries.get(record.id)
        noted = entry.get("video") if entry is not None and is_current(entry, record) else None
        return VideoShape(*noted) if noted else None

    def _stored(self, entry: dict[str, Any]) -> Frames:
        data = self._map(entry["shard"])
        shown, extra = entry["shown"], entry["extra"]
        if self.recipe.format == "raw":
            shape = self.recipe.row_shape
            row = data[entry["offset"] : entry["offset"] + int(np.prod(shape))].reshape(shape)
            first = self.recipe.spec.num_frames
            return Frames(row[:shown], row[first : first + extra])
        edges = entry["offset"] + np.cumsum([0, *entry["lengths"]])
        pictures = [
            np.asarray(Image.open(io.BytesIO(data[lo:hi].tobytes()))).transpose(2, 0, 1)
            for lo, hi in itertools.pairwise(edges)
        ]
        frames_TCHW = np.stack(pictures)
        return Frames(frames_TCHW[:shown], frames_TCHW[shown:])

    def _map(self, shard: str) -> np.memmap:
        if self._pid != os.getpid():  # forked: the parent's maps are not ours
            self._maps, self._pid = {}, os.getpid()
        if shard not in self._maps:
            self._maps[shard] = np.memmap(self.folder / f"{shard}.bin", dtype=np.uint8, mode="r")
        return self._maps[shard]


def recipe_of(facts: dict[str, Any]) -> Recipe:
    """The inverse of `Recipe.facts`."""
    spec_keys = set(FrameSpec.__dataclass_fields__) - {"augment"}
    spec = FrameSpec(**{key: facts[key] for key in spec_keys})
    rest = {key: value for key, value in facts.items() if key not in spec_keys | {"version"}}
    return Recipe(spec, **rest)


def raise_difference(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Say in one line how two recipes differ.

    Raises:
        UserError: always.
    """
    keys = [key for key in wanted | found if found.get(key) != wanted.get(key)]
    have = ", ".join(f"{key}={found.get(key)}" for key in keys)
    want = ", ".join(f"{key}={wanted.get(key)}" for key in keys)
    raise UserError(
        f"{folder}: found a frame cache made with {have}, expected {want}; "
        "give another dataset.cache_dir and fill it by task=prepare, or change these settings"
    )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The recipe's facts; None when the folder holds no cache.

    Raises:
        UserError: when the manifest is damaged or of another version of the program.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        facts = manifest["recipe"]
        sound = manifest["fingerprint"] == fingerprint(facts)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: found no valid manifest ({error}); remove the folder and run task=prepare") from error
    if not sound:
        raise UserError(f"{path}: its recipe was edited by hand; remove the folder and run task=prepare")
    if facts["version"] != RECIPE_VERSION:
        raise_difference(folder, facts, facts | {"version": RECIPE_VERSION})
    return facts


def read_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Video id -> its place in the shards; a later shard replaces what an earlier one said.

    Raises:
        UserError: when a shard is shorter than its table says.
    """
    entries: dict[str, dict[str, Any]] = {}
    for table in sorted(folder.glob("shard-*.json")):
        content = json.loads(table.read_text(encoding="utf-8"))
        data = table.with_suffix(".bin")
        if not data.is_file() or data.stat().st_size != content["size"]:
            raise UserError(f"{data}: missing or of another size than {table.name} says; remove both, run task=prepare")
        entries |= {entry["id"]: entry | {"shard": table.stem} for entry in content["videos"]}
    return entries


def source_of(record: VideoRecord) -> dict[str, Any]:
    """What ties stored frames to their source: the file's size and time, and the segment.

    Raises:
        VideoError: when the file is missing.
    """
    if record.path is None or not record.path.is_file():
        raise VideoError(record.path or record.id, "file not found")
    status = record.path.stat()
    return {
        "file_size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "start_s": record.start_s,
        "end_s": record.end_s,
    }


def is_current(entry: dict[str, Any], record: VideoRecord) -> bool:
    """Whether stored frames belong to the record. Without its file only the segment can be compared."""
    if (entry["start_s"], entry["end_s"]) != (record.start_s, record.end_s):
        return False
    if record.path is None or not record.path.is_file():
        return True
    return all(entry[key] == value for key, value in source_of(record).items())
