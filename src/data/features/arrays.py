"""Features as NumPy's own files: a folder with one .npy per item, or one .npz."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from src.data.features.source import Source, Value, as_rows, describe_files
from src.errors import UserError

# Extractors of I3D and VGGish write <clip>_rgb.npy, <clip>_flow.npy and <clip>_vggish.npy side by side.
SUFFIXES = ("_rgb", "_flow", "_vggish")


def npy_sources(folder: Path, suffix: str | None = None) -> list[Source]:
    """The features in a folder of .npy files; several kinds when the names end in `SUFFIXES`.

    Args:
        folder: its files are named `<id>.npy` or `<id><suffix>.npy`; arrays are (dim,) or (steps, dim).
        suffix: only files whose names end so; None = all, sorted by `SUFFIXES`.

    Raises:
        UserError: no such files.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.npy"))}
    endings = (suffix,) if suffix is not None else SUFFIXES
    kinds: dict[str, dict[str, Path]] = {}
    for stem, path in files.items():
        ending = next((e for e in endings if e and stem.endswith(e) and stem != e), "" if suffix is None else None)
        if ending is not None:
            kinds.setdefault(ending, {})[stem.removesuffix(ending)] = path
    if not kinds:
        wanted = "*.npy" if suffix is None else f"*{suffix}.npy"
        raise UserError(f"{folder}: found no {wanted}, expected one file of features for each item")
    plain = folder.resolve().name
    return [_npy_source(ending.strip("_.-") or plain, paths, ending) for ending, paths in kinds.items()]


def npz_source(path: Path) -> Source:
    """The features in one .npz: array name = item id.

    Raises:
        UserError: not an archive of arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            ids = tuple(archive.files)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as .npz ({error}); fetch it again") from error

    def read(wanted: Sequence[str]) -> Iterator[Value]:
        with np.load(path, allow_pickle=False) as opened:
            for item in wanted:
                where = f"{path}: {item!r}"
                yield as_rows(_loaded(partial(opened.__getitem__, item), where), where)

    return Source(path.stem, ids, read, describe_files("npz", [path]))


def _npy_source(name: str, files: dict[str, Path], suffix: str) -> Source:
    def read(ids: Sequence[str]) -> Iterator[Value]:
        for item in ids:
            yield as_rows(
                _loaded(partial(np.load, files[item], allow_pickle=False), str(files[item])), str(files[item])
            )

    recipe = describe_files("npy", files.values())
    return Source(name, tuple(files), read, recipe | ({"suffix": suffix} if suffix else {}))


def _loaded(load: Callable[[], np.ndarray], where: str) -> np.ndarray:
    try:
        return load()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{where}: cannot be read as an array ({error}); fetch it again") from error
