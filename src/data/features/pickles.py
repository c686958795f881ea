"""Pickled features, as Collaborative Experts publishes them: dict of video -> array, or an `ExpertStore`.

A pickle is a program. It is read by an unpickler that knows arrays and plain containers and nothing else; a file
that needs more is refused unless the user vouches for it.
Source: albanie/collaborative-experts data_loader and zsvision describe the layout.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from src.data.features.source import Source, Value, as_rows, describe_files
from src.data.features.teachers import is_teacher, teacher_source
from src.errors import UserError

Array = np.ndarray
_STORE_MODULES = ("datastructures", "zsvision.zs_data_structures", "zs_data_structures", "utils.datastructures")


class _Sealed(type):
    """A class that a pickle cannot change."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"a change of {cls!r}")


class ExpertStore(metaclass=_Sealed):
    """Stand-in for the class of the same name: keys, dim, one float16 matrix `store`, keymap (key -> row)."""

    keys: Sequence[object]
    store: Array
    keymap: Mapping[object, int]
    missing: Sequence[object] = ()


def _new_object(kind: type, base: type, state: object) -> object:
    """What copyreg does for old pickles, for the stand-in only."""
    if kind is not ExpertStore or base is not object or state is not None:
        raise pickle.UnpicklingError(f"an object of {kind!r}")
    return ExpertStore()


def _latin1(text: str, encoding: str) -> bytes:
    """`_codecs.encode`, by which Python 3 writes bytes for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """`bytes()`, by which Python 3 writes b"" for Python 2; with arguments it could ask for any amount of memory."""
    return b""


def _allowed() -> dict[tuple[str, str], Any]:
    table: dict[tuple[str, str], Any] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
    array = np.zeros(1)
    for core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
        table[core + ".multiarray", "_reconstruct"] = array.__reduce__()[0]
        table[core + ".multiarray", "scalar"] = array[0].__reduce__()[0]
        table[core + ".numeric", "_frombuffer"] = array.__reduce_ex__(5)[0]
    for builtins in ("builtins", "__builtin__"):
        table |= {(builtins, kind.__name__): kind for kind in (set, frozenset, list, dict, int, float, object)}
        table[builtins, "bytes"] = _no_bytes
    for copyreg in ("copyreg", "copy_reg"):
        table[copyreg, "_reconstructor"] = _new_object
    table |= {("collections", "OrderedDict"): OrderedDict, ("collections", "defaultdict"): defaultdict}
    table[("_codecs", "encode")] = _latin1
    # An ExpertStore names the class of its numbers, beside the matrix that knows it anyway.
    table |= {("numpy", name): name for name in ("float16", "float32", "float64")}
    return table | {(module, "ExpertStore"): ExpertStore for module in _STORE_MODULES}


_ALLOWED = _allowed()


class _Reader(pickle.Unpickler):
    """Finds only what `_allowed` lists."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None


class _TrustingReader(pickle.Unpickler):
    """Finds everything, after the stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        return super().find_class(module, name) if found is None else found


def load_pickle(file: IO[bytes], where: str, *, trust: bool = False) -> Any:
    """Read a pickle of arrays and plain containers, of Python 2 or 3.

    Args:
        file: open for reading.
        where: its name, for messages.
        trust: the file may name any class and thereby run code.

    Raises:
        UserError: it names a class that is not allowed, or is damaged.
    """
    reader = (_TrustingReader if trust else _Reader)(file, encoding="latin1")
    try:
        return reader.load()
    except pickle.UnpicklingError as error:
        if trust or "." not in str(error) or " " in str(error):
            raise UserError(f"{where}: damaged pickle ({error}); fetch it again") from error
        raise UserError(
            f"{where}: asks for {error}, which is neither an array nor a plain container; reading it would run its "
            "code: if you trust the file, add task.trust=true"
        ) from error
    except (ImportError, AttributeError, EOFError, ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise UserError(f"{where}: cannot be unpickled ({type(error).__name__}: {error}); fetch it again") from error


def pickle_source(files: Sequence[Path], name: str, *, trust: bool = False) -> Source:
    """The features in one pickle, or in several that hold different items.

    An item is an array (dim,), (1, dim) or (steps, dim), or NaN where it is missing. A list of arrays holds one for
    each caption of a video: they become the items `<video>#<number>`. A teacher's embeddings become scores
    (`src.data.features.teachers`).

    Raises:
        UserError: not a dict, or not of features; an item in two files.
    """
    values: dict[str, object] = {}
    for path in files:
        with path.open("rb") as file:
            content = load_pickle(file, str(path), trust=trust)
        if len(files) == 1 and is_teacher(content):
            return teacher_source(name, content, str(path), describe_files("pickle of a teacher", files))
        found = items_of(content, str(path))
        shared = values.keys() & found.keys()
        if shared:
            raise UserError(
                f"{path}: item {min(shared)!r} is also in another file of {name}; import the files one by one"
            )
        values |= found
    return mapping_source(name, values, describe_files("pickle", files))


def mapping_source(name: str, values: Mapping[str, object], recipe: Mapping[str, Any]) -> Source:
    """A source over what `items_of` returned."""

    def read(ids: Sequence[str]) -> Iterator[Value]:
        for item in ids:
            yield as_rows(values[item], f"{name}: item {item!r}")

    return Source(name, tuple(values), read, recipe)


def items_of(content: object, where: str) -> dict[str, object]:
    """Flatten what a file holds to item id -> array or NaN.

    Raises:
        UserError: it is no dict (nor an ExpertStore), is empty, or has two keys of the same name.
    """
    if isinstance(content, ExpertStore):
        content = _of_expert_store(content, where)
    if not isinstance(content, Mapping) or not content:
        kind = "an empty dict" if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f"{where}: holds {kind}, expected a dict of id -> array of features")
    items: dict[str, object] = {}
    for key, value in content.items():
        text = key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
        found = {f"{text}#{n}": one for n, one in enumerate(value)} if _is_captions(value) else {text: value}
        if items.keys() & found.keys():
            raise UserError(f"{where}: two keys are written {text!r}, expected unique ids; remove one")
        items |= found
    return items


def _is_captions(value: object) -> bool:
    """Whether a video's value is a list with one array for each caption, and not one array itself."""
    if isinstance(value, np.ndarray):
        return (value.ndim > 0 and value.dtype == object) or value.ndim == 3
    return isinstance(value, list | tuple) and not all(isinstance(one, int | float | np.number) for one in value)


def _of_expert_store(content: ExpertStore, where: str) -> dict[object, object]:
    try:
        rows = content.keymap
        if isinstance(content.store, np.ndarray) and content.store.ndim == 2:
            gone = set(content.missing)
            return {key: None if key in gone else content.store[rows[key]] for key in content.keys}
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{where}: ExpertStore without {error}, expected keys, store and keymap") from error
    raise UserError(f"{where}: ExpertStore without a matrix, expected (items, dim)")


def loads_pickle(content: bytes, where: str, *, trust: bool = False) -> Any:
    """As `load_pickle`, of bytes inside another file."""
    return load_pickle(io.BytesIO(content), where, trust=trust)
