"""Modules that other packages import on their way, and that a run does not need, are left for later."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    """Stands in for a module; who asks for something in it gets that of the module itself, which is imported then."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by Python's own machinery, which may do without
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def late(module: str, **known: Any) -> Iterator[None]:
    """Within, `import module` does not load it; afterwards it does, as ever.

    Args:
        module: full name; nothing happens where it is loaded already.
        known: answers to what the packages ask it for, without loading it.
    """
    if module in sys.modules:
        yield
        return
    stand_in = _Later(module)
    vars(stand_in).update(known)
    sys.modules[module] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(module) is stand_in:
            del sys.modules[module]
