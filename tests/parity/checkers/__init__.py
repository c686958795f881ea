"""One module per part of the product; each exports `CHECKERS = {system: {case glob: checker}}`.

A checker is `def check_…(case: Case) -> None`; it fails by AssertionError and never skips. All sizes,
seeds and options come from `case.meta`, tensors from `case.tensors` / `case.group("param")`.
"""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
from collections.abc import Callable

from tests.parity.cases import Case

Checker = Callable[[Case], None]


def _registry() -> dict[str, dict[str, Checker]]:
    merged: dict[str, dict[str, Checker]] = {}
    for module in pkgutil.iter_modules(__path__):
        for system, checkers in importlib.import_module(f"{__name__}.{module.name}").CHECKERS.items():
            known = merged.setdefault(system, {})
            twice = known.keys() & checkers.keys()
            if twice:
                raise ValueError(f"two checkers for {system}/{sorted(twice)}")
            known.update(checkers)
    return merged


CHECKERS = _registry()


def checkers_of(case: Case) -> list[Checker]:
    """All checkers whose glob matches the case."""
    return [
        check for pattern, check in CHECKERS.get(case.system, {}).items() if fnmatch.fnmatchcase(case.name, pattern)
    ]
