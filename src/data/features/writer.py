"""Writing a feature store, shard by shard, from one or several processes; `src.data.features.store` reads it.

Every file is written under a temporary name, synced and renamed. A shard counts once its note (`shard-00000.json`) is
there, which comes after its rows. Bytes depend on content only, so an interrupted and resumed run leaves the same
folder as one that went through.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from src.data.features.store import (
    FORMAT,
    IDS,
    INDEX,
    MANIFEST,
    MISSING,
    PLAN,
    VERSION,
    FeatureStore,
    Plan,
    StoreDtype,
    details_name,
    file_sha256,
    fingerprint,
    note_name,
    shard_name,
    to_json,
)
from src.errors import UserError

FAILED = "failed: "  # a reason that begins so is a failure, to be tried again by `reopen_failed`
NOTHING = "nothing to extract"
_PART = ".part"
ATTEMPTS = 5  # to write a file that other finishing processes may sweep away
_HEADER_BYTES = 128
Item = tuple[str, np.ndarray | None, str | None, Mapping[str, Any] | None]


class _OfItems(Exception):
    """An OSError that came from the items (a video that cannot be read), not from writing them."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class StoreWriter:
    """Fills one store folder; opening it again goes on where the last run stopped.

    Several processes may write different shards at the same time: each opens a writer with the same arguments.

    Args:
        path: the folder.
        name: of the features.
        dim: length of one row.
        dtype: float16 halves the size; numbers above 65504 are refused then.
        recipe: everything that the numbers depend on, as plain JSON.
        ids: of all items, in order; unique.
        items_per_shard: items in one file.

    Raises:
        UserError: the folder holds a store of another plan; or ids that repeat or are empty.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        dim: int,
        recipe: Mapping[str, Any],
        ids: Sequence[str],
        dtype: StoreDtype = "float32",
        items_per_shard: int = 256,
    ) -> None:
        self.path = Path(path)
        self._ids = tuple(ids)
        _check_ids(name, self._ids)
        if dim < 1 or items_per_shard < 1 or dtype not in ("float32", "float16"):
            raise UserError(
                f"features {name!r}: found dim {dim}, dtype {dtype}, {items_per_shard} items per shard, expected "
                "positive numbers and float32 or float16"
            )
        text = to_json(self._ids)
        plain = json.loads(to_json(recipe))
        self.plan = Plan(
            name, dim, dtype, items_per_shard, len(ids), hashlib.sha256(text).hexdigest(), plain, fingerprint(plain)
        )
        self._begin(text)

    @property
    def num_shards(self) -> int:
        """Number of shards, finished or not."""
        return self.plan.num_shards

    def pending(self) -> list[int]:
        """Shards that are not finished; it changes while others write, so processes share them out by `shard % n`."""
        return [shard for shard in range(self.num_shards) if not (self.path / note_name(shard)).is_file()]

    def shard_ids(self, shard: int) -> tuple[str, ...]:
        """Ids of a shard's items, in order."""
        size = self.plan.items_per_shard
        return self._ids[shard * size : (shard + 1) * size]

    def write_shard(self, shard: int, items: Iterable[Item]) -> None:
        """Write one shard; it is there as a whole or not at all. One item at a time is held in memory.

        Args:
            shard: number of the shard; nothing happens when another process has finished it meanwhile.
            items: (id, rows or None, reason, details) for each of `shard_ids(shard)`, in that order. Rows are
                (steps, dim), or (dim,) for one row. None = missing, with the reason why; a reason that begins with
                `FAILED` marks an item that `reopen_failed` gives another try.

        Raises:
            UserError: an item that is not the expected one, wrong dim, no rows, NaN or infinite numbers, or the disk
                is full; nothing of the shard stays.
        """
        with self._explained(f"shard {shard}"):
            partial = self._partial(shard_name(shard))
            try:
                with partial.open("wb") as file:
                    note, details = self._fill(file, shard, _marked(items))
                if (self.path / note_name(shard)).is_file():
                    return
                note |= {"sha256": file_sha256(partial), "bytes": partial.stat().st_size}
                self._rename(partial, shard_name(shard))
            except FileNotFoundError:
                if (self.path / note_name(shard)).is_file():
                    return  # another process wrote the shard, and `finish` swept our file away
                raise
            finally:
                partial.unlink(missing_ok=True)
            if details:
                self._write(details_name(shard), to_json(details))
            else:
                (self.path / details_name(shard)).unlink(missing_ok=True)
            self._write(note_name(shard), to_json(note))

    def failed(self) -> dict[str, str]:
        """Id -> reason of the failed items of the finished shards."""
        return {
            item: reason
            for shard in range(self.num_shards)
            if (self.path / note_name(shard)).is_file()
            for item, reason in self._note(shard)["missing"].items()
            if reason.startswith(FAILED)
        }

    def reopen_failed(self) -> list[int]:
        """Make the shards with failed items pending again; only one process may call it, before the others start."""
        finished = set(range(self.num_shards)) - set(self.pending())
        shards = [
            shard
            for shard in sorted(finished)
            if any(reason.startswith(FAILED) for reason in self._note(shard)["missing"].values())
        ]
        if shards:
            (self.path / MANIFEST).unlink(missing_ok=True)
        for shard in shards:
            (self.path / note_name(shard)).unlink(missing_ok=True)
        return shards

    def finish(self) -> FeatureStore:
        """Write index and manifest once all shards are there; any number of processes may call it.

        Raises:
            UserError: shards are pending.
        """
        if (self.path / MANIFEST).is_file():
            return FeatureStore.open(self.path)
        pending = self.pending()
        if pending:
            raise UserError(
                f"{self.path}: found {len(pending)} of {self.num_shards} shards not written (first: {pending[0]}), "
                "expected all; run the same command again, finished shards are kept"
            )
        with self._explained("the index"):
            lengths, missing, files = self._collect()
            offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
            for name, content in ((INDEX, _npy(offsets)), (MISSING, to_json(missing))):
                self._write(name, content)
            for name in (PLAN, IDS, INDEX, MISSING):
                path = self.path / name
                files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            counts = {"items": len(self._ids) - len(missing), "missing": len(missing), "rows": int(offsets[-1])}
            manifest = {"format": FORMAT, "version": VERSION, **counts, "plan": self.plan._asdict(), "files": files}
            for stale in self.path.glob(f".*{_PART}"):  # of runs that were killed
                stale.unlink(missing_ok=True)
            self._write(MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n")
        return FeatureStore.open(self.path)

    def _begin(self, ids_text: bytes) -> None:
        plan = self.path / PLAN
        if not plan.is_file():
            with self._explained("its plan"):
                self.path.mkdir(parents=True, exist_ok=True)
                self._write(IDS, ids_text)
                self._write(PLAN, to_json(self.plan._asdict()))
            return
        found, wanted = json.loads(plan.read_text(encoding="utf-8")), self.plan._asdict()
        differing = [key for key in wanted if found.get(key) != wanted[key] and key != "fingerprint"]
        if differing:
            raise UserError(
                f"{self.path}: holds features made with other settings: {_differences(found, wanted, differing)}; "
                "give another folder, or remove this one"
            )

    def _fill(self, file: BinaryIO, shard: int, items: Iterable[Item]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Stream the rows into the file; returns the note and the details."""
        lengths: list[int] = []
        missing: dict[str, str] = {}
        details: dict[str, Any] = {}
        file.write(bytes(_HEADER_BYTES))  # overwritten once the number of rows is known
        expected = iter(self.shard_ids(shard))
        for item_id, rows, reason, facts in items:
            wanted = next(expected, None)
            if item_id != wanted:
                raise UserError(
                    f"{self.path}: shard {shard}: found item {item_id!r}, expected {wanted!r}; write the items of "
                    "shard_ids in their order, each once"
                )
            if rows is None:
                missing[item_id] = reason or NOTHING
                lengths.append(0)
            else:
                checked = self._checked(item_id, rows)
                file.write(checked.data)
                lengths.append(len(checked))
            if facts is not None:
                details[item_id] = json.loads(to_json(facts))
        lacking = next(expected, None)
        if lacking is not None:
            raise UserError(f"{self.path}: shard {shard} ends before item {lacking!r}; give its rows, or None")
        file.seek(0)
        file.write(_header((sum(lengths), self.plan.dim), np.dtype(self.plan.dtype)))
        file.flush()
        os.fsync(file.fileno())
        return {"lengths": lengths, "missing": missing}, details

    def _checked(self, item_id: str, rows: np.ndarray) -> np.ndarray:
        """The rows as they are stored: contiguous, little-endian, (steps, dim)."""
        where = f"{self.plan.name}: item {item_id!r}"
        found = np.asarray(rows)
        rows_2d = found[None] if found.ndim == 1 and len(found) == self.plan.dim else found
        if rows_2d.ndim != 2 or rows_2d.shape[1] != self.plan.dim or rows_2d.dtype.kind not in "fiu":
            raise UserError(
                f"{where} has shape {found.shape} and type {found.dtype}, expected numbers (steps, {self.plan.dim})"
            )
        if len(rows_2d) == 0:
            raise UserError(f"{where} has no rows, expected at least one; an item without features is given as None")
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(rows_2d, dtype=np.dtype(self.plan.dtype).newbyteorder("<"))
        bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
        if len(bad):
            fits = np.isfinite(np.asarray(rows_2d[bad[0]], dtype=np.float64)).all()
            cause = f"numbers too large for {self.plan.dtype}; store float32" if fits else "NaN or infinite numbers"
            raise UserError(f"{where}: row {bad[0]} ({len(bad)} of {len(stored)} rows) has {cause}")
        return stored

    def _collect(self) -> tuple[np.ndarray, dict[str, str], dict[str, Any]]:
        """Lengths of all items, reasons of the missing ones, and the facts about the shards' files."""
        lengths: list[int] = []
        missing: dict[str, str] = {}
        files: dict[str, Any] = {}
        for shard in range(self.num_shards):
            note = self._note(shard)
            lengths += note["lengths"]
            missing |= note["missing"]
            files[shard_name(shard)] = {"bytes": note["bytes"], "sha256": note["sha256"]}
            for name in (note_name(shard), details_name(shard)):
                path = self.path / name
                if path.is_file():
                    files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        return np.asarray(lengths, dtype=np.int64), missing, files

    def _note(self, shard: int) -> dict[str, Any]:
        return json.loads((self.path / note_name(shard)).read_text(encoding="utf-8"))

    def _partial(self, name: str) -> Path:
        return self.path / f".{name}.{secrets.token_hex(8)}{_PART}"

    def _write(self, name: str, content: bytes) -> None:
        for attempt in reversed(range(ATTEMPTS)):
            partial = self._partial(name)
            try:
                with partial.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                self._rename(partial, name)
                return
            except FileNotFoundError:
                # Another process that finishes too has swept ours away, and wrote the same or is about to.
                if (self.path / name).is_file():
                    return
                if not attempt:
                    raise
            finally:
                partial.unlink(missing_ok=True)

    def _rename(self, partial: Path, name: str) -> None:
        partial.replace(self.path / name)
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name survives a power cut as well
        finally:
            os.close(folder)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn a full disk or a read-only folder into one line."""
        try:
            yield
        except _OfItems as wrapped:
            raise wrapped.error from None
        except OSError as error:
            done = self.num_shards - len(self.pending())
            raise UserError(
                f"{self.path}: {what} could not be written ({error.strerror or error}); the {done} finished shards "
                "are kept: make room (or the folder writable) and run the same command again"
            ) from error


def _marked(items: Iterable[Item]) -> Iterator[Item]:
    try:
        yield from items
    except OSError as error:
        raise _OfItems(error) from error


def _check_ids(name: str, ids: tuple[str, ...]) -> None:
    wrong = [item for item in ids if not isinstance(item, str) or not item]
    if wrong:
        raise UserError(f"features {name!r}: found the id {wrong[0]!r}, expected non-empty text")
    if len(set(ids)) != len(ids):
        repeated = [item for item, count in Counter(ids).items() if count > 1]
        raise UserError(
            f"features {name!r}: {len(repeated)} ids occur more than once (first: {repeated[0]!r}), expected unique "
            "ids; remove the repetitions"
        )


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any], keys: Sequence[str]) -> str:
    parts = []
    for key in keys:
        have, want = found.get(key), wanted[key]
        if key == "recipe" and isinstance(have, dict):
            inner = [name for name in {**have, **want} if have.get(name) != want.get(name)]
            parts += [f"{name} {have.get(name)!r}, expected {want.get(name)!r}" for name in inner]
        elif key == "ids_sha256":
            parts.append("another list of ids")
        else:
            parts.append(f"{key} {have!r}, expected {want!r}")
    return "; ".join(parts)


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Head of a .npy file, always of the same length: the number of rows is known only after they are written."""
    words = f"{{'descr': '{dtype.newbyteorder('<').str}', 'fortran_order': False, 'shape': {shape}, }}"
    start = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
    return start + words.encode().ljust(_HEADER_BYTES - 11) + b"\n"


def _npy(array: np.ndarray) -> bytes:
    return _header(array.shape, array.dtype) + array.tobytes()
