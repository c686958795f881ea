"""Weights that are already on the machine: where they are, and what identifies them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from functools import cache
from pathlib import Path

from src.errors import UserError

PACKAGE = "package:"


def local_path(path: str, option: str, extra: str = "text") -> Path:
    """A file or folder that exists.

    Args:
        path: a path, or `package:<module>/<path inside it>` for weights that an installed package carries.
        option: what the user sets it with, for messages.
        extra: the extra of ours that installs such a package.

    Raises:
        UserError: there is nothing at this place, or the package is not installed. Nothing is ever fetched.
    """
    if path.startswith(PACKAGE):
        module, _, inside = path.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"the package {module.replace('_', '-')} that {option} names is not installed; "
                f"install it with: pip install 'videotext[{extra}]', or set {option} to a local path"
            )
        found = Path(spec.submodule_search_locations[0], inside)
    else:
        found = Path(path).expanduser()
    if not found.exists():
        raise UserError(f"found nothing at {option}={path}, expected a local file or folder; hubs are never asked")
    return found


def file_sha256(path: Path) -> str:
    """Of the bytes of a file, read once per process while the file stays as it is."""
    stat = path.stat()
    return _file_sha256(path, stat.st_size, stat.st_mtime_ns)


@cache
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:  # size and time are part of the key only
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Name inside the folder -> sha256, of the files with these suffixes; folders of caches (".name") are left out."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in suffixes)
    inside = {p.relative_to(folder): p for p in files}
    return {
        name.as_posix(): file_sha256(path)
        for name, path in inside.items()
        if not any(part.startswith(".") for part in name.parts)
    }


def versions(*packages: str) -> dict[str, str]:
    """Distribution name -> installed version."""
    return {package: importlib.metadata.version(package) for package in packages}
