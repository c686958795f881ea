"""Unpacking a fetched archive without trusting it: nothing leaves the folder, and a folder is never half unpacked.

Members are written into a temporary folder beside the destination, each after it was checked; only when all are there
do they move to their place. A member that would leave the folder, a device, a link out of the folder, more bytes than
the disk or the limit allows: each ends the unpacking, and the temporary folder is removed.
"""

from __future__ import annotations

import lzma
import posixpath
import shutil
import stat
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from src.errors import UserError

TEMPORARY = ".unpacking-"
CHUNK = 1 << 20
MOST_MEMBERS = 2_000_000
# Features compress little and JSON about tenfold; what swells more than this is no data set.
MOST_SWELLING = 100
SPARE_BYTES = 64 << 20
# What the libraries raise for bytes that they do not understand; RuntimeError is a zip's password.
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


@dataclass
class Unpacked:
    """What was written: number of files, and their bytes."""

    files: int = 0
    bytes: int = 0


@dataclass
class _Guard:
    """Checks member after member; what it has seen so far."""

    archive: Path
    limit: int
    strip: int
    done: Unpacked = field(default_factory=Unpacked)
    links: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    members: int = 0

    def refuse(self, name: str, why: str) -> UserError:
        return UserError(
            f"{self.archive} holds {name!r}, {why}; nothing of it was unpacked. Do not use this file: fetch it from "
            "the publisher's page"
        )

    def place(self, name: str) -> str | None:
        """The member's path below the destination; None where `strip` leaves nothing of it."""
        self.members += 1
        if self.members > MOST_MEMBERS:
            raise self.refuse(name, f"after {MOST_MEMBERS} others, which is no data set")
        unified = name.replace("\\", "/")
        parts = unified.split("/")
        if unified.startswith("/") or ":" in parts[0] or "\0" in name:
            raise self.refuse(name, "an absolute path")
        if ".." in parts:
            raise self.refuse(name, "a path that leads out of the folder")
        kept = [part for part in parts if part not in ("", ".")][self.strip :]
        place = "/".join(kept)
        for depth in range(1, len(kept)):
            if "/".join(kept[:depth]) in self.links:
                raise self.refuse(name, "a path through a link")
        return place or None

    def new(self, place: str) -> None:
        if place in self.links or place in self.names:
            raise self.refuse(place, "which it holds twice")
        self.names.add(place)

    def link(self, place: str, target: str, base: str) -> None:
        """A link at `place` to `target`, which is relative to the folder `base`."""
        resolved = posixpath.normpath(posixpath.join(base, target))
        if target.startswith("/") or "\\" in target or resolved == ".." or resolved.startswith("../"):
            raise self.refuse(place, f"a link to {target!r} outside the folder")
        # Behind a name, which may be or become a link itself, `..` leads somewhere else than it seems.
        parts = [part for part in target.split("/") if part not in ("", ".")]
        if ".." in parts[next((i for i, part in enumerate(parts) if part != ".."), len(parts)) :]:
            raise self.refuse(place, f"a link to {target!r}, which may lead out of the folder")
        self.new(place)
        self.links.add(place)

    def count(self, name: str, size: int) -> None:
        self.done.files += 1
        self.done.bytes += size
        if self.done.bytes > self.limit:
            raise self.refuse(
                name, f"with which it unpacks to more than {self.limit / 2**30:.2f} GiB, the free space or the limit"
            )


