"""Pickles of plain values, and what is refused."""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.data.pickles import load_plain
from src.errors import UserError


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values(protocol: int, tmp_path: Path) -> None:
    value = {"a": [["x", "café"], ("y", 1, 2.5, None, True)], "b": {"c": b"d" if protocol > 2 else "d"}}
    file = tmp_path / "plain.pkl"
    file.write_bytes(pickle.dumps(value, protocol=protocol))
    assert load_plain(file) == value


def test_strings_of_python_2(tmp_path: Path) -> None:
    file = tmp_path / "old.pkl"
    file.write_bytes(b"\x80\x02}q\x00U\x03keyq\x01]q\x02U\x05caf\xc3\xa9q\x03as.")
    assert load_plain(file) == {"key": ["café"]}


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    file = tmp_path / "bad.pkl"
    file.write_bytes(pickle.dumps({"a": Harmful(tmp_path / "made")}))
    with pytest.raises(UserError, match=r"bad.pkl asks for .*, expected only dicts, lists, strings and numbers"):
        load_plain(file)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("value", [np.zeros(2), collections.OrderedDict(a=1), Path("x"), np.float64(1)])
def test_classes_are_refused(value: object, tmp_path: Path) -> None:
    file = tmp_path / "classes.pkl"
    file.write_bytes(pickle.dumps([value]))
    with pytest.raises(UserError, match="loading it could run code, so it is refused"):
        load_plain(file)


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(["a" * 99])[:-30], b"\x80\x02]a.", b"(dI0\nb."])
def test_damaged_files(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "cut.pkl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"cut.pkl is damaged .*fetch it again"):
        load_plain(file)
