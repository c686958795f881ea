"""Fetching one file over http(s): goes on after cut connections and interrupted runs, and ends with a checksum.

While a file is incomplete it is called `NAME.part`, and `NAME.part.json` says which version of which address it is a
part of. A server that cannot send the rest of a file, or whose file changed meanwhile, costs a new start, never a
file made of two versions.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from src.data.whole_file import write_whole
from src.errors import UserError

log = logging.getLogger(__name__)

CHUNK = 1 << 20
PART = ".part"
SCHEMES = ("http", "https")
# Answers that another attempt may change; all other failures are final for the address.
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
LONGEST_PAUSE_S = 60.0
SPARE_BYTES = 64 << 20  # room that has to remain on the disk


@dataclass(frozen=True)
class Checksum:
    """An accepted checksum: algorithm (sha1, sha256 or md5) and lower-case hex."""

    algorithm: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Checksum:
        """From `sha1:959bda…`; UserError when it is none."""
        algorithm, _, value = text.strip().lower().partition(":")
        lengths = {"md5": 32, "sha1": 40, "sha256": 64}
        if not re.fullmatch(r"[0-9a-f]+", value) or len(value) != lengths.get(algorithm):
            raise UserError(f"found the checksum {text!r}, expected md5:, sha1: or sha256: and its hex digits")
        return cls(algorithm, value)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value}"


@dataclass(frozen=True)
class FetchOptions:
    """How to fetch.

    Attributes:
        retries: attempts in a row that bring nothing, before giving up an address.
        backoff_s: pause before the second attempt; doubles with every further one, up to a minute.
        timeout_s: longest silence of a server.
        room: the disk needs this many times the file; 2 for an archive, whose contents are at least as large.
        sleep: what pauses.
    """

    retries: int = 5
    backoff_s: float = 1.0
    timeout_s: float = 60.0
    room: float = 1.0
    sleep: Callable[[float], object] = time.sleep


@dataclass(frozen=True)
class Fetched:
    """A complete file: where it came from, and its checksums by algorithm; `matched` is the accepted one."""

    path: Path
    url: str
    size: int
    checksums: dict[str, str]
    matched: Checksum | None


@dataclass
class _Version:
    """What identifies the file on the server that a part belongs to; None = the server does not say."""

    url: str
    etag: str | None = None
    modified: str | None = None
    total: int | None = None

    def differs(self, other: _Version) -> bool:
        pairs = ((self.etag, other.etag), (self.modified, other.modified), (self.total, other.total))
        return self.url != other.url or any(a is not None and b is not None and a != b for a, b in pairs)


class _Gone(Exception):
    """This address will not give the file; `silent` = its host does not answer at all."""

    def __init__(self, reason: str, silent: bool = False) -> None:
        super().__init__(reason)
        self.silent = silent


class _Retry(Exception):
    """Worth another attempt; `after_s` is what the server asked for."""

    def __init__(self, reason: str, after_s: float = 0.0, silent: bool = False) -> None:
        super().__init__(reason)
        self.after_s = after_s
        self.silent = silent


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in SCHEMES:
            raise _Gone(f"it redirects to {newurl}, which is not http(s)")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(
    urls: Sequence[str],
    target: Path,
    accepted: Sequence[Checksum],
    options: FetchOptions,
    advance: Callable[[int, int | None], object] = lambda have, total: None,
) -> Fetched:
    """Fetch a file from the first address that gives it; a `.part` of an earlier run is continued.

    Args:
        urls: addresses of the same file, by preference.
        target: where it goes; replaced as a whole.
        accepted: checksums, one of which the file has to have; empty = any.
        options: how.
        advance: called with the bytes that are there and their total (None = the server does not say).

    Raises:
        UserError: no address gives it, it has another checksum, or the disk is too small.
    """
    for url in urls:
        if urlsplit(url).scheme not in SCHEMES or not urlsplit(url).hostname:
            raise UserError(f"found the address {url!r}, expected http://… or https://…")
    target.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    silent: set[str] = set()
    for url in urls:
        if urlsplit(url).netloc in silent:
            continue
        try:
            return _fetch_checked(url, target, accepted, options, advance)
        except _Gone as error:
            reasons.append(f"{url}: {error}")
            silent |= {urlsplit(url).netloc} if error.silent else set()
    raise UserError(
        f"{target.name} could not be fetched ({'; '.join(reasons)}); run it again to continue, or give "
        "task.mirror=http://… with a copy of it"
    )


def _fetch_checked(
    url: str,
    target: Path,
    accepted: Sequence[Checksum],
    options: FetchOptions,
    advance: Callable[[int, int | None], object],
) -> Fetched:
    part = target.with_name(target.name + PART)
    for again in (True, False):
        resumed = _fetch_all(url, part, options, advance)
        sums = checksums_of(part, {"sha256", *(checksum.algorithm for checksum in accepted)})
        matched = next((c for c in accepted if sums[c.algorithm] == c.value), None)
        if matched or not accepted:
            size = part.stat().st_size
            part.replace(target)
            _state_file(part).unlink(missing_ok=True)
            return Fetched(target, url, size, sums, matched)
        _forget(part)
        if not resumed or not again:
            break
        log.warning("%s: the continued file has a wrong checksum; fetching it anew", target.name)
    found = ", ".join(f"{name}:{value}" for name, value in sorted(sums.items()))
    raise UserError(
        f"{target.name} from {url} has the checksum {found}, expected {' or '.join(map(str, accepted))}; nothing was "
        f"unpacked. If you know that file to be right, give task.accept=['sha256:{sums['sha256']}']"
    )


def _fetch_all(url: str, part: Path, options: FetchOptions, advance: Callable[[int, int | None], object]) -> bool:
    """Complete `part`; whether bytes of an earlier connection were kept."""
    fruitless = connections = 0
    resumed = False
    while True:
        before = _size(part)
        try:
            resumed |= _attempt(url, part, options, advance)
            return resumed
        except _Retry as error:
            connections += 1
            fruitless = 0 if _size(part) > before else fruitless + 1
            if fruitless >= max(1, options.retries):
                raise _Gone(f"{error} ({connections} attempts, {_size(part)} bytes so far)", error.silent) from None
            pause_s = max(error.after_s, min(options.backoff_s * 2**fruitless, LONGEST_PAUSE_S) / 2)
            log.info("%s: %s; going on at byte %d in %.1f s", part.name, error, _size(part), pause_s)
            options.sleep(pause_s)


def _attempt(url: str, part: Path, options: FetchOptions, advance: Callable[[int, int | None], object]) -> bool:
    """One connection; whether it continued what was there.

    Raises:
        _Retry: the rest is worth another attempt.
        _Gone: it is not.
    """
    known = _known(part, url)
    have = _size(part) if known else 0
    if known is None:
        _forget(part)
    elif known.total is not None and have == known.total:
        return have > 0
    try:
        with _open(url, have, known, options) as answer:
            found = _version(url, answer)
            continues = answer.status == 206 and _first_byte(answer) == have and not (known and known.differs(found))
            if answer.status == 206 and not continues:
                _forget(part)
                raise _Retry("the file on the server changed; starting anew")
            if not continues:
                if have:
                    log.info("%s: the server sends the whole file instead of the rest of it", part.name)
                have = 0
            _check_room(part, have, (found.total or 0) * options.room)
            write_whole(_state_file(part), json.dumps(asdict(found)).encode())
            _receive(answer, part, have, found.total, advance)
    except urllib.error.HTTPError as error:
        if error.code == 416 and _total_of(error.headers.get("Content-Range")) == have:
            return True  # nothing behind what is there: its length was not known before
        raise _refusal(error, part) from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, _DiskError):
            raise UserError(f"cannot write {part} ({error}); make room and run it again to continue") from error
        reason = getattr(error, "reason", None) or error
        silent = isinstance(error, urllib.error.URLError)  # urllib's name for: no connection
        raise _Retry(f"the connection failed ({str(reason) or type(error).__name__})", silent=silent) from error
    return continues


def _refusal(error: urllib.error.HTTPError, part: Path) -> Exception:
    """What an error status means for the part."""
    if error.code == 416:
        _forget(part)
        return _Retry("the part does not fit the file on the server; starting anew")
    reason = f"the server answers {error.code} {error.reason}"
    return _Retry(reason, _retry_after(error)) if error.code in TRANSIENT else _Gone(reason)


class _DiskError(OSError):
    """Writing failed, as opposed to receiving."""


def _open(url: str, have: int, known: _Version | None, options: FetchOptions) -> Any:
    headers = {"User-Agent": "videotext", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        # A weak ETag does not promise equal bytes, so it must not be used for this.
        strong = known.etag if known and known.etag and not known.etag.startswith("W/") else None
        condition = strong or (known.modified if known else None)
        if condition:
            headers["If-Range"] = condition
    opener = urllib.request.build_opener(_Redirects)
    return opener.open(urllib.request.Request(url, headers=headers), timeout=options.timeout_s)


def _receive(
    answer: Any, part: Path, have: int, total: int | None, advance: Callable[[int, int | None], object]
) -> None:
    with part.open("r+b" if have else "wb") as file:
        file.truncate(have)
        file.seek(have)
        # What has arrived, not a full chunk: a killed process then loses next to nothing.
        while chunk := answer.read1(CHUNK if total is None else min(CHUNK, total - have)):
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                raise _DiskError(error.errno, os.strerror(error.errno or 0)) from error
            have += len(chunk)
            advance(have, total)
        os.fsync(file.fileno())
    if total is not None and have < total:
        raise _Retry(f"the connection ended after {have} of {total} bytes")


def _version(url: str, answer: Any) -> _Version:
    headers = answer.headers
    if answer.status == 206:
        total = _total_of(headers.get("Content-Range"))
    else:
        length = headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
    return _Version(url, headers.get("ETag"), headers.get("Last-Modified"), total)


def _total_of(content_range: str | None) -> int | None:
    match = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", content_range or "")
    return int(match[1]) if match else None


def _first_byte(answer: Any) -> int | None:
    match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _retry_after(error: urllib.error.HTTPError) -> float:
    value = error.headers.get("Retry-After", "")
    return min(float(value), LONGEST_PAUSE_S) if value.isdigit() else 0.0


def _check_room(part: Path, have: int, bytes_in_the_end: float) -> None:
    needed = bytes_in_the_end - have + SPARE_BYTES
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise UserError(
            f"{part.parent} has {free / 2**30:.1f} GiB left, expected {needed / 2**30:.1f} GiB for {part.stem} and "
            "what is in it; make room or set paths.data_dir=FOLDER"
        )


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _state_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _known(part: Path, url: str) -> _Version | None:
    """The version that the part is of; None when it is unknown or of another address."""
    try:
        version = _Version(**json.loads(_state_file(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return version if version.url == url and part.is_file() else None


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state_file(part).unlink(missing_ok=True)


def checksums_of(path: Path, algorithms: set[str]) -> dict[str, str]:
    """Algorithm -> hex digest, in one pass over the file."""
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in sorted(algorithms)}
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    return {name: digest.hexdigest() for name, digest in digests.items()}
