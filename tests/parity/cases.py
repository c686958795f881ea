"""The golden cases: where they are, what each holds, and how close a result has to be.

A case is `NAME.json` in a system's folder, with its tensors in `NAME.safetensors`, or a sub-folder
`NAME/` that holds `NAME.json` and its files. The folder is `$GOLDEN_DIR`, by default `tests/golden`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR") or ROOT / "tests" / "golden").resolve()

FORWARD_RTOL = 1e-5
GRADIENT_RTOL = 1e-4


@dataclass(frozen=True)
class Case:
    """One golden case; `folder` holds its files."""

    system: str
    name: str
    folder: Path

    @property
    def id(self) -> str:
        return f"{self.system}/{self.name}"

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The case's JSON: dimensions, options, seeds, notes."""
        return json.loads((self.folder / f"{self.name}.json").read_text(encoding="utf-8"))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the case under their full names (`param/…`, `in/…`, `out/…`, `grad/…`)."""
        return load_file(self.folder / f"{self.name}.safetensors")

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below `prefix/`, without it."""
        start = f"{prefix}/"
        return {name[len(start) :]: value for name, value in self.tensors.items() if name.startswith(start)}


def find_cases(golden_dir: Path = GOLDEN_DIR) -> list[Case]:
    """Every case of every system, sorted by id."""
    cases = []
    for path in sorted(golden_dir.glob("*/*.json")):
        cases.append(Case(path.parent.name, path.stem, path.parent))
    for path in sorted(golden_dir.glob("*/*/*.json")):
        if path.stem == path.parent.name:
            cases.append(Case(path.parent.parent.name, path.stem, path.parent))
    return sorted(cases, key=lambda case: case.id)


def orphans(golden_dir: Path = GOLDEN_DIR) -> list[Path]:
    """Tensor files that belong to no case."""
    known = {case.folder / f"{case.name}.safetensors" for case in find_cases(golden_dir)}
    found = set(golden_dir.glob("*/*.safetensors"))
    return sorted(found - known)


def assert_close(
    actual: Tensor, expected: Tensor, rtol: float = FORWARD_RTOL, name: str = "value", floor: float = 0.0
) -> None:
    """Fail unless `actual` equals `expected` to `rtol`, relative to the largest expected magnitude.

    Integers and booleans have to be equal. The scale is the tensor's own maximum, so that a zero
    between large values is not held to an absolute 0; `floor` is the least scale.
    """
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not expected.is_floating_point():
        assert torch.equal(actual.to(expected.dtype), expected), f"{name}: integers differ"
        return
    actual, expected = actual.detach().double(), expected.detach().double()
    assert torch.equal(actual.isfinite(), expected.isfinite()), f"{name}: non-finite values in different places"
    actual, expected = actual[expected.isfinite()], expected[expected.isfinite()]
    if expected.numel() == 0:
        return
    scale = expected.abs().max().clamp_min(max(floor, torch.finfo(torch.float32).tiny))
    error = float((actual - expected).abs().max() / scale)
    assert error <= rtol, f"{name}: relative error {error:.2e}, allowed {rtol:.0e}"


def assert_gradients(named_parameters: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare the gradients of the named parameters at the gradient tolerance.

    The gradient of a scalar parameter (the logit scale) is one sum over all pairs that may cancel to any
    small number, while the rounding of the golden value does not shrink with it: its scale is at least
    1 % of the largest gradient of the case.
    """
    largest = max((float(gradient.abs().max()) for gradient in expected.values()), default=0.0)
    for name, gradient in expected.items():
        assert name in named_parameters, f"gradient of unknown parameter {name}"
        got = named_parameters[name].grad
        assert got is not None, f"{name}: no gradient"
        floor = 0.01 * largest if gradient.ndim == 0 else 0.0
        assert_close(got, gradient, GRADIENT_RTOL, f"grad/{name}", floor)
