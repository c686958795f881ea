"""Features in HDF5: one dataset per item at the root or in one group; and hickle files, which are HDF5 too.

hickle 3 writes a dict as `data_0/'<key>'/data_0`, hickle 4 and 5 as `data/"<key>"`; a key with a slash becomes
`data/data<n>` with the key and the value inside. They are read here by h5py alone: hickle itself would unpickle
whatever a file says.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from src.data.features.pickles import items_of, loads_pickle, mapping_source
from src.data.features.source import Source, Value, as_rows, describe_files
from src.errors import UserError

_TYPES = "hickle_types_table"
_NUMBERED = re.compile(r"data_?(\d+)")


def hdf5_source(path: Path, name: str, *, trust: bool = False) -> Source:
    """The features in one HDF5 or hickle file.

    Args:
        path: the file.
        name: of the store.
        trust: a pickled object inside a hickle file may name any class.

    Raises:
        UserError: h5py is not installed, not an HDF5 file, or another layout.
    """
    recipe = describe_files("hdf5", [path])
    with _opened(path) as file:
        root = _entries(file)
        if not hasattr(root, "keys"):
            return _pickled(root, path, name, trust=trust)
        places: dict[str, str] = {}
        for key, child in root.items():
            places |= {} if key == _TYPES else _places(child)
    if not places:
        raise UserError(f"{path}: found no datasets, expected one for each item at the root or in one group")

    def read(ids: Sequence[str]) -> Iterator[Value]:
        with _opened(path) as opened:
            for item in ids:
                yield as_rows(np.asarray(opened[places[item]][()]), f"{path}: item {item!r}")

    return Source(name, tuple(places), read, recipe)


def _opened(path: Path) -> Any:
    try:
        h5py = import_module("h5py")
    except ImportError as error:
        raise UserError(f"{path} needs the package h5py; install it with: pip install 'videotext[hdf5]'") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: cannot be read as HDF5 ({error}); fetch it again") from error


def _entries(file: Any) -> Any:
    """The group whose children are the items, or the one dataset of a pickled object."""
    group = file
    while hasattr(group, "keys"):
        inner = [child for key, child in group.items() if key != _TYPES]
        if len(inner) != 1 or _is_value(inner[0]):
            return group
        if not hasattr(inner[0], "keys"):
            return inner[0] if _is_pickle(inner[0]) else group
        group = inner[0]
    return group


def _is_value(group: Any) -> bool:
    """Whether the group is one item of a dict of a single key, not the dict itself."""
    quoted = group.name.rpartition("/")[2][:1] in ("'", '"')
    return quoted or bool(re.search("dict_item|list|tuple|key_value", _kind(group)))


def _places(child: Any) -> dict[str, str]:
    """Item id -> path of its dataset; several for a list of captions."""
    key = child.name.rpartition("/")[2]
    if key[:1] in ("'", '"'):
        key = str(ast.literal_eval(key))
    if not hasattr(child, "keys"):
        return {key: child.name}
    if child.attrs.get("key_base_type") in ("key_value", b"key_value"):
        key, child = _text(child["data0"]), child["data1"]
        if not hasattr(child, "keys"):
            return {key: child.name}
    inner = list(child.values())
    if len(inner) == 1 and _NUMBERED.fullmatch(inner[0].name.rpartition("/")[2]) and "dict_item" in _kind(child):
        if not hasattr(inner[0], "keys"):
            return {key: inner[0].name}
        inner = list(inner[0].values())  # hickle 3: the list of captions lies one level deeper
    numbered = [(_NUMBERED.fullmatch(one.name.rpartition("/")[2]), one) for one in inner]
    if not numbered or any(match is None or hasattr(one, "keys") for match, one in numbered):
        raise UserError(
            f"{child.file.filename}: {child.name} is a group inside a group, expected one dataset for each item at the "
            "root or in one group"
        )
    return {f"{key}#{int(match[1])}": one.name for match, one in numbered if match}


def _kind(node: Any) -> str:
    """What a hickle file says of a node, as text; "" in other files."""
    reference = import_module("h5py").Reference
    words = []
    for name in ("type", "base_type", "key_base_type"):
        value = node.attrs.get(name)
        if isinstance(value, reference):
            base = node.file[value].attrs.get("base_type")
            words += [node.file[value].name, node.file[base].name if isinstance(base, reference) else str(base)]
        elif value is not None:
            words.append(str(value))
    return " ".join(words)


def _is_pickle(node: Any) -> bool:
    """Whether a hickle file could not express the object itself: hickle 3 says so, 4 and 5 store bare bytes."""
    return "pickle" in _kind(node) or (node.dtype == np.uint8 and _TYPES in node.file)


def _pickled(node: Any, path: Path, name: str, *, trust: bool) -> Source:
    where = f"{path}: the pickled object inside"
    content = items_of(loads_pickle(_bytes(node), where, trust=trust), where)
    return mapping_source(name, content, describe_files("hickle", [path]))


def _bytes(node: Any) -> bytes:
    value = node[()]
    return value if isinstance(value, bytes) else np.asarray(value).tobytes()


def _text(node: Any) -> str:
    return _bytes(node).decode("utf-8")
