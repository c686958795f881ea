"""Features in task=convert: foreign ones to stores of ours, and a store to BigFile."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig

from src.data.features.bigfile import export_bigfile
from src.data.features.detect import Found, find_sources
from src.data.features.experts import cut_ids
from src.data.features.source import Source, concatenate, import_source, unite
from src.data.features.store import FeatureStore
from src.errors import UserError
from src.reports.table import Table

log = logging.getLogger(__name__)
_COLUMNS = ("features", "items", "rows", "dim", "dtype", "missing", "where")
_LISTED = 5  # missing items that are named


def convert_features(cfg: DictConfig) -> None:
    """Import `task.source` into one store per kind of features, or export a store; print what came out.

    Raises:
        UserError: nothing that is known at the source, or features that cannot be converted.
    """
    source = Path(cfg.task.source)
    _check(cfg)
    if cfg.task.append and cfg.task.also:
        raise UserError("task.append and task.also at once, expected one of them; unite first, then append the stores")
    if cfg.task.format == "bigfile":
        return _export(FeatureStore.open(source), Path(cfg.task.output or Path(cfg.paths.run_dir) / source.name))
    several = bool(cfg.task.append or cfg.task.also)
    found, notes = find_sources(source, trust=cfg.task.trust, suffix=cfg.task.suffix, stores=several)
    if several and len(found) > 1:
        names = ", ".join(one.name for one in found)
        key = "append" if cfg.task.append else "also"
        raise UserError(f"task.{key} with several kinds of features at the source ({names}); give one of them")
    rows = []
    for one in found:
        features = _loaded(cfg, one)
        folder = _folder(cfg, one.name, several=len(found) > 1)
        store = import_source(features, folder, dtype=cfg.task.dtype, nan=cfg.task.nan)
        notes += [f"{one.name}: {note}" for note in (*features.notes, *missing_notes(store))]
        rows.append(_row(store, folder))
    Table("features", _COLUMNS, tuple(rows), tuple(notes)).print()


def _loaded(cfg: DictConfig, found: Found) -> Source:
    """The source, with those of `task.also` after it, or those of `task.append` beside it."""
    source = found.load()
    if cfg.task.also:
        source = unite([source, *_further(cfg, cfg.task.also)], found.name)
    if cfg.task.append:
        source = concatenate([source, *_further(cfg, cfg.task.append)], found.name)
    return cut_ids(source) if cfg.task.cut_ids else source


def _further(cfg: DictConfig, paths: Iterable[str]) -> list[Source]:
    return [one.load() for path in paths for one in find_sources(Path(path), trust=cfg.task.trust, stores=True)[0]]


def _check(cfg: DictConfig) -> None:
    choices = {"format": ("ours", "bigfile"), "dtype": (None, "float32", "float16"), "nan": ("error", "missing")}
    for key, allowed in choices.items():
        if cfg.task[key] not in allowed:
            words = ", ".join("null" if word is None else word for word in allowed)
            raise UserError(f"task.{key}={cfg.task[key]}, expected one of {words} for features")


def _folder(cfg: DictConfig, name: str, *, several: bool) -> Path:
    if cfg.task.output is None:
        return Path(cfg.paths.run_dir) / name
    return Path(cfg.task.output) / name if several else Path(cfg.task.output)


def _row(store: FeatureStore, folder: Path) -> tuple[str, ...]:
    counts = (f"{len(store):,}", f"{store.num_rows:,}", str(store.dim), str(store.dtype), f"{len(store.missing):,}")
    return (store.name, *counts, str(folder))


def missing_notes(store: FeatureStore) -> list[str]:
    """Which items have no features, as one note; none when all have."""
    listed = [f"{item} ({reason})" for item, reason in list(store.missing.items())[:_LISTED]]
    more = f" and {len(store.missing) - len(listed):,} more" if len(store.missing) > len(listed) else ""
    return [f"missing: {', '.join(listed)}{more}"] if listed else []


def _export(store: FeatureStore, folder: Path) -> None:
    left_out = export_bigfile(store, folder)
    notes = (f"{left_out:,} missing items are left out: BigFile has no place for them",) if left_out else ()
    Table("BigFile", _COLUMNS, (_row(store, folder),), notes).print()
