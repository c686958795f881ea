"""From the manifest's archives to files in their place: fetch, verify, unpack, record; each archive by itself.

Fetched files lie in DATA/downloads/<manifest>, with a record `<archive>.json` of what was unpacked from where and which
checksum it had. A file that a person puts there is verified and unpacked like one that was fetched.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from src.data.archive_manifest import CODE, Archive
from src.data.download import SCHEMES, Checksum, Fetched, FetchOptions, checksums_of, fetch
from src.data.unpack import Unpacked, unpack
from src.data.whole_file import write_whole
from src.errors import UserError

State = Literal["fetched", "there", "by hand", "not verified", "failed"]
# A file whose size is this far from the published, rounded one is another file.
TOLERATED_SIZE = 0.05


@dataclass(frozen=True)
class ObtainOptions:
    """What the user decides about fetching.

    Attributes:
        mirror: address that holds copies; null = the published addresses.
        access_code: for archives that need one.
        unverified: also take archives without a published checksum.
        accept: further accepted checksums, for any archive.
        keep_archives: keep the packed file.
        fetching: retries and time limits.
    """

    mirror: str | None = None
    access_code: str | None = None
    unverified: bool = False
    accept: tuple[Checksum, ...] = ()
    keep_archives: bool = False
    fetching: FetchOptions = field(default_factory=FetchOptions)


@dataclass(frozen=True)
class Outcome:
    """What became of an archive, in words."""

    archive: Archive
    state: State
    detail: str


def obtain(
    archives: Sequence[Archive],
    data_dir: Path,
    options: ObtainOptions,
    advance: Callable[[Archive, int, int | None], object] = lambda archive, have, total: None,
) -> Iterator[Outcome]:
    """Obtain one archive after another; what fails does not stop the others.

    Args:
        archives: which.
        data_dir: the data root.
        options: how.
        advance: called with the bytes that are there and their total, while fetching.
    """
    for archive in archives:
        folder = data_dir / "downloads" / archive.manifest
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                yield _obtain(archive, folder, data_dir, options, advance)
        except UserError as error:
            yield Outcome(archive, "failed", str(error))
        except OSError as error:
            yield Outcome(archive, "failed", f"cannot write below {data_dir} ({error.strerror or error}); make room")


def addresses(archive: Archive, mirror: str | None, access_code: str | None) -> list[str]:
    """Where the archive may be: its published addresses, or the places on a mirror where a copy may lie.

    Raises:
        UserError: the mirror is no http(s) address.
    """
    code = hashlib.sha256(access_code.encode()).hexdigest()[:10] + "-" if access_code else ""
    published = [url.replace(CODE, code) for url in archive.urls]
    if mirror is None:
        return published
    if urlsplit(mirror).scheme not in SCHEMES or not urlsplit(mirror).hostname:
        raise UserError(f"found task.mirror={mirror!r}, expected http://HOST/PREFIX or https://HOST/PREFIX")
    root = mirror.rstrip("/")
    copies = []
    for url in published:
        parts = urlsplit(url)
        copies += [f"{root}/{parts.netloc}{parts.path}", f"{root}{parts.path}", f"{root}/{Path(parts.path).name}"]
    return list(dict.fromkeys(copies or [f"{root}/{archive.file}"]))


def _obtain(
    archive: Archive,
    folder: Path,
    data_dir: Path,
    options: ObtainOptions,
    advance: Callable[[Archive, int, int | None], object],
) -> Outcome:
    destination = data_dir / archive.into
    record = _read_record(folder, archive)
    there = destination.is_dir() if archive.unpack else (destination / archive.file).is_file()
    if record is not None and there:
        return Outcome(archive, "there", f"{record.get('matched') or 'not verified'}, in {destination}")
    local = folder / archive.file
    by_hand = local.is_file()
    if not by_hand and (why := _obstacle(archive, local, options)):
        return why
    accepted = (*archive.checksums, *options.accept)
    if by_hand:
        fetched = _verify(archive, local, accepted, options)
    else:
        fetching = replace(options.fetching, room=2.0 if archive.unpack else 1.0)
        urls = addresses(archive, options.mirror, options.access_code)
        report = lambda have, total: advance(archive, have, total)  # noqa: E731
        fetched = fetch(urls, local, accepted, fetching, report)
    if fetched.matched is None:
        _check_size(archive, fetched)
    done = _place(archive, local, destination, options.keep_archives)
    _write_record(folder, archive, fetched, done)
    matched = (
        f"checksum {fetched.matched}" if fetched.matched else f"not verified, sha256:{fetched.checksums['sha256']}"
    )
    return Outcome(archive, "fetched", f"{matched}; {done.files} files, {in_words(done.bytes)} in {destination}")


def _obstacle(archive: Archive, local: Path, options: ObtainOptions) -> Outcome | None:
    """Why the archive cannot be fetched as things are."""
    if not archive.urls and options.mirror is None:
        return Outcome(archive, "by hand", f"{archive.steps}, save it as {local} and run this again")
    if archive.needs_code and not options.access_code:
        return Outcome(archive, "by hand", archive.steps)
    if not (archive.checksums or options.accept or options.unverified):
        return Outcome(archive, "not verified", "no checksum is published; add unverified=true to take it nevertheless")
    return None


def _verify(archive: Archive, local: Path, accepted: Sequence[Checksum], options: ObtainOptions) -> Fetched:
    """A file that somebody put there, as if it had been fetched."""
    sums = checksums_of(local, {"sha256", *(checksum.algorithm for checksum in accepted)})
    matched = next((c for c in accepted if sums[c.algorithm] == c.value), None)
    if accepted and matched is None:
        raise UserError(
            f"{local} has the checksum sha256:{sums['sha256']}, expected {' or '.join(map(str, accepted))}; remove it, "
            f"or, if you know it to be right, give task.accept=['sha256:{sums['sha256']}']"
        )
    if matched is None and not options.unverified:
        raise UserError(f"no checksum is published for {local}; add unverified=true to unpack it nevertheless")
    return Fetched(local, "by hand", local.stat().st_size, sums, matched)


def _check_size(archive: Archive, fetched: Fetched) -> None:
    if archive.size and abs(fetched.size - archive.size) > TOLERATED_SIZE * archive.size:
        raise UserError(
            f"{fetched.path} has {in_words(fetched.size)}, expected the published {in_words(archive.size)}; it was not "
            "unpacked. Remove it, or, if you know it to be right, give "
            f"task.accept=['sha256:{fetched.checksums['sha256']}']"
        )


def _place(archive: Archive, local: Path, destination: Path, keep: bool) -> Unpacked:
    if archive.unpack:
        done = unpack(local, destination, strip=archive.strip)
        if not keep:
            local.unlink()
        return done
    destination.mkdir(parents=True, exist_ok=True)
    size = local.stat().st_size
    temporary = destination / f".{archive.file}.part"
    if keep:
        shutil.copyfile(local, temporary)
        temporary.replace(destination / archive.file)
    else:
        shutil.move(local, temporary)  # the data root may span several disks
        temporary.replace(destination / archive.file)
    return Unpacked(1, size)


def _read_record(folder: Path, archive: Archive) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / f"{archive.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _write_record(folder: Path, archive: Archive, fetched: Fetched, done: Unpacked) -> None:
    record = {
        "archive": archive.label,
        "url": fetched.url,
        "bytes": fetched.size,
        "checksums": fetched.checksums,
        "matched": str(fetched.matched) if fetched.matched else None,
        "into": archive.into,
        "files": done.files,
        "unpacked_bytes": done.bytes,
    }
    write_whole(folder / f"{archive.name}.json", json.dumps(record, indent=1).encode())


def in_words(size: int) -> str:
    """`4.3 GiB`."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is fetching into it; wait until it ends") from None
        yield
