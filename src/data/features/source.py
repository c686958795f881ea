"""Features in somebody else's files, and the one way in which they become a store."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from src.data.features.store import FeatureStore, StoreDtype, file_sha256
from src.data.features.writer import Item, StoreWriter
from src.errors import UserError

logger = logging.getLogger(__name__)
NanPolicy = Literal["error", "missing"]
Value = np.ndarray | str  # rows (steps, dim), or the reason why the item has none
_SHARD_BYTES = 128 * 2**20
_MOST_SHARDS = 1000
_LOG_EVERY_S = 15.0


@dataclass(frozen=True)
class Source:
    """One kind of features in foreign files.

    Attributes:
        name: of the store it becomes.
        ids: of all items, in order.
        read: ids -> for each of them its rows, or the reason why it has none; reads as little as it can at a time.
        recipe: which files, of which format, with their sha256.
        notes: what the user should know about the files.
        dtype: in which the numbers are stored unless the user says; None = as they are.
    """

    name: str
    ids: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[Value]]
    recipe: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())
    dtype: StoreDtype | None = None

    def renamed(self, rename: Callable[[str], str], rule: str) -> Source:
        """The same rows under other ids.

        Args:
            rename: old id -> new id.
            rule: its description, for the recipe.

        Raises:
            UserError: two items get the same id.
        """
        old = {rename(item): item for item in self.ids}
        if len(old) != len(self.ids):
            twice = next(item for item in self.ids if old[rename(item)] != item)
            raise UserError(
                f"{self.name}: items {twice!r} and {old[rename(twice)]!r} both become {rename(twice)!r} ({rule}); "
                "import them with their own ids"
            )
        recipe = {**self.recipe, "ids": rule}
        if "videos" in recipe:  # columns of a teacher
            recipe["videos"] = [rename(video) for video in recipe["videos"]]
        return replace(self, ids=tuple(old), read=lambda ids: self.read([old[item] for item in ids]), recipe=recipe)


def import_source(
    source: Source, folder: Path, *, dtype: StoreDtype | None = None, nan: NanPolicy = "error"
) -> FeatureStore:
    """Copy a source into a store; an interrupted copy goes on where it stopped.

    Args:
        source: where from.
        folder: the store's.
        dtype: of the stored numbers; None = what the source says, else that of its numbers, at most float32.
        nan: "error" = a NaN or infinite number among an item's rows stops the import; "missing" = the item is stored
            as missing, with that reason. An item of nothing but NaN is missing in any case.

    Returns:
        The finished store.

    Raises:
        UserError: no item has features, rows of different lengths, NaN, or the disk is full.
    """
    first_id, first = _first(source)
    kept: StoreDtype = dtype or source.dtype or ("float16" if first.dtype == np.float16 else "float32")
    writer = StoreWriter(
        folder,
        name=source.name,
        dim=first.shape[1],
        dtype=kept,
        recipe={**source.recipe, "nan": nan},
        ids=source.ids,
        items_per_shard=_items_per_shard(len(source.ids), first.nbytes),
    )
    said = time.monotonic()
    for shard in writer.pending():
        writer.write_shard(shard, _items(source, writer.shard_ids(shard), nan, (first_id, first.shape[1])))
        if time.monotonic() - said > _LOG_EVERY_S:
            said = time.monotonic()
            logger.info("%s: %d of %d shards", source.name, shard + 1, writer.num_shards)
    return writer.finish()


def concatenate(sources: Sequence[Source], name: str) -> Source:
    """One source whose rows are those of several, side by side: ResNet-152 and ResNeXt-101, or mean and maximum.

    Items are those of the first source; one that another lacks, or misses, is missing.
    Deviates: Dual Encoding's script writes the numbers with six digits on the way; here they stay as they are.

    Raises:
        UserError: when an item is read whose sources differ in the number of rows.
    """
    known = [frozenset(source.ids) for source in sources]

    def read_one(source: Source, ids: frozenset[str], item: str) -> Value:
        return next(source.read([item])) if item in ids else f"not in {source.name}"

    def read(ids: Sequence[str]) -> Iterator[Value]:
        for item in ids:
            parts = [read_one(source, among, item) for source, among in zip(sources, known, strict=True)]
            arrays = [part for part in parts if isinstance(part, np.ndarray)]
            reason = next((part for part in parts if isinstance(part, str)), None)
            if reason is not None:
                yield reason
            elif len({len(array) for array in arrays}) > 1:
                counts = ", ".join(f"{len(a)} in {s.name}" for a, s in zip(arrays, sources, strict=True))
                raise UserError(f"{name}: item {item!r} has rows: {counts}; expected the same number in all")
            else:
                yield np.concatenate(arrays, axis=1)

    recipe = {"concatenated": [{**source.recipe, "name": source.name} for source in sources]}
    return Source(name, sources[0].ids, read, recipe, tuple(note for source in sources for note in source.notes))


def unite(sources: Sequence[Source], name: str) -> Source:
    """One source of the items of several, one after another: features that lie in a folder for each part.

    An item that several have is read from the first of them, and noted.
    """
    owner: dict[str, int] = {}
    for index, source in enumerate(sources):
        for item in source.ids:
            owner.setdefault(item, index)

    def read(ids: Sequence[str]) -> Iterator[Value]:
        for index, run in groupby(ids, owner.__getitem__):
            yield from sources[index].read(list(run))

    twice = sum(len(source.ids) for source in sources) - len(owner)
    notes = [note for source in sources for note in source.notes]
    notes += [f"{twice:,} items are in several of the sources; those of the first one count"] if twice else []
    recipe = {"united": [{**source.recipe, "name": source.name} for source in sources]}
    return Source(name, tuple(owner), read, recipe, tuple(notes))


def as_rows(value: object, where: str) -> Value:
    """What a foreign file holds for one item, as rows or as the reason why there are none.

    Args:
        value: array (dim,) or (steps, dim), list of numbers, None, or a NaN, which stands for "missing".
        where: file and item, for messages.

    Raises:
        UserError: anything else.
    """
    if value is None:
        return "missing in the source"
    if isinstance(value, bytes | str):
        raise UserError(f"{where} is text, expected numbers; is this a file of features?")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise UserError(f"{where} is no array ({error}), expected numbers (steps, dim)") from error
    if array.dtype.kind not in "fiu":
        raise UserError(f"{where} has type {array.dtype}, expected numbers; is this a file of features?")
    if array.ndim == 0:
        if math.isnan(float(array)):
            return "missing in the source (NaN)"
        raise UserError(f"{where} is the number {float(array)}, expected an array, or NaN for missing")
    if array.ndim > 2:
        raise UserError(f"{where} has shape {array.shape}, expected (dim,) or (steps, dim)")
    if array.size == 0:
        return "no rows in the source"
    if array.dtype.kind == "f" and np.isnan(array).all():
        return "missing in the source (all NaN)"
    return array[None] if array.ndim == 1 else array


def describe_files(kind: str, files: Iterable[Path]) -> dict[str, Any]:
    """The recipe of an import: format, names, and one sha256 over the contents of all files."""
    listed = list(files)
    if len(listed) == 1:
        return {"imported": kind, "file": listed[0].name, "sha256": file_sha256(listed[0])}
    total = hashlib.sha256()
    for path in listed:
        total.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return {"imported": kind, "files": len(listed), "sha256": total.hexdigest()}


def _first(source: Source) -> tuple[str, np.ndarray]:
    for item, value in zip(source.ids, source.read(source.ids), strict=True):
        if isinstance(value, np.ndarray):
            return item, value
    raise UserError(
        f"{source.name}: none of its {len(source.ids)} items has features, expected at least one; is the file complete?"
    )


def _items_per_shard(items: int, bytes_each: int) -> int:
    return max(_SHARD_BYTES // max(bytes_each, 1), -(-items // _MOST_SHARDS), 1)


def _items(source: Source, ids: Sequence[str], nan: NanPolicy, first: tuple[str, int]) -> Iterator[Item]:
    first_id, dim = first
    for item, value in zip(ids, source.read(ids), strict=True):
        if isinstance(value, str):
            yield item, None, value, None
            continue
        if value.shape[1] != dim:
            raise UserError(
                f"{source.name}: item {item!r} has dim {value.shape[1]}, but {first_id!r} has {dim}; expected one dim "
                "for all, remove or mend the odd ones"
            )
        bad = np.flatnonzero(~np.isfinite(value).all(axis=1))
        if not len(bad):
            yield item, value, None, None
        elif nan == "missing":
            yield item, None, f"NaN or infinite numbers in {len(bad)} of {len(value)} rows (first: {bad[0]})", None
        else:
            raise UserError(
                f"{source.name}: item {item!r} has NaN or infinite numbers in {len(bad)} of {len(value)} rows (first: "
                f"{bad[0]}), expected none; mend it, or import such items as missing by task.nan=missing"
            )
