"""Fetching one file from a server that misbehaves."""

from __future__ import annotations

import hashlib
import json
import resource
import signal
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from src.data import download
from src.data.download import Checksum, Fetched, FetchOptions, fetch
from src.errors import UserError
from tests.http_server import Site, serving

DATA = bytes(range(256)) * 4000  # about 1 MB
FAST = FetchOptions(retries=3, sleep=lambda seconds: None, timeout_s=10)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as running:
        running.files["/a.bin"] = DATA
        yield running


def sums(data: bytes, *algorithms: str) -> list[Checksum]:
    return [Checksum(name, hashlib.new(name, data).hexdigest()) for name in algorithms or ("sha256",)]


def get(site: Site, folder: Path, accepted: list[Checksum] | None = None, options: FetchOptions = FAST) -> Fetched:
    return fetch([f"{site.url}/a.bin"], folder / "a.bin", sums(DATA) if accepted is None else accepted, options)


def test_a_file_is_fetched_and_verified(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    wrong = Checksum("sha1", "0" * 40)
    accepted = [wrong, *sums(DATA, "sha1")]
    done = fetch([f"{site.url}/a.bin"], tmp_path / "a.bin", accepted, FAST, lambda *a: seen.append(a))
    assert done.path.read_bytes() == DATA
    assert done.matched == accepted[1]  # says which of the published values it was
    assert seen[-1] == (len(DATA), len(DATA))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin"]


def test_cut_connections_are_continued_where_they_ended(site: Site, tmp_path: Path) -> None:
    site.cut_after = [100_000, 1, 300_000, 0, 0]
    assert get(site, tmp_path).path.read_bytes() == DATA
    ranges = [wanted for _, wanted in site.requests]
    assert ranges == [None, "bytes=100000-", "bytes=100001-", "bytes=400001-", "bytes=400001-", "bytes=400001-"]


def test_an_interrupted_run_is_continued_by_the_next(site: Site, tmp_path: Path) -> None:
    site.cut_after = [500_000]

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(site, tmp_path, options=replace(FAST, sleep=stop))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin.part", "a.bin.part.json"]
    assert get(site, tmp_path).path.read_bytes() == DATA
    assert [wanted for _, wanted in site.requests] == [None, "bytes=500000-"]


def test_attempts_that_bring_nothing_come_to_an_end(site: Site, tmp_path: Path) -> None:
    site.cut_after = [1000] + [0] * 50
    with pytest.raises(UserError, match=r"ended after 1000 of 1024000 bytes \(4 attempts.*run it again to continue"):
        get(site, tmp_path)
    assert (tmp_path / "a.bin.part").stat().st_size == 1000  # nothing is lost


def test_the_pauses_grow(site: Site, tmp_path: Path) -> None:
    site.errors = [503, 503, 503, 503]
    pauses: list[float] = []
    get(site, tmp_path, options=FetchOptions(retries=9, backoff_s=2.0, sleep=pauses.append))
    assert pauses == [2.0, 4.0, 8.0, 16.0]


def test_a_server_without_ranges_costs_a_new_start(site: Site, tmp_path: Path) -> None:
    site.ranges, site.cut_after = False, [600_000]
    assert get(site, tmp_path).path.read_bytes() == DATA
    assert site.requests[-1] == ("/a.bin", "bytes=600000-")


@pytest.mark.parametrize("etag", ['"1"', ""], ids=["etag", "no-etag"])
def test_a_file_that_changed_meanwhile_is_fetched_anew(site: Site, tmp_path: Path, etag: str) -> None:
    new = DATA[::-1] + b"more"
    site.etag, site.cut_after = etag, [500_000]

    def change(seconds: float) -> None:
        site.files["/a.bin"] = new
        site.etag = '"2"' if etag else ""

    done = get(site, tmp_path, sums(new), replace(FAST, sleep=change))
    assert done.path.read_bytes() == new


def test_a_change_that_the_server_does_not_tell_is_found_by_the_checksum(site: Site, tmp_path: Path) -> None:
    new = DATA[::-1]  # of the same length
    site.etag, site.cut_after = "", [500_000]

    def change(seconds: float) -> None:
        site.files["/a.bin"] = new

    done = get(site, tmp_path, sums(new), replace(FAST, sleep=change))
    assert done.path.read_bytes() == new


def test_a_wrong_checksum_is_refused_and_says_which_it_is(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.bin .*has the checksum .*expected sha1:0+; nothing was unpacked.*accept"):
        get(site, tmp_path, [Checksum("sha1", "0" * 40)])
    assert list(tmp_path.iterdir()) == []
    assert get(site, tmp_path).matched is not None  # the next run starts clean


def test_a_stated_length_that_is_too_long_ends(site: Site, tmp_path: Path) -> None:
    """The server says 5 bytes more than it has; asked for the rest, it admits that there is none."""
    site.extra_length = 5
    assert get(site, tmp_path).path.read_bytes() == DATA
    site.ranges = False  # and one that never admits it
    (tmp_path / "a.bin").unlink()
    with pytest.raises(UserError, match="ended after 1024000 of 1024005 bytes"):
        get(site, tmp_path)


def test_a_stated_length_that_is_too_short_is_a_wrong_checksum(site: Site, tmp_path: Path) -> None:
    site.extra_length = -5
    with pytest.raises(UserError, match="has the checksum"):
        get(site, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_stated_length(site: Site, tmp_path: Path) -> None:
    site.state_length = False
    assert get(site, tmp_path).path.read_bytes() == DATA


def test_a_complete_part_needs_no_bytes(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(DATA)
    state = {"url": f"{site.url}/a.bin", "etag": '"1"', "modified": None, "total": None}
    (tmp_path / "a.bin.part.json").write_text(json.dumps(state))
    assert get(site, tmp_path).size == len(DATA)
    assert site.requests == [("/a.bin", f"bytes={len(DATA)}-")]


def test_a_part_of_another_address_is_not_continued(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    (tmp_path / "a.bin.part.json").write_text(json.dumps({"url": "http://other/a.bin"}))
    assert get(site, tmp_path).path.read_bytes() == DATA
    assert site.requests == [("/a.bin", None)]


def test_the_second_address_helps(site: Site, tmp_path: Path) -> None:
    done = fetch([f"{site.url}/gone.bin", f"{site.url}/a.bin"], tmp_path / "a.bin", sums(DATA), FAST)
    assert done.url.endswith("/a.bin")
    with pytest.raises(UserError, match=r"gone\.bin: the server answers 404 Not Found"):
        fetch([f"{site.url}/gone.bin"], tmp_path / "b.bin", [], FAST)


def test_a_host_that_does_not_answer_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as gone:
        pass
    with pytest.raises(UserError, match="the connection failed") as caught:
        fetch([f"{gone.url}/a", f"{gone.url}/b"], tmp_path / "a", [], FAST)
    assert str(caught.value).count("connection failed") == 1


def test_only_http(site: Site, tmp_path: Path) -> None:
    site.redirect = {"/file": "file:///etc/passwd", "/ftp": "ftp://127.0.0.1/a", "/ok": f"{site.url}/a.bin"}
    for path in ("/file", "/ftp"):
        with pytest.raises(UserError, match=r"not http\(s\)|is not allowed"):
            fetch([site.url + path], tmp_path / "a", [], FAST)
    assert fetch([f"{site.url}/ok"], tmp_path / "a", sums(DATA), FAST).size == len(DATA)
    with pytest.raises(UserError, match="expected http://"):
        fetch(["file:///etc/passwd"], tmp_path / "a", [], FAST)


def test_a_full_disk_is_noticed_before(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: Usage(0, 0, len(DATA) + download.SPARE_BYTES))
    assert get(site, tmp_path).size == len(DATA)
    with pytest.raises(UserError, match=r"left, expected .*make room"):
        get(site, tmp_path, options=replace(FAST, room=2.0))


def test_a_disk_that_fills_up_meanwhile(site: Site, tmp_path: Path) -> None:
    """Writes beyond the limit fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*a\.bin\.part .*run it again to continue"):
            get(site, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert get(site, tmp_path).path.read_bytes() == DATA
    assert len(site.requests) == 2


@pytest.mark.parametrize(
    "text", ["sha1:12", "crc:00000000", "959bda588793ef05f348d16de26da84200c5a469", "sha1:" + "g" * 40]
)
def test_a_malformed_checksum_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected md5:, sha1: or sha256:"):
        Checksum.parse(text)
