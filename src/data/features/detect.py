"""What kind of foreign features a path holds."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from src.data.features.arrays import npy_sources, npz_source
from src.data.features.bigfile import FEATURES, bigfile_source
from src.data.features.experts import ENDINGS, find_experts
from src.data.features.hdf5 import hdf5_source
from src.data.features.pickles import pickle_source
from src.data.features.source import Source, Value
from src.data.features.store import MANIFEST, PLAN, FeatureStore
from src.errors import UserError

HDF5 = (".h5", ".hdf5", ".hickle")


@dataclass(frozen=True)
class Found:
    """One kind of features at a path.

    Attributes:
        name: of the store.
        load: opens it; a pickle is read as a whole then.
    """

    name: str
    load: Callable[[], Source]


def is_store(path: Path) -> bool:
    """Whether a folder is a feature store of ours, finished or not."""
    return (path / MANIFEST).is_file() or (path / PLAN).is_file()


def holds_features(path: Path) -> bool:
    """Whether the path looks like features, ours or foreign, and not like a checkpoint."""
    if path.is_dir():
        return True
    return path.suffix in (*HDF5, ".npz", ".npy") or (path.suffix in ENDINGS and not zipfile.is_zipfile(path))


def find_sources(
    path: Path, *, trust: bool = False, suffix: str | None = None, stores: bool = False
) -> tuple[list[Found], list[str]]:
    """The features at a path, and notes about files that are left out.

    Args:
        path: a folder of BigFile, or of such folders; of .npy files; of Collaborative Experts; or one .npz, HDF5,
            hickle or pickle file.
        trust: pickles may name any class and thereby run code.
        suffix: of .npy files: only those whose name ends so.
        stores: a store of ours counts as well, to be put beside or behind other features.

    Raises:
        UserError: nothing there, or nothing that is known.
    """
    if path.is_file():
        return [_of_file(path, trust)], []
    if not path.is_dir():
        raise UserError(f"{path}: not found, expected a file or folder of features; check task.source")
    if is_store(path) and stores:
        store = FeatureStore.open(path)
        return [Found(store.name, partial(store_source, store))], []
    if is_store(path):
        raise UserError(f"{path} is a feature store already; add task.format=bigfile to write it as BigFile")
    bigfiles = [folder for folder in (path, *sorted(path.iterdir())) if (folder / FEATURES).is_file()]
    if bigfiles:
        return [Found(folder.resolve().name, partial(bigfile_source, folder)) for folder in bigfiles], []
    if suffix is not None or any(path.glob("*.npy")):
        sources = npy_sources(path, suffix)
        return [Found(source.name, partial(_same, source)) for source in sources], []
    folder = find_experts(path)
    if folder.experts:
        notes = [f"read from {folder.root}"] + [f"not imported, no known expert: {file}" for file in folder.unknown]
        return [Found(expert.name, partial(expert.load, trust=trust)) for expert in folder.experts], notes
    raise UserError(
        f"{path}: found no features, expected feature.bin (BigFile), *.npy, or the aggregated_* folders of "
        "Collaborative Experts; or give one .pickle, .hickle, .h5 or .npz file"
    )


def _of_file(path: Path, trust: bool) -> Found:
    if path.suffix in HDF5:
        return Found(path.stem, partial(hdf5_source, path, path.stem, trust=trust))
    if path.suffix == ".npz":
        return Found(path.stem, partial(npz_source, path))
    if path.suffix in ENDINGS:
        return Found(path.stem, partial(pickle_source, [path], path.stem, trust=trust))
    raise UserError(
        f"{path}: found the ending {path.suffix!r}, expected .pickle, .pkl, .hickle, .h5, .hdf5 or .npz, or the folder "
        "that holds it"
    )


def store_source(store: FeatureStore) -> Source:
    """A store of ours as a source, its missing items included."""

    def read(ids: Sequence[str]) -> Iterator[Value]:
        for item in ids:
            yield store.missing[item] if item in store.missing else store.get(item)

    ids = (*store.ids, *store.missing)
    return Source(store.name, ids, read, {"store": store.name, "fingerprint": store.fingerprint})


def _same(source: Source) -> Source:
    return source
