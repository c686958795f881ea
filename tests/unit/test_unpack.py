"""Unpacking archives that attack, swell or are damaged."""

from __future__ import annotations

import bz2
import io
import os
import stat
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from src.data import unpack as unpacking
from src.data.unpack import unpack
from src.errors import UserError
from tests.archives import special, tar_of

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "w"])
def test_a_tar_is_unpacked(tmp_path: Path, mode: str) -> None:
    archive = tar_of(
        tmp_path / "a.tar",
        *(("./top/x.txt", b"x"), ("top/sub/y.txt", b"yy"), ("top/sub/link", special(tarfile.SYMTYPE, "../x.txt"))),
        ("top/hard", special(tarfile.LNKTYPE, "top/x.txt")),
        mode=mode,
    )
    done = unpack(archive, tmp_path / "out", strip=1, limit_bytes=1000)
    assert (done.files, done.bytes) == (3, 3)
    assert (tmp_path / "out/sub/link").read_text() == (tmp_path / "out/hard").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "out"]


def test_a_zip_is_unpacked_into_a_folder_that_has_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("data/", "")
        zipped.writestr("data/a.json", "new")
        zipped.writestr("__MACOSX/data/._a.json", "junk")
    (tmp_path / "out/data").mkdir(parents=True)
    (tmp_path / "out/data/a.json").write_text("old")
    (tmp_path / "out/data/mine.txt").write_text("mine")
    assert unpack(tmp_path / "a.zip", tmp_path / "out").files == 1
    assert {path.name: path.read_text() for path in (tmp_path / "out/data").iterdir()} == {
        "a.json": "new",
        "mine.txt": "mine",
    }


ATTACKS = {
    "parent": [("../evil", b"x")],
    "parent inside": [("a/../../evil", b"x")],
    "backslash": [("..\\evil", b"x")],
    "absolute": [("/tmp/evil", b"x")],
    "drive": [("C:/evil", b"x")],
    "link out": [("a", special(tarfile.SYMTYPE, "../evil"))],
    "link to absolute": [("a", special(tarfile.SYMTYPE, "/etc/passwd"))],
    "hard link out": [("a", special(tarfile.LNKTYPE, "../../etc/passwd"))],
    "hard link to nothing": [("a", special(tarfile.LNKTYPE, "b"))],
    "through a link": [("d", special(tarfile.SYMTYPE, ".")), ("d/evil", b"x")],
    "link through a link": [("d/e", special(tarfile.SYMTYPE, "..")), ("f", special(tarfile.SYMTYPE, "d/e/../.."))],
    "link before a link": [("f", special(tarfile.SYMTYPE, "d/e/../..")), ("d/e", special(tarfile.SYMTYPE, ".."))],
    "file over a link": [("a", special(tarfile.SYMTYPE, "b")), ("a", b"x")],
    "twice": [("a", b"x"), ("./a", b"y")],
    "device": [("null", special(tarfile.CHRTYPE))],
    "fifo": [("pipe", special(tarfile.FIFOTYPE))],
}


@pytest.mark.parametrize("members", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_leaves_nothing(tmp_path: Path, members: list[tuple[str, bytes | tarfile.TarInfo]]) -> None:
    room = tmp_path / "room"
    room.mkdir()
    archive = tar_of(tmp_path / "a.tar.gz", ("fine.txt", b"fine"), *members)
    with pytest.raises(UserError, match=r"a\.tar\.gz holds .*nothing of it was unpacked"):
        unpack(archive, room / "out")
    assert list(room.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "room"]


def zip_member(name: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    "member",
    [
        zip_member("../evil"),
        zip_member("/etc/evil"),
        zip_member("a\\..\\..\\evil"),
        zip_member("l", stat.S_IFLNK | 0o777),
    ],
    ids=lambda member: member.filename,
)
def test_an_attack_by_zip_leaves_nothing(tmp_path: Path, member: zipfile.ZipInfo) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("fine.txt", "fine")
        zipped.writestr(member, "/etc/passwd")
    with pytest.raises(UserError, match="nothing of it was unpacked"):
        unpack(tmp_path / "a.zip", tmp_path / "out/sub")
    assert list((tmp_path / "out").iterdir()) == []


def test_bombs_are_refused_by_their_declared_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = bytes(20_000_000)
    archive = tar_of(tmp_path / "bomb.tar.bz2", ("zeros", zeros), mode="w:bz2")
    with pytest.raises(UserError, match="unpacks to more than"):
        unpack(archive, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("zeros", zeros)
    with pytest.raises(UserError, match="unpacks to more than"):
        unpack(tmp_path / "bomb.zip", tmp_path / "out")
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda path: Usage(0, 0, unpacking.SPARE_BYTES + 10))
    with pytest.raises(UserError, match="the free space or the limit"):
        unpack(tar_of(tmp_path / "b.tar", ("b", b"x" * 11), mode="w"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_archives(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "whole.tar.gz", ("a", os.urandom(300_000)), ("b", b"b"))
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole.read_bytes()[:200_000])
    broken = tmp_path / "broken.tar.gz"
    data = bytearray(whole.read_bytes())
    data[150_000:150_100] = bytes(100)
    broken.write_bytes(data)
    page = tmp_path / "page.tar.gz"
    page.write_text("<html>moved</html>")
    empty = tar_of(tmp_path / "empty.tar.gz")
    (tmp_path / "locked.zip").write_bytes(encrypted_zip())
    for archive in (cut, broken, page, empty, tmp_path / "locked.zip"):
        with pytest.raises(UserError, match="fetch it again"):
            unpack(archive, tmp_path / "out")
        assert not list(tmp_path.glob(".unpacking*"))
        assert not (tmp_path / "out").exists()


def encrypted_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("a", "secret")
    data = bytearray(buffer.getvalue())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".unpacking-out-0123").mkdir()
    unpack(tar_of(tmp_path / "a.tar", ("a", b"a"), mode="w"), tmp_path / "out")
    assert not list(tmp_path.glob(".unpacking*"))


def test_a_destination_on_another_disk_by_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    unpack(tar_of(tmp_path / "a.tar", ("a", b"a"), mode="w"), tmp_path / "out")
    assert (tmp_path / "disk/a").read_bytes() == b"a"


def test_python_without_the_data_filter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(UserError, match=r"older than 3\.11\.4"):
        unpack(tar_of(tmp_path / "a.tar", ("a", b"a"), mode="w"), tmp_path / "out")


def test_bz2_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "a.bz2").write_bytes(bz2.compress(b"text"))
    with pytest.raises(UserError, match="expected a whole tar or zip file"):
        unpack(tmp_path / "a.bz2", tmp_path / "out")
