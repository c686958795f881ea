"""dataset=tgif on files written in Dual Encoding's layout and in that of the first release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from src.batch import FrameSpec, InputSpec
from src.data.benchmarks.tgif import TgifDataModule
from src.data.splits import SplitSpec
from src.errors import UserError

SPLITS = Path(__file__).resolve().parents[2] / "conf" / "split"
FILES = {
    "tgif-litrain": "g1#0 a cat\ng2#0 a dog\ng2#1 the dog\n",
    "tgif-lival": "g3#0 a bird\n",
    "tgif-litest": "g4#enc#0 one\ng4#enc#1 two\ng4#enc#2 three\n",
    "tgif-chentrain": "g1#0 a cat on a mat\n",
    "tgif-chenval": "g4#0 one more\n",
    "tgif-chentest": "g3#0 birds\n",
}
ADDRESS = "https://38.media.tumblr.com/9f65/tumblr_g{}_400.gif"


def split(name: str, **changes: Any) -> SplitSpec:
    values = yaml.safe_load((SPLITS / f"{name}.yaml").read_text())
    return SplitSpec(**(values | {"expected": {}} | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "annotations"
    (root / "splits").mkdir(parents=True)
    for name, text in FILES.items():
        (root / f"{name}.caption.txt").write_text(text)
    rows = [(k, f"sentence {k}") for k in range(4)] + [(1, "another")]
    (root / "tgif-v1.0.tsv").write_text("".join(f"{ADDRESS.format(k)}\t{text}\n" for k, text in rows))
    for part, ids in (("train", (1, 2)), ("val", (0,)), ("test", (3,))):
        (root / "splits" / f"{part}.txt").write_text("".join(ADDRESS.format(k) + "\n" for k in ids))
    return root


def make(folder: Path, spec: SplitSpec, **options: Any) -> TgifDataModule:
    options = {"inputs": InputSpec(None), "videos_dir": str(folder.parent / "videos")} | options
    return TgifDataModule(name="tgif", split=spec, annotations_dir=str(folder), **options)


def texts(module: TgifDataModule, part: str) -> list[tuple[str, str]]:
    return [(caption.video_id, caption.text) for caption in module.part(part).captions]


def test_li_and_chen_have_their_own_sentences(folder: Path) -> None:
    li, chen = make(folder, split("tgif")), make(folder, split("tgif_chen"))
    assert texts(li, "train") == [("g1", "a cat"), ("g2", "a dog"), ("g2", "the dog")]
    assert texts(li, "test") == [("g4", "one"), ("g4", "two"), ("g4", "three")]
    assert texts(chen, "train") == [("g1", "a cat on a mat")]
    assert (texts(chen, "val"), texts(chen, "test")) == ([("g4", "one more")], [("g3", "birds")])
    assert li.part("val").videos[0].path == folder.parent / "videos" / "g3.gif"


@pytest.mark.parametrize("layout", ["one folder", "several folders"])
def test_dual_encoding_folders(folder: Path, layout: str) -> None:
    for name in FILES:
        collection = name if layout == "several folders" else "tgif-li" if "-li" in name else "tgif-chen"
        target = folder / collection / "TextData" / f"{name}.caption.txt"
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.caption.txt").rename(target)
    assert len(texts(make(folder, split("tgif")), "train")) == 3
    assert len(texts(make(folder, split("tgif_chen")), "test")) == 1


def test_first_release(folder: Path) -> None:
    module = make(folder, split("tgif_original"))
    assert texts(module, "train") == [
        ("tumblr_g1_400", "sentence 1"),
        ("tumblr_g1_400", "another"),
        ("tumblr_g2_400", "sentence 2"),
    ]
    assert texts(module, "val") == [("tumblr_g0_400", "sentence 0")]
    # Lists of plain ids do as well.
    (folder / "splits" / "val.txt").write_text("tumblr_g0_400\n")
    assert len(texts(make(folder, split("tgif_original")), "val")) == 1


def test_published_counts_are_checked(folder: Path) -> None:
    expected = yaml.safe_load((SPLITS / "tgif.yaml").read_text())["expected"]
    with pytest.raises(UserError, match="train has 2 videos and 3 captions, expected 78799 videos and 79632 captions"):
        make(folder, split("tgif", expected=expected)).setup()


def test_gifs(folder: Path) -> None:
    videos = folder.parent / "videos"
    videos.mkdir()
    for name in ("g1.gif", "g2.mp4"):
        (videos / name).write_bytes(b"x")
    module = make(folder, split("tgif", subset="available"), inputs=InputSpec(None, FrameSpec(2, 8)))
    assert [video.path for video in module.part("train").videos] == [videos / "g1.gif", videos / "g2.mp4"]
    assert module.applied.excluded_counts("val") == {"missing video": 1}


def test_missing_and_foreign_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none is not a folder; get the caption files of Dual Encoding, or tgif-v1.0"):
        make(tmp_path / "none", split("tgif")).setup()
    (folder / "tgif-lival.caption.txt").unlink()
    with pytest.raises(UserError, match=r"\(val\) needs tgif-lival.caption.txt, not found in .*DATA/tgif/annotations"):
        make(folder, split("tgif")).setup()
    (folder / "splits" / "val.txt").unlink()
    with pytest.raises(UserError, match=r"\(val\) needs splits/val.txt or val.txt, not found"):
        make(folder, split("tgif_original")).setup()
    (folder / "tgif-v1.0.tsv").write_text("no tab here\n")
    with pytest.raises(UserError, match=r"tgif-v1.0.tsv, row 1: found no tab"):
        make(folder, split("tgif_original")).setup()
    (folder / "tgif-v1.0.tsv").unlink()
    with pytest.raises(UserError, match=r"needs tgif-v1.0.tsv, not found"):
        make(folder, split("tgif_original")).setup()