def unpack(
    archive: Path,
    destination: Path,
    *,
    strip: int = 0,
    limit_bytes: int | None = None,
    advance: Callable[[int], object] = lambda written: None,
) -> Unpacked:
    """Unpack a tar (gz, bz2, xz or plain) or zip file; files of the same name in the destination are replaced.

    Args:
        archive: the file; its checksum was verified.
        destination: folder; made when absent, filled up when present.
        strip: leading parts of every path to leave out.
        limit_bytes: most bytes to write; None = a hundred times the archive. Never more than the disk has.
        advance: called with the bytes written so far, member by member.

    Raises:
        UserError: no archive, damaged, or with something unsafe in it; the destination is as it was.
        OSError: the disk cannot be written.
    """
    destination = destination.resolve()  # a link to another disk: the temporary folder has to be on that disk
    destination.parent.mkdir(parents=True, exist_ok=True)
    most = archive.stat().st_size * MOST_SWELLING if limit_bytes is None else limit_bytes
    free = shutil.disk_usage(destination.parent).free - SPARE_BYTES
    guard = _Guard(archive, max(0, min(most, free)), strip)
    remove_leftovers(destination)
    temporary = destination.parent / f"{TEMPORARY}{destination.name}-{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        with _readable(archive):
            write = _unzip if zipfile.is_zipfile(archive) else _untar
            write(archive, temporary, guard, advance)
        if not guard.done.files:
            raise UserError(f"{archive} holds no files, expected the published archive; fetch it again")
        _install(temporary, destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return guard.done


def remove_leftovers(destination: Path) -> None:
    """Remove what an interrupted `unpack` into this folder left beside it."""
    for leftover in destination.parent.glob(f"{TEMPORARY}{destination.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _readable(archive: Path) -> Iterator[None]:
    """The errors that a damaged archive causes, as one."""
    try:
        yield
    except tarfile.FilterError as error:
        raise UserError(
            f"{archive} holds something unsafe ({error}); nothing of it was unpacked. Do not use this file"
        ) from error
    except _DAMAGE as error:
        raise UserError(
            f"{archive} cannot be unpacked ({error}), expected a whole tar or zip file; fetch it again"
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(f"{archive} is damaged ({error}); fetch it again") from error  # gzip.BadGzipFile


def _untar(archive: Path, folder: Path, guard: _Guard, advance: Callable[[int], object]) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise UserError("this Python is older than 3.11.4 and cannot unpack archives safely; update Python")
    with tarfile.open(archive) as tar:
        for member in tar:
            place = guard.place(member.name)
            if place is None:
                continue
            if member.issym() or member.islnk():
                _check_link(member, place, guard)
            elif member.isreg():
                guard.new(place)
                guard.count(member.name, member.size)
            elif not member.isdir():
                raise guard.refuse(member.name, "a device or another special file")
            # The second line of defence: Python's own filter for data, which also drops owners and odd modes.
            tar.extract(member.replace(name=place, deep=False), folder, filter="data")
            advance(guard.done.bytes)
        # What follows the last member has the checksum of the compressed data.
        while tar.fileobj is not None and tar.fileobj.read(CHUNK):
            pass


def _check_link(member: tarfile.TarInfo, place: str, guard: _Guard) -> None:
    """Symbolic links are relative to their folder, hard links name another member."""
    if member.issym():
        guard.link(place, member.linkname, posixpath.dirname(place))
        return
    target = guard.place(member.linkname)
    if target is None or target not in guard.names or target in guard.links:
        raise guard.refuse(member.name, f"a hard link to {member.linkname!r}, which is no file of it")
    guard.new(place)
    member.linkname = target
    guard.count(member.name, 0)


def _unzip(archive: Path, folder: Path, guard: _Guard, advance: Callable[[int], object]) -> None:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            place = guard.place(member.orig_filename)
            if place is None or place.startswith("__MACOSX/"):
                continue
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise guard.refuse(member.filename, "a link or a special file")
            path = folder / place
            if member.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            guard.new(place)
            guard.count(member.filename, member.file_size)
            path.parent.mkdir(parents=True, exist_ok=True)
            with zipped.open(member) as packed, path.open("xb") as file:
                _copy_exactly(packed, file, member.file_size, guard, member.filename)
            advance(guard.done.bytes)


def _copy_exactly(packed: IO[bytes], file: Any, size: int, guard: _Guard, name: str) -> None:
    """Not more than the declared size, whatever the compressed data would give."""
    written = 0
    while chunk := packed.read(CHUNK):
        written += len(chunk)
        if written > size:
            raise guard.refuse(name, f"larger than the {size} bytes that it declares")
        file.write(chunk)


def _install(temporary: Path, destination: Path) -> None:
    """Move everything to its place: the whole folder at once where there is none yet, else file by file."""
    if not destination.exists():
        temporary.replace(destination)
        return
    for path in sorted(temporary.rglob("*")):
        target = destination / path.relative_to(temporary)
        if path.is_dir() and not path.is_symlink():
            target.mkdir(parents=True, exist_ok=True)
        else:
            path.replace(target)
