"""Pickles that hold nothing but plain values: a file that asks for any class or function is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

from src.errors import UserError

# What a truncated or mangled stream makes the unpickler raise.
DAMAGE = (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError, MemoryError)


class _ForeignCode(Exception):
    """The pickle names something importable."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise _ForeignCode(f"{module}.{name}")


def load_plain(path: Path) -> Any:
    """Read a pickle of dicts, lists, tuples, sets, strings, bytes, numbers and None.

    Every way in which a pickle runs code starts with looking up a class or a function; none may be looked up here,
    so no trust in the file is needed. Strings of Python 2 are read as UTF-8.

    Raises:
        UserError: the file is damaged, or holds anything else.
    """
    try:
        with path.open("rb") as handle:
            return _PlainUnpickler(handle, encoding="utf-8").load()
    except _ForeignCode as error:
        raise UserError(
            f"{path} asks for {error}, expected only dicts, lists, strings and numbers; loading it could run code, "
            "so it is refused: use the published file"
        ) from error
    except DAMAGE as error:
        raise UserError(f"{path} is damaged ({error}); expected a pickle as published, fetch it again") from error
