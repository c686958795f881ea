"""What published checkpoints hold beside their tensors, read without the classes that it was made of.

PyTorch's restricted reader knows tensors and plain containers. Trainers also save their options, and those of some hold
objects: a parser of configuration files, paths, numbers of NumPy. Each of these gets a stand-in here that keeps values
and does nothing; the reader refuses everything else by name.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


class ConfigParser:
    """Stands in for the class of collaborative-experts, whose attribute `_config` is the configuration."""


class NumberType:
    """Stands in for `numpy.dtype` of a single number.

    Args:
        code: such as "f8".
        flags: alignment and copying, without meaning here.

    Raises:
        ValueError: no number.
    """

    def __init__(self, code: str, *flags: object) -> None:
        if code not in _NUMBERS:
            raise ValueError(f"a NumPy value of type {code!r}")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def number(kind: NumberType, raw: bytes) -> float | int | bool:
    """Stands in for `numpy.core.multiarray.scalar`: the number as one of Python.

    Raises:
        ValueError: not the bytes of one number.
    """
    if not isinstance(kind, NumberType) or not isinstance(raw, bytes):
        raise ValueError("a NumPy value of an unknown type")
    found = np.frombuffer(raw, kind.order + kind.code)
    if len(found) != 1:
        raise ValueError(f"{len(found)} NumPy numbers in place of one")
    return found[0].item()


def path(*parts: str) -> str:
    """Stands in for the classes of pathlib: a path as text."""
    return "/".join(str(part) for part in parts).replace("//", "/")


def stand_ins() -> list[Any]:
    """For `torch.serialization.safe_globals`: classes that only hold values, and stand-ins with the names they replace.

    Source: albanie/collaborative-experts parse_config.py @ 7eb3b9d; its best result is a `numpy.float64`.
    """
    paths = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    return [
        argparse.Namespace,
        (ConfigParser, "parse_config.ConfigParser"),
        (NumberType, "numpy.dtype"),
        *((number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *((path, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in paths),
    ]
