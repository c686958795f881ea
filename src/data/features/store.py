"""Precomputed features of many items (videos or captions), read from memory-mapped files.

A store is one folder:

- `manifest.json`: name, dim, dtype, counts, recipe with its fingerprint, size and sha256 of every other file. It is
  written last: a folder without it is not finished.
- `ids.json`: all ids in order. Ids are data; no file is ever named after one.
- `index.npy`: int64 (items + 1), where the rows of each item begin; an item without rows is missing.
- `missing.json`: id -> reason of each missing item.
- `shard-00000.npy`, …: the rows (rows, dim) of `items_per_shard` items each; `shard-00000.json` holds their lengths,
  `details-00000.json` further facts about items, where there are any.
- `plan.json`: what the writer was asked for.

`src.data.features.writer` writes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from src.errors import UserError

FORMAT = "videotext feature store"
VERSION = 1
MANIFEST = "manifest.json"
PLAN = "plan.json"
IDS = "ids.json"
INDEX = "index.npy"
MISSING = "missing.json"
StoreDtype = Literal["float32", "float16"]
_CHUNK_ROWS = 8192  # rows that are checked for NaN at a time


class Plan(NamedTuple):
    """What a store is made for; equal plans give equal bytes.

    Attributes:
        name: of the features.
        dim: length of one row.
        dtype: of the rows.
        items_per_shard: shard k holds the items k * n to (k + 1) * n.
        num_ids: items, missing ones included.
        ids_sha256: of the list of ids.
        recipe: everything that the numbers depend on.
        fingerprint: of the recipe.
    """

    name: str
    dim: int
    dtype: str
    items_per_shard: int
    num_ids: int
    ids_sha256: str
    recipe: dict[str, Any]
    fingerprint: str

    @property
    def num_shards(self) -> int:
        """Number of shards, rounded up."""
        return -(-self.num_ids // self.items_per_shard)


class _Maps:
    """The arrays that this process has mapped, of all stores; the oldest go first.

    Each map holds a file descriptor, of which a process has about a thousand.
    """

    def __init__(self) -> None:
        self._arrays: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        self._pid = os.getpid()
        self._limit = max(64, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65536) // 4)

    def get(self, path: Path, version: str) -> np.ndarray:
        """The read-only array of the file; `version` tells a rewritten file from its predecessor."""
        if self._pid != os.getpid():  # forked: the parent's maps are not ours
            self._arrays, self._pid = OrderedDict(), os.getpid()
        key = (str(path), version)
        found = self._arrays.get(key)
        if found is not None:
            self._arrays.move_to_end(key)
            return found
        while len(self._arrays) >= self._limit:
            self._arrays.popitem(last=False)
        self._arrays[key] = array = map_array(path)
        return array


_MAPS = _Maps()


class FeatureStore:
    """Reads a store folder. Cheap to pickle, safe to fork: files are mapped by the process that uses them.

    Attributes:
        path: the folder.
        ids: of the items that have features, in order.
        missing: id -> reason of those that have none.
        num_rows: rows of all items together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        text = _read_text(path / MANIFEST, path)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self._plan, self._files = _parse_manifest(path, text)
        self._check_sizes()
        all_ids = json.loads(_read_text(path / IDS, path))
        self.missing: Mapping[str, str] = json.loads(_read_text(path / MISSING, path))
        self._offsets: np.ndarray = np.load(path / INDEX, allow_pickle=False)
        if len(all_ids) != self._plan.num_ids or len(self._offsets) != len(all_ids) + 1:
            raise UserError(
                f"{path}: found {len(all_ids)} ids and {len(self._offsets)} offsets, expected {self._plan.num_ids} and "
                "one more; the folder was altered, make the store again"
            )
        self._position = dict(zip(all_ids, range(len(all_ids)), strict=True))
        missing = self.missing
        self.ids: tuple[str, ...] = tuple(i for i in all_ids if i not in missing) if missing else tuple(all_ids)
        self.num_rows = int(self._offsets[-1])

    @classmethod
    def open(cls, path: Path) -> FeatureStore:
        """Read manifest and index; the rows stay on disk.

        Raises:
            UserError: no store there, one that is not finished, another version, or a truncated file.
        """
        return cls(Path(path))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.digest)

    @property
    def name(self) -> str:
        return self._plan.name

    @property
    def dim(self) -> int:
        return self._plan.dim

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self._plan.dtype)

    @property
    def recipe(self) -> dict[str, Any]:
        return self._plan.recipe

    @property
    def fingerprint(self) -> str:
        """sha256 of the recipe."""
        return self._plan.fingerprint

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._position and item_id not in self.missing

    def get(self, item_id: str) -> np.ndarray:
        """Read-only (steps, dim) view of one item's rows.

        Raises:
            KeyError: the id is unknown or has no features.
        """
        position = self._position[item_id]
        start, end = int(self._offsets[position]), int(self._offsets[position + 1])
        if start == end:
            raise KeyError(item_id)
        shard = position // self._plan.items_per_shard
        base = int(self._offsets[shard * self._plan.items_per_shard])
        return self._rows_of(shard)[start - base : end - base]

    def lengths(self, ids: Sequence[str]) -> np.ndarray:
        """int64 (N,): rows of each item; 0 for ids that are missing or unknown."""
        starts, ends, _ = self._places(ids)
        return ends - starts

    def rows(self, ids: Sequence[str], max_steps: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The rows of several items, copied one after the other.

        Args:
            ids: in any order, with repetitions; missing and unknown ones add no rows.
            max_steps: at most so many rows of each item, the first ones; None = all.

        Returns:
            (sum of lengths, dim) and the lengths, int64 (N,).
        """
        starts, ends, shards = self._places(ids)
        if max_steps is not None:
            ends = np.minimum(ends, starts + max_steps)
        lengths = ends - starts
        firsts = self._offsets[shards * self._plan.items_per_shard]
        out = np.empty((int(lengths.sum()), self.dim), dtype=self.dtype)
        at = 0
        maps: dict[int, np.ndarray] = {}
        for shard, start, end in zip(
            shards.tolist(), (starts - firsts).tolist(), (ends - firsts).tolist(), strict=True
        ):
            if start == end:
                continue
            source = maps.get(shard)
            if source is None:
                source = maps[shard] = self._rows_of(shard)
            out[at : at + end - start] = source[start:end]
            at += end - start
        return out, lengths

    def details(self, item_id: str) -> dict[str, Any] | None:
        """What the extractor noted beside the rows; None when there is nothing."""
        position = self._position.get(item_id)
        name = details_name((position or 0) // self._plan.items_per_shard)
        if position is None or name not in self._files:
            return None
        return _details(self.path / name, self.digest).get(item_id)

    def verify(self) -> list[str]:
        """Every file that is not, byte by byte, what the manifest says; reads the whole store."""
        problems = []
        for name, facts in self._files.items():
            path = self.path / name
            if not path.is_file():
                problems.append(f"{path}: missing")
            elif path.stat().st_size != facts["bytes"]:
                problems.append(f"{path}: found {path.stat().st_size} bytes, expected {facts['bytes']}")
            elif file_sha256(path) != facts["sha256"]:
                problems.append(f"{path}: its sha256 differs from the manifest's: the file was altered")
        return problems

    def nonfinite(self) -> list[str]:
        """Ids with NaN or infinite numbers; reads the whole store."""
        found: dict[str, None] = {}
        ids = list(self._position)
        for shard in range(self._plan.num_shards):
            rows, base = self._rows_of(shard), int(self._offsets[shard * self._plan.items_per_shard])
            for start in range(0, len(rows), _CHUNK_ROWS):
                bad = np.flatnonzero(~np.isfinite(rows[start : start + _CHUNK_ROWS]).all(axis=1)) + base + start
                found |= dict.fromkeys(ids[i] for i in np.searchsorted(self._offsets, bad, side="right") - 1)
        return list(found)

    def _places(self, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First row, end and shard of each id; unknown ids get an empty range."""
        lookup = self._position.get
        positions = np.fromiter((lookup(i, -1) for i in ids), dtype=np.int64, count=len(ids))
        known = positions >= 0
        positions[~known] = 0
        starts = self._offsets[positions]
        ends = np.where(known, self._offsets[positions + 1], starts) if len(self._offsets) > 1 else starts
        return starts, ends, positions // self._plan.items_per_shard

    def _rows_of(self, shard: int) -> np.ndarray:
        name = shard_name(shard)
        return _MAPS.get(self.path / name, self._files[name]["sha256"])

    def _check_sizes(self) -> None:
        for name, facts in self._files.items():
            path = self.path / name
            size = path.stat().st_size if path.is_file() else None
            if size != facts["bytes"]:
                found = "no such file" if size is None else f"{size} bytes"
                raise UserError(
                    f"{path}: found {found}, expected {facts['bytes']} bytes; the store is damaged, copy or make it "
                    "again"
                )


def shard_name(shard: int) -> str:
    """File of a shard's rows."""
    return f"shard-{shard:05d}.npy"


def note_name(shard: int) -> str:
    """File that says what a shard holds; its presence commits the shard."""
    return f"shard-{shard:05d}.json"


def details_name(shard: int) -> str:
    """File of the further facts about a shard's items."""
    return f"details-{shard:05d}.json"


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """sha256 of a recipe's JSON."""
    return hashlib.sha256(to_json(recipe)).hexdigest()


def to_json(value: object) -> bytes:
    """The one JSON spelling of a value: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def map_array(path: Path) -> np.ndarray:
    """A .npy file as a read-only array backed by the page cache.

    Raises:
        UserError: the file is missing or shorter than its header says.
    """
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be mapped ({error}), expected rows of features; make the store again"
        ) from error
    array = mapped.view(np.ndarray)  # slices of a memmap cost microseconds more
    array.flags.writeable = False
    return array


def _reopen(path: Path, digest: str) -> FeatureStore:
    """Unpickle: open the same folder in this process.

    Raises:
        UserError: the folder was made again in the meantime.
    """
    store = FeatureStore.open(path)
    if store.digest != digest:
        raise UserError(f"{path}: the store changed while it was in use; start the run again")
    return store


@lru_cache(maxsize=8)
def _details(path: Path, digest: str) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_text(path: Path, folder: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if (folder / PLAN).is_file():
            raise UserError(
                f"{folder}: found a feature store that is not finished (no {path.name}), expected all of its shards; "
                "run the command that makes it again, finished shards are kept"
            ) from error
        raise UserError(
            f"{folder}: found no feature store (no {path.name}); make one by task=extract, or import one by "
            "task=convert task.source=… task.output=…"
        ) from error


def _parse_manifest(path: Path, text: str) -> tuple[Plan, dict[str, Any]]:
    try:
        manifest = json.loads(text)
        kind, version = manifest["format"], manifest["version"]
        if kind == FORMAT and version == VERSION:
            plan = Plan(**manifest["plan"])
            if plan.fingerprint == fingerprint(plan.recipe):
                return plan, manifest["files"]
            raise UserError(f"{path / MANIFEST}: its recipe was edited by hand; make the store again")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / MANIFEST}: found no valid manifest ({error}); make the store again") from error
    raise UserError(
        f"{path}: found {kind!r} version {version}, expected {FORMAT!r} version {VERSION}; make the store again"
    )
