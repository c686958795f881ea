"""The manifests of published archives, and the whole way from them to files in their place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from src.data import archive_manifest
from src.data.archive_manifest import Archive, choose, names, parse_size, read_file, read_manifest
from src.data.download import Checksum, Fetched, FetchOptions, fetch
from src.data.obtain import ObtainOptions, addresses, obtain
from src.errors import UserError
from tests.archives import tar_of
from tests.http_server import Site, serving

ROOT = Path(__file__).resolve().parents[2]
DATA = bytes(range(256)) * 4000  # about 1 MB
FAST = FetchOptions(retries=3, sleep=lambda seconds: None, timeout_s=10)


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


@pytest.mark.parametrize("name", names())
def test_every_manifest_is_sound(name: str) -> None:
    manifest = read_manifest(name)
    text = (archive_manifest.FOLDER / f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= 60
    assert manifest.page.startswith(("http://", "https://"))
    assert "DATA/" in manifest.layout
    assert manifest.steps
    for archive in manifest.archives.values():
        assert archive.urls or archive.steps, archive.label


@pytest.mark.parametrize("path", sorted((ROOT / "conf/dataset").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_benchmark_has_a_manifest(path: Path) -> None:
    if path.stem in ("folder", "toy"):
        with pytest.raises(UserError, match="no published archives"):
            read_manifest(path.stem)
    else:
        assert f"DATA/{path.stem}/" in read_manifest(path.stem).layout  # where conf/dataset looks


def test_published_values_of_the_collaborative_experts_archives() -> None:
    counts = {
        name: len(read_manifest(name).archives["features-v2"].checksums)
        for name in ("msrvtt", "msvd", "lsmdc", "didemo", "activitynet")
    }
    assert set(counts.values()) == {2}
    msrvtt = read_manifest("msrvtt").archives["features-v2"]
    assert str(msrvtt.checksums[0]) == "sha1:959bda588793ef05f348d16de26da84200c5a469"
    assert msrvtt.size == round(19.6 * 2**30)
    for archive in read_manifest("clip").archives.values():
        assert archive.checksums[0].value in archive.urls[0]


def test_archives_are_chosen_by_name() -> None:
    manifest = read_manifest("msrvtt")
    assert [archive.name for archive in choose(manifest, [])] == ["features-v2"]
    assert [a.label for a in choose(manifest, ["videos", "clip/ViT-B-32"])] == ["msrvtt/videos", "clip/ViT-B-32"]
    with pytest.raises(UserError, match=r"expected some of features-v2.*did you mean 'features-v2'"):
        choose(manifest, ["features_v2"])
    with pytest.raises(UserError, match="folder has no published archives"):
        read_manifest("folder")
    assert read_manifest("querydsegments").name == "queryd"


def test_sizes() -> None:
    assert (parse_size("4.3 GB"), parse_size("1 KiB")) == (4_300_000_000, 1024)
    with pytest.raises(UserError, match="expected for example"):
        parse_size("4.3 gigs")


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        ("{about: a, into: ../up, file: f}", "below the data root"),
        ("{about: a, into: x, urls: ['ftp://h/f']}", r"not http\(s\) \['ftp"),
        ("{about: a, into: x}", "lacks \\['urls or file'\\]"),
        ("{about: a, into: x, file: f, sha1: 1}", "unknown keys \\['sha1'\\]"),
    ],
)
def test_a_manifest_of_ones_own_is_checked(tmp_path: Path, archive: str, message: str) -> None:
    (tmp_path / "m.yaml").write_text(f"title: t\npage: http://p\nlayout: l\narchives:\n  x: {archive}\n")
    with pytest.raises(UserError, match=message):
        read_file(tmp_path / "m.yaml")
    (tmp_path / "m.yaml").write_text("[1]")
    with pytest.raises(UserError, match="is no manifest"):
        read_file(tmp_path / "m.yaml")


@pytest.fixture
def packed(tmp_path: Path) -> bytes:
    return tar_of(tmp_path / "packed.tar.gz", ("data/rgb.pkl", b"features")).read_bytes()


@pytest.fixture
def archive(site: Site, packed: bytes) -> Archive:
    site.files = {"/lab/host.org/feat/x.tar.gz": packed}
    return Archive(
        "set", "x", "features", ("http://host.org/feat/x.tar.gz",), "x.tar.gz", len(packed),
        tuple(sums(packed, "sha1")), "set/experts/x", True, 0, True, "",
    )  # fmt: skip


def test_obtained_from_a_mirror_once(site: Site, tmp_path: Path, archive: Archive) -> None:
    options = ObtainOptions(mirror=f"{site.url}/lab/", fetching=FAST)
    (first,) = obtain([archive], tmp_path, options)
    assert first.state == "fetched", first.detail
    assert str(archive.checksums[0]) in first.detail
    assert (tmp_path / "set/experts/x/data/rgb.pkl").read_bytes() == b"features"
    record = json.loads((tmp_path / "downloads/set/x.json").read_text())
    assert record["matched"] == str(archive.checksums[0])
    assert not (tmp_path / "downloads/set/x.tar.gz").exists()
    count = len(site.requests)
    (again,) = obtain([archive], tmp_path, options)
    assert (again.state, len(site.requests)) == ("there", count)
    with pytest.raises(UserError, match=r"task\.mirror='ftp://h'"):
        addresses(archive, "ftp://h", None)


def test_the_places_on_a_mirror(archive: Archive) -> None:
    assert addresses(archive, "http://m/p/", None) == [
        "http://m/p/host.org/feat/x.tar.gz",
        "http://m/p/feat/x.tar.gz",
        "http://m/p/x.tar.gz",
    ]


def test_an_access_code_becomes_part_of_the_address(tmp_path: Path) -> None:
    (lsmdc,) = choose(read_manifest("lsmdc"), [])
    assert addresses(lsmdc, None, "secret")[0].endswith("/features-v2/2bb80d537b-LSMDC-experts.tar.gz")
    (outcome,) = obtain([lsmdc], tmp_path, ObtainOptions())
    assert (outcome.state, "VIDEOTEXT_ACCESS_CODE=CODE" in outcome.detail) == ("by hand", True)


def test_a_wrong_checksum_is_not_unpacked(site: Site, tmp_path: Path, archive: Archive, packed: bytes) -> None:
    wrong = replace(archive, checksums=(Checksum("sha1", "0" * 40),))
    options = ObtainOptions(mirror=f"{site.url}/lab", fetching=FAST)
    (outcome,) = obtain([wrong], tmp_path, options)
    assert outcome.state == "failed"
    assert "has the checksum" in outcome.detail
    assert not (tmp_path / "set").exists()
    (accepted,) = obtain([wrong], tmp_path, replace(options, accept=tuple(sums(packed))))
    assert accepted.state == "fetched"


def test_without_a_published_checksum_it_is_asked_for(
    site: Site, tmp_path: Path, archive: Archive, packed: bytes
) -> None:
    bare = replace(archive, checksums=())
    options = ObtainOptions(mirror=f"{site.url}/lab", fetching=FAST)
    (asked,) = obtain([bare], tmp_path, options)
    assert (asked.state, site.requests) == ("not verified", [])
    (another_size,) = obtain([replace(bare, size=10 * len(packed))], tmp_path, replace(options, unverified=True))
    assert another_size.state == "failed"
    assert "expected the published" in another_size.detail
    (tmp_path / "downloads/set/x.tar.gz").unlink()
    (taken,) = obtain([bare], tmp_path, replace(options, unverified=True, keep_archives=True))
    assert taken.state == "fetched"
    assert f"not verified, {sums(packed)[0]}" in taken.detail
    assert (tmp_path / "downloads/set/x.tar.gz").is_file()


def test_a_file_put_there_by_hand_is_verified_and_unpacked(tmp_path: Path, archive: Archive, packed: bytes) -> None:
    by_hand = replace(archive, urls=(), steps="get it")
    (asked,) = obtain([by_hand], tmp_path, ObtainOptions())
    assert (asked.state, asked.detail.startswith("get it, save it as ")) == ("by hand", True)
    (tmp_path / "downloads/set/x.tar.gz").write_bytes(packed + b"x")
    (wrong,) = obtain([by_hand], tmp_path, ObtainOptions())
    assert (wrong.state, "remove it" in wrong.detail) == ("failed", True)
    (tmp_path / "downloads/set/x.tar.gz").write_bytes(packed)
    (good,) = obtain([by_hand], tmp_path, ObtainOptions())
    assert good.state == "fetched"


def test_a_single_file_stays_packed(site: Site, tmp_path: Path, archive: Archive, packed: bytes) -> None:
    single = replace(archive, unpack=False)
    (outcome,) = obtain([single], tmp_path, ObtainOptions(mirror=f"{site.url}/lab", fetching=FAST))
    assert outcome.state == "fetched"
    assert (tmp_path / "set/experts/x/x.tar.gz").read_bytes() == packed
    (tmp_path / "set/experts/x/x.tar.gz").unlink()
    (again,) = obtain([single], tmp_path, ObtainOptions(mirror=f"{site.url}/lab", fetching=FAST))
    assert again.state == "fetched"


def test_one_failure_does_not_stop_the_others(site: Site, tmp_path: Path, archive: Archive) -> None:
    bad = replace(archive, name="bad", file="bad.gz", urls=("http://host.org/nowhere.tar.gz",))
    outcomes = list(obtain([bad, archive], tmp_path, ObtainOptions(mirror=f"{site.url}/lab", fetching=FAST)))
    assert [outcome.state for outcome in outcomes] == ["failed", "fetched"]
