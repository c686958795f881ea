"""task=prepare beyond the frame cache: transcoding, caption texts and fetching archives, by the command line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src.config import compose
from src.data.transcode import TranscodeRecipe
from src.data.transcode_folder import FolderOptions, transcode_folder
from src.errors import UserError
from src.tasks import prepare
from tests.cli.conftest import ROOT, Outcome
from tests.clips import make_clip, make_gif
from tests.http_server import Site, serving

Cli = Callable[..., Outcome]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Own data whose captions need mending: 4 clips, one of them unreadable."""
    folder = tmp_path / "own"
    folder.mkdir()
    make_clip(folder / "a.mp4", 9, 3)
    make_clip(folder / "b.mkv", 9, 3)
    make_gif(folder / "c.gif")
    (folder / "d.mp4").write_bytes(b"junk" * 50)
    rows = ["a.mp4,cats &amp; dogs,train", "a.mp4,cats  &amp; dogs,train", "b.mkv,a bird,val", "b.mkv,&nbsp;,val"]
    rows += ["c.gif,a Fish,test", "d.mp4,nothing,test"]
    (folder / "captions.csv").write_text("video,caption,split\n" + "\n".join(rows) + "\n")
    return folder


def used(outcome: Outcome, start: str) -> list[str]:
    """The options that the output says to type."""
    (line,) = [line for line in outcome.out.splitlines() if line.startswith(start)]
    return line.removeprefix(start).split()


def test_captions_then_transcode_then_use_them(cli: Cli, own: Path, tmp_path: Path) -> None:
    base = ("dataset=folder", f"dataset.data_dir={own}")
    steps = ("task.steps=[captions,transcode]", "unique=true", "lower=true", "workers=1", "short_side=32")
    outcome = cli("task=prepare", *base, *steps, tiny=False).succeeded()
    assert "4 of 6 captions in" in outcome.out
    assert "1 repeated and 1 empty ones left out" in outcome.out
    assert "'a Fish' -> 'a fish'" in outcome.out
    assert "3 videos in" in outcome.out
    assert "(3 new, 0 before), 1 failed" in outcome.out
    assert "d.mp4: not a readable video" in outcome.out
    assert json.loads((tmp_path / "run" / "problems.jsonl").read_text())["video_id"] == "d.mp4"
    normalised = [json.loads(line) for line in (own / "captions.normalised.jsonl").read_text().splitlines()]
    assert normalised[0] == {"video": "a.mp4", "caption": "cats & dogs", "split": "train"}
    assert sorted(path.name for path in (tmp_path / "own_3fps_32").glob("*.*")) == [
        *(".lock", "a.mp4", "b.mkv", "c.gif.mp4", "transcode.json", "transcode.jsonl")
    ]
    words = used(outcome, "use them with ")
    assert words == [f"dataset.data_dir={own}_3fps_32", f"dataset.captions_file={own}/captions.csv"]
    captions = used(outcome, "use it with ")
    assert captions == ["dataset.captions_file=captions.normalised.jsonl"]
    both = [words[0], f"dataset.captions_file={own}/captions.normalised.jsonl", "split.subset=available"]
    checked = cli("task=check_data", "dataset=folder", *both, "task.decode=true", name="check", tiny=False)
    assert "d.mp4" in checked.out + checked.err
    assert "a.mp4" not in checked.err


def test_upstream_rule_and_mistakes(cli: Cli, own: Path, tmp_path: Path) -> None:
    base = ("task=prepare", "dataset=folder", f"dataset.data_dir={own}", "task.steps=[transcode]", "short_side=32")
    outcome = cli(*base, "rule=upstream", f"output={tmp_path}/out", tiny=False).succeeded()
    assert "1 unreadable and copied as they are" in outcome.out
    assert (tmp_path / "out" / "d.mp4").read_bytes() == (own / "d.mp4").read_bytes()
    error = cli("task=prepare", "task.steps=[transcod]", tiny=False).failed_with(2)
    assert "task.steps=[transcod], expected some of transcode, captions, frames" in error


def test_kill_in_the_middle_and_resume_gives_the_same_files(
    command: Callable[..., list[str]], environment: dict[str, str], tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(12):
        make_clip(videos / f"{number}.mp4", 60, 30, (320, 240), audio=False)
    words = ("task=prepare", "dataset=folder", f"dataset.data_dir={videos}", "task.steps=[transcode]", "workers=1")

    def start() -> subprocess.Popen[bytes]:
        line = command(*words, f"output={tmp_path}/killed", tiny=False)
        return subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)

    interrupted = start()
    table = tmp_path / "killed" / "transcode.jsonl"
    for _ in range(3000):
        if table.is_file() and len(table.read_text().splitlines()) >= 2:
            break
        time.sleep(0.01)
    interrupted.send_signal(signal.SIGKILL)
    interrupted.wait()
    done = len(table.read_text().splitlines())
    assert 2 <= done < 12
    assert start().wait() == 0
    transcode_folder(videos, tmp_path / "whole", TranscodeRecipe(), FolderOptions(workers=1))
    names = sorted(path.name for path in (tmp_path / "whole").glob("*.mp4"))
    assert names == sorted(path.name for path in (tmp_path / "killed").iterdir() if path.suffix in (".mp4", ".part"))
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert len(table.read_text().splitlines()) == 12  # what was finished was not done again


# ---- archives ----


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as running:
        yield running


@pytest.fixture
def packed() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("data/MSRVTT/rgb.pickle")
        info.size = 300_000
        tar.addfile(info, io.BytesIO(os.urandom(300_000)))
    return buffer.getvalue()


