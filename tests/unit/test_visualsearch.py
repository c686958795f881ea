"""dataset=visualsearch in both layouts, its format check, and a folder that the reference code made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.batch import InputSpec
from src.data.benchmarks.visualsearch import VisualSearchDataModule
from src.data.bigfile_checks import find_in_collection
from src.data.caption_files import read_captions, video_of_caption
from src.data.checks import Finding
from src.data.splits import Counts, SplitSpec
from src.errors import UserError
from tests.conftest import SHARED

PARTS = {"train": {"v1": 2, "v2": 1}, "val": {"v3": 1}, "test": {"v4": 3}}
DIMS = 5


def write_collection(folder: Path, parts: dict[str, dict[str, int]]) -> None:
    """`parts`: name of a caption file -> video -> number of captions; two frames for each video."""
    (folder / "TextData").mkdir(parents=True)
    for name, videos in parts.items():
        lines = [f"{video}#{k} caption {k} of {video}" for video, count in videos.items() for k in range(count)]
        (folder / "TextData" / f"{name}.caption.txt").write_text("\n".join(lines) + "\n")
    videos = [video for of_part in parts.values() for video in of_part]
    frames = {video: [f"{video}_{k}" for k in range(2)] for video in videos}
    ids = [frame for of_video in frames.values() for frame in of_video]
    features = folder / "FeatureData" / "feat"
    features.mkdir(parents=True)
    np.zeros((len(ids), DIMS), "<f4").tofile(features / "feature.bin")
    (features / "shape.txt").write_text(f"{len(ids)} {DIMS}")
    (features / "id.txt").write_text(" ".join(ids))
    (features / "video2frames.txt").write_text(repr(frames))


@pytest.fixture
def one_folder(tmp_path: Path) -> Path:
    write_collection(tmp_path / "own", {f"own{part}": videos for part, videos in PARTS.items()})
    return tmp_path


@pytest.fixture
def several_folders(tmp_path: Path) -> Path:
    for part, videos in PARTS.items():
        write_collection(tmp_path / f"own{part}", {f"own{part}": videos})
    return tmp_path


def make(root: Path, split: SplitSpec | None = None, **options: Any) -> VisualSearchDataModule:
    split = split or SplitSpec("visualsearch", expected={"train": Counts(2, 3), "test": Counts(1, 3)})
    return VisualSearchDataModule(name="own", split=split, inputs=InputSpec(None), rootpath=str(root), **options)


def by_kind(findings: list[Finding]) -> dict[str, tuple[str, ...]]:
    return {finding.kind: finding.items for finding in findings}


def test_one_folder(one_folder: Path) -> None:
    module = make(one_folder, collection="own")
    train = module.part("train")
    assert [(caption.video_id, caption.text, caption.keys) for caption in train.captions] == [
        ("v1", "caption 0 of v1", ("v1#0",)),
        ("v1", "caption 1 of v1", ("v1#1",)),
        ("v2", "caption 0 of v2", ("v2#0",)),
    ]
    assert [video.path for video in train.videos] == [None, None]
    assert module.own_findings() == []


@pytest.mark.parametrize(
    "options",
    [
        {"train_collection": "owntrain", "val_collection": "ownval", "test_collection": "owntest"},
        {"collection": "own"},
    ],
)
def test_several_folders(several_folders: Path, options: dict[str, str]) -> None:
    module = make(several_folders, **options)
    assert [video.id for video in module.part("test").videos] == ["v4"]
    assert len(module.part("train").captions) == 3
    assert module.own_findings() == []


def test_only_the_parts_of_the_split_are_read(one_folder: Path) -> None:
    (one_folder / "own" / "TextData" / "ownval.caption.txt").unlink()
    with pytest.raises(UserError, match=r"\(val\) needs ownval.caption.txt, not found in .*~split.parts.val"):
        make(one_folder, collection="own").setup()
    module = make(one_folder, SplitSpec("s", parts={"train": "train", "test": "test"}), collection="own")
    assert len(module.part("test").captions) == 3
    # The val part's videos still have features, which is no error.
    assert {(f.severity, f.kind) for f in module.own_findings()} == {("note", "features of a video without captions")}


def test_missing_options_and_folders(one_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"neither dataset.collection nor dataset.train_collection is set; expected lay"
    ):
        make(one_folder).setup()
    with pytest.raises(UserError, match=r"dataset.rootpath=.*none is not a folder; expected layout, one folder: ROOT"):
        make(tmp_path / "none", collection="own").setup()
    with pytest.raises(UserError, match=r"needs elsewhere.caption.txt, not found"):
        make(one_folder, collection="own", train_collection="elsewhere").setup()


def test_caption_ids(tmp_path: Path) -> None:
    assert video_of_caption("a b.mp4#enc#3") == "a b"
    assert video_of_caption("x.y.jpg#0") == "x.y"
    path = tmp_path / "c.caption.txt"
    path.write_text("v#0 one\r\n\nv#0 two  words \nv#1\nnohash three\n", newline="")
    assert [(line.id, line.video_id, line.text) for line in read_captions(path)] == [
        ("v#0", "v", "one"),
        ("v#0", "v", "two  words"),
        ("v#1", "v", ""),
        ("nohash", "nohash", "three"),
    ]
    path.write_bytes(b"v#0 caf\xe9\n")
    with pytest.raises(UserError, match=r"is not UTF-8 \(byte 7\); save it as UTF-8"):
        read_captions(path)


def test_findings_in_captions(one_folder: Path) -> None:
    path = one_folder / "own" / "TextData" / "ownval.caption.txt"
    path.write_text("v3#0 a\nv3#0 b\nv5 c\nv3#1\n")
    module = make(one_folder, collection="own")
    found = by_kind(module.own_findings())
    assert found["duplicate caption id"] == ("v3#0",)
    assert found["caption id without #"] == ("v5",)
    assert found["video without features"] == ("v5",)
    assert module.applied.excluded_counts("val") == {"empty caption": 1}


def change(name: str, old: str, new: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return apply


def cut(folder: Path) -> None:
    (folder / "feature.bin").write_bytes((folder / "feature.bin").read_bytes()[:-4])


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (cut, {"row count and file size differ": "feature.bin has 156 bytes, 8 rows of 5 float32 are 160"}),
        (change("shape.txt", "8 5", "8"), {"row count and file size differ": "shape.txt holds '8', expected"}),
        (
            change("id.txt", "v1_0 ", ""),
            {"row count and file size differ": "id.txt has 7 ids, shape.txt says 8 rows", "missing frame": "v1_0"},
        ),
        (change("id.txt", "v1_1", "v1_0"), {"duplicate frame id": "v1_0", "missing frame": "v1_1"}),
        (
            change("video2frames.txt", "'v2_0', ", ""),
            {"frame of no video": "v2_0"},
        ),
        (change("video2frames.txt", "'v2_0'", "'v2_1'"), {"frame listed twice": "v2_1", "frame of no video": "v2_0"}),
        (
            change("video2frames.txt", "'v2':", "'w2':"),
            {
                "frame of another video": "v2_0 in w2",
                "video without features": "v2",
                "features of a video without captions": "w2",
            },
        ),
        (
            change("video2frames.txt", "['v2_0', 'v2_1']", "[]"),
            {"video without frames": "v2", "frame of no video": "v2_0"},
        ),
        (change("video2frames.txt", "{", "{'a': print(),"), {"unreadable file": ""}),
        (lambda folder: (folder / "id.txt").unlink(), {"missing file": ""}),
        (lambda folder: (folder / "video2frames.txt").unlink(), {"missing file": ""}),
    ],
)
def test_format_check(one_folder: Path, damage: Callable[[Path], None], expected: dict[str, str]) -> None:
    damage(one_folder / "own" / "FeatureData" / "feat")
    found = by_kind(find_in_collection(one_folder / "own", ["v1", "v2", "v3", "v4"]))
    assert set(found) == set(expected)
    for kind, text in expected.items():
        assert text in found[kind][0]


def test_format_check_of_one_feature(one_folder: Path) -> None:
    (one_folder / "own" / "FeatureData" / "unfinished").mkdir()
    assert len(find_in_collection(one_folder / "own", ["v1"])) > 1
    assert by_kind(find_in_collection(one_folder / "own", ["v1"], "feat")) == {
        "features of a video without captions": ("v2", "v3", "v4")
    }
    (missing,) = find_in_collection(one_folder / "elsewhere", ["v1"])
    assert (missing.severity, missing.kind) == ("error", "missing file")


@pytest.mark.real
def test_folder_made_by_the_reference() -> None:
    root = SHARED / "golden" / "dual_encoding" / "pipeline_onefolder" / "root"
    module = make(root, SplitSpec("toy"), collection="toy", feature="feat")
    found = {
        part: (len(module.part(part).videos), len(module.part(part).captions)) for part in ("train", "val", "test")
    }
    lines = {part: (root / "toy" / "TextData" / f"toy{part}.caption.txt").read_text().splitlines() for part in found}
    assert found == {part: (len({line.split("#")[0] for line in of}), len(of)) for part, of in lines.items()}
    assert found["train"][0] == 14
    assert [finding for finding in module.own_findings() if finding.severity == "error"] == []
