"""The dependency rules of the code base, read from the imports of every file in src."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "src").rglob("*.py"))

# package -> packages of src that it must not import
FORBIDDEN = {
    "models": {"data", "extractors", "tasks", "config", "reports", "convert", "callbacks", "run"},
    "data": {
        "models",
        "extractors",
        "tasks",
        "config",
        "reports",
        "losses",
        "metrics",
        "optim",
        "convert",
        "callbacks",
        "run",
    },
    "metrics": {"models", "data", "tasks", "config", "reports", "losses", "optim", "convert", "callbacks", "run"},
    "losses": {"models", "data", "tasks", "config", "reports", "metrics", "optim", "convert", "callbacks", "run"},
    "optim": {"models", "data", "tasks", "config", "reports", "metrics", "losses", "convert", "callbacks", "run"},
    "reports": {"models", "data", "tasks", "config", "losses", "optim", "convert", "callbacks", "run"},
    "extractors": {
        *("data", "tasks", "config", "reports", "losses", "metrics", "optim", "convert", "callbacks", "run")
    },
    "convert": {"data", "tasks", "config", "reports", "callbacks", "run"},
    "callbacks": {"models", "data", "tasks", "config", "convert", "run"},
    "config": {"models", "data", "tasks", "reports", "losses", "optim", "metrics", "convert", "callbacks", "run"},
}
# third-party module -> the only places in src that may import it
ONLY_IN = {
    "hydra": ("run.py", "config/", "tasks/"),
    "omegaconf": ("run.py", "config/", "tasks/"),
    "pytorch_lightning": ("tasks/", "models/base.py", "data/datamodule.py", "callbacks/"),
    "wandb": (),  # only through Lightning's logger
    "lightning": (),  # the other distribution: classes of the two do not mix
}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_layers(path: Path) -> None:
    place = path.relative_to(ROOT / "src").as_posix()
    package = place.split("/")[0]
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "src" and rest:
            assert rest[0] not in FORBIDDEN.get(package, set()), f"{place} imports {name}"
        if top in ONLY_IN:
            assert place.startswith(ONLY_IN[top] or ("\0",)), f"{place} imports {name}"


def test_leaf_modules_import_nothing_of_ours() -> None:
    for leaf in ("batch.py", "clip.py", "errors.py"):
        assert not [name for name in imported(ROOT / "src" / leaf) if name.startswith("src")]


def test_no_utils_and_no_source_file_over_its_limit() -> None:
    for path in FILES:
        assert "utils" not in path.relative_to(ROOT).as_posix(), path
        assert len(path.read_text().splitlines()) <= 400, path
    assert len((ROOT / "src" / "run.py").read_text().splitlines()) <= 80


def test_no_choice_by_model_name() -> None:
    """`if model == …` means that the design is wrong; the model's own methods carry the difference."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Compare)
                and isinstance(node.left, ast.Name)
                and node.left.id in {"model", "model_name"}
            ):
                raise AssertionError(f"{path}:{node.lineno} compares the model's name")