@pytest.fixture
def manifest(tmp_path: Path, site: Site, packed: bytes) -> Path:
    """Two archives on the local server: `good`, and `bad`, whose file has another checksum than published."""
    site.files = {"/v/good.tar.gz": packed, "/v/bad.tar.gz": packed}
    path = tmp_path / "lab.yaml"
    sums = {"good": [f"sha1:{'0' * 40}", f"sha256:{hashlib.sha256(packed).hexdigest()}"], "bad": [f"sha1:{'0' * 40}"]}
    archives = "".join(
        f"  {name}:\n    about: features\n    urls: ['{site.url}/v/{name}.tar.gz']\n    checksums: {sums[name]}\n"
        f"    into: msrvtt/experts/{name}\n    default: {str(name == 'good').lower()}\n"
        for name in sums
    )
    path.write_text(f"title: Lab\npage: http://lab\nsteps: [ask the lab]\nlayout: DATA/msrvtt/x\narchives:\n{archives}")
    return path


def test_download_survives_cut_connections(cli: Cli, site: Site, manifest: Path, tmp_path: Path) -> None:
    site.cut_after = [100_000, 100_000]
    words = (
        "task=prepare",
        "dataset=msrvtt",
        "download=true",
        f"manifest={manifest}",
        f"paths.data_dir={tmp_path}/data",
    )
    outcome = cli(*words, tiny=False, env={"no_proxy": "*"}).succeeded()
    assert "lab/good: fetched: checksum sha256:" in outcome.out
    assert (tmp_path / "data/msrvtt/experts/good/data/MSRVTT/rgb.pickle").stat().st_size == 300_000
    assert "1. ask the lab" in outcome.out
    assert f"{tmp_path}/data/msrvtt/x" in outcome.out
    assert len(site.requests) == 3
    again = cli(*words, tiny=False, env={"no_proxy": "*"}).succeeded()
    assert "lab/good: there: sha256:" in again.out
    assert len(site.requests) == 3
    error = cli(*words, "task.archives=[bad]", tiny=False, env={"no_proxy": "*"}).failed_with(2)
    assert "bad.tar.gz" in error
    assert "has the checksum" in error
    assert not (tmp_path / "data/msrvtt/experts/bad").exists()


def test_download_killed_in_the_middle_goes_on(
    site: Site, manifest: Path, tmp_path: Path, command: Callable[..., list[str]], environment: dict[str, str], cli: Cli
) -> None:
    hold = site.hold = threading.Event()
    data = tmp_path / "data"
    words = ("task=prepare", "dataset=msrvtt", "download=true", f"manifest={manifest}", f"paths.data_dir={data}")
    line, env = command(*words, name="killed", tiny=False), environment | {"no_proxy": "*"}
    fetching = subprocess.Popen(line, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    part = data / "downloads/lab/good.tar.gz.part"
    for _ in range(3000):
        if part.is_file() and part.stat().st_size > 100_000:
            break
        time.sleep(0.01)
    fetching.send_signal(signal.SIGKILL)
    fetching.wait()
    hold.set()
    assert not (data / "msrvtt").exists()
    have = part.stat().st_size
    assert have > 100_000
    cli(*words, tiny=False, env={"no_proxy": "*"}).succeeded()
    assert (data / "msrvtt/experts/good/data/MSRVTT/rgb.pickle").stat().st_size == 300_000
    assert [wanted for _, wanted in site.requests] == [None, f"bytes={have}-"]
    assert sorted(path.name for path in (data / "downloads/lab").iterdir()) == [".lock", "good.json"]


def test_what_cannot_be_fetched_is_explained(cli: Cli, tmp_path: Path) -> None:
    data = f"paths.data_dir={tmp_path}/data"
    for dataset, words in (("lsmdc", "VIDEOTEXT_ACCESS_CODE=CODE"), ("vatex", "expected layout:")):
        outcome = cli("task=prepare", f"dataset={dataset}", "download=true", data, tiny=False).succeeded()
        assert words in outcome.out
        assert f"{tmp_path}/data/{dataset}/annotations/" in outcome.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset=lsmdc", "task.archives=[features-v2]"], "by hand"),
        (["dataset=msrvtt", "task.archives=[videos]"], "not verified"),
        (["dataset=msrvtt", "task.archives=[video]"], "did you mean 'videos'"),
        (["dataset=folder"], "no published archives"),
    ],
)
def test_archives_that_cannot_be_asked_for(tmp_path: Path, words: list[str], message: str) -> None:
    asked = compose.task_keys_named(["task=prepare", "download=true", f"paths.data_dir={tmp_path}/data", *words])
    with pytest.raises(UserError, match=message):
        prepare.run(OmegaConf.create(compose.preflight(compose.parse(asked))[0]))


def test_a_mirror_that_does_not_have_it(cli: Cli, site: Site, tmp_path: Path) -> None:
    words = (
        "task=prepare",
        "dataset=msvd",
        "download=true",
        f"task.mirror={site.url}/lab",
        f"paths.data_dir={tmp_path}",
    )
    error = cli(*words, tiny=False, env={"no_proxy": "*"}).failed_with(2)
    assert "the server answers 404" in error
    path = "/~vgg/research/collaborative-experts/data/features-v2/MSVD-experts.tar.gz"
    assert [wanted for wanted, _ in site.requests] == [
        f"/lab/www.robots.ox.ac.uk{path}",
        f"/lab{path}",
        "/lab/MSVD-experts.tar.gz",
    ]


def test_fetching_needs_no_torch() -> None:
    line = "import sys, src.tasks.prepare, src.tasks.prepare_download; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line], cwd=ROOT, check=False).returncode == 0
