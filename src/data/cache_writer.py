"""Writing the shards of a frame cache; `src.data.frame_cache` says what they hold and reads them.

Every file is written under a temporary name, synced and renamed, and the table of a shard comes after its data.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src.data.annotation import VideoRecord
from src.data.frame_cache import (
    MANIFEST,
    Frames,
    Recipe,
    decode,
    fingerprint,
    raise_difference,
    read_entries,
    read_manifest,
    source_of,
)
from src.data.video import Problem, VideoError
from src.data.whole_file import write_whole


def begin(folder: Path, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Make or check the folder before filling it, and remove what an interrupted run left half done.

    Returns:
        The entries that are stored already.

    Raises:
        UserError: when the folder holds a cache of another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = read_manifest(folder)
    if facts is None:
        facts = recipe.facts()
        write_whole(
            folder / MANIFEST, json.dumps({"fingerprint": fingerprint(facts), "recipe": facts}, indent=1).encode()
        )
    elif facts != recipe.facts():
        raise_difference(folder, facts, recipe.facts())
    orphans = [file for file in folder.glob("shard-*.bin") if not file.with_suffix(".json").is_file()]
    for file in [*folder.glob(".*.tmp"), *folder.glob(".decoding-*"), *orphans]:
        file.unlink(missing_ok=True)
    return read_entries(folder)


def write_shard(
    folder: Path,
    name: str,
    records: Sequence[VideoRecord],
    recipe: Recipe,
    timeout_s: float,
    *,
    before_each: Callable[[VideoRecord], object] = lambda record: None,
) -> tuple[int, list[Problem]]:
    """Decode videos into one new shard.

    Args:
        folder: the cache; `begin` was called for it.
        name: `shard-…`, not in use; names sort by age.
        records: the videos; one at a time is held in memory.
        recipe: as in the manifest.
        timeout_s: limit per file.
        before_each: called before each video is touched.

    Returns:
        Number of videos stored, and those that could not be read.
    """
    entries: list[dict[str, Any]] = []
    problems: list[Problem] = []

    def rows() -> Iterator[bytes]:
        offset = 0
        for record in records:
            before_each(record)
            try:
                row, entry = _row(record, recipe, timeout_s)
            except VideoError as error:
                problems.append(Problem(record.id, str(record.path), error.reason))
                continue
            entries.append(entry | {"offset": offset})
            offset += len(row)
            yield row

    data = folder / f"{name}.bin"
    size = write_whole(data, rows())
    if not entries:
        data.unlink()
        return 0, problems
    write_whole(folder / f"{name}.json", json.dumps({"size": size, "videos": entries}).encode())
    return len(entries), problems


def _row(record: VideoRecord, recipe: Recipe, timeout_s: float) -> tuple[bytes, dict[str, Any]]:
    """The bytes of one video and what the shard's table says of them."""
    source = source_of(record)
    frames = decode(record, recipe, timeout_s)
    row, lengths = _encode(frames, recipe)
    counts = {"shown": len(frames.shown), "extra": len(frames.candidates), "lengths": lengths}
    return row, {"id": record.id, "video": list(frames.shape or ())} | source | counts


def _encode(frames: Frames, recipe: Recipe) -> tuple[bytes, list[int]]:
    if recipe.format == "raw":
        row = np.zeros(recipe.row_shape, dtype=np.uint8)
        row[: len(frames.shown)] = frames.shown
        first = recipe.spec.num_frames
        row[first : first + len(frames.candidates)] = frames.candidates
        return row.tobytes(), []
    pictures = []
    for frame_CHW in (*frames.shown, *frames.candidates):
        buffer = io.BytesIO()
        Image.fromarray(frame_CHW.transpose(1, 2, 0)).save(buffer, "JPEG", quality=recipe.quality, subsampling=0)
        pictures.append(buffer.getvalue())
    return b"".join(pictures), [len(picture) for picture in pictures]
