"""dataset=msvd on files of both published layouts, and on the published files where they are at hand."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.batch import FrameSpec, InputSpec
from src.data.benchmarks.msvd import MsvdDataModule
from src.data.checks import find_all
from src.data.splits import SplitSpec
from src.errors import UserError

SPLIT = Path(__file__).resolve().parents[2] / "conf" / "split" / "msvd.yaml"
CAPTIONS = {
    "-a_b_0_5": ["a dog runs", "a cat"],
    "c_1_2": ["one"],
    "d_3_9": ["two", "three", "two"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "annotations"
    root.mkdir()
    (root / "captions_msvd.json").write_text(json.dumps(CAPTIONS))
    (root / "train_list.txt").write_text("c_1_2\n")
    (root / "val_list.txt").write_text("-a_b_0_5")  # the published ones lack the last line end too
    (root / "test_list.txt").write_text("d_3_9\r\n\r\n")
    (root / "youtube_video_to_id_mapping.txt").write_text("-a_b_0_5 vid1\nc_1_2 vid2\nd_3_9 vid3\n")
    return root


def make(folder: Path, *, frames: FrameSpec | None = None, **split: Any) -> MsvdDataModule:
    return MsvdDataModule(
        name="msvd",
        split=SplitSpec("msvd", **split),
        inputs=InputSpec(None, frames),
        annotations_dir=str(folder),
        videos_dir=str(folder.parent / "videos"),
    )


def test_every_caption_is_a_query(folder: Path) -> None:
    test = make(folder).part("test")
    assert [caption.text for caption in test.captions] == ["two", "three", "two"]
    assert [caption.keys for caption in test.captions] == [("d_3_9#0",), ("d_3_9#1",), ("d_3_9#2",)]
    assert [video.id for video in make(folder).part("val").videos] == ["-a_b_0_5"]


def test_pickle_of_words_gives_the_same_captions(folder: Path) -> None:
    words = {video_id: [text.split() for text in texts] for video_id, texts in CAPTIONS.items()}
    expected = make(folder).annotation
    (folder / "captions_msvd.json").unlink()
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps(words))
    assert make(folder).annotation == expected


def test_files_by_id_or_by_number_at_any_depth(folder: Path) -> None:
    videos = folder.parent / "videos"
    for name in ("YouTubeClips/-a_b_0_5.avi", "vid2.avi", "copies/vid2.mp4"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).touch()
    module = make(folder, frames=FrameSpec(2, 8), subset="available")
    paths = {video.id: video.path for video in module.annotation.videos}
    assert paths == {
        "-a_b_0_5": videos / "YouTubeClips" / "-a_b_0_5.avi",
        "c_1_2": videos / "copies" / "vid2.mp4",  # mp4 before avi
        "d_3_9": videos / "d_3_9.avi",
    }
    assert module.applied.excluded_counts("test") == {"missing video": 1}


def test_what_is_missing_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not a folder; get the MSVD clips .*expected layout: DATA/msvd"):
        make(tmp_path / "nowhere", frames=FrameSpec(2, 8)).setup()
    with pytest.raises(UserError, match=r"videos is not a folder; get the MSVD clips .*set dataset.annotations_dir="):
        make(folder, frames=FrameSpec(2, 8)).setup()
    (folder / "val_list.txt").unlink()
    with pytest.raises(
        UserError, match=r"split 'msvd' \(val\) needs val_list.txt, not found in .*; get the MSVD clips"
    ):
        make(folder).setup()
    make(folder, parts={"test": "test"}).setup()  # a list that no part uses may be missing
    (folder / "captions_msvd.json").unlink()
    with pytest.raises(UserError, match=r"no captions_msvd.json or raw-captions.pkl in "):
        make(folder).setup()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "holds a list, expected a dict"),
        ('{"a": "text"}', "a has 'text', expected a list of captions"),
        ('{"a": [["word", 1]]}', "expected a list of captions"),
    ],
)
def test_malformed_captions(folder: Path, content: str, message: str) -> None:
    (folder / "captions_msvd.json").write_text(content)
    with pytest.raises(UserError, match=message):
        make(folder).setup()


def test_list_in_another_encoding(folder: Path) -> None:
    (folder / "val_list.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(UserError, match=r"val_list.txt is not UTF-8 \(byte 0\)"):
        make(folder).setup()


@pytest.mark.real
def test_published_files(shared_data: Path) -> None:
    values = yaml.safe_load(SPLIT.read_text())
    module = make(shared_data / "annotations" / "msvd", **{k: v for k, v in values.items() if k != "name"})
    found = {part: (len(module.part(part).videos), len(module.part(part).captions)) for part in values["parts"]}
    assert found == {"train": (1200, 48_774), "val": (100, 4290), "test": (670, 27_763)}
    assert set(values["expected"]) == set(found)  # the yaml guards every part
    assert max(module.part("test").captions_per_video()) == 81
    assert not [f for f in find_all(module.split, module.annotation) if f.severity == "error"]


@pytest.mark.real
def test_the_five_clips_at_hand_are_an_available_subset(shared_data: Path) -> None:
    module = MsvdDataModule(
        name="msvd",
        split=SplitSpec("msvd", subset="available"),
        inputs=InputSpec(None, FrameSpec(2, 16)),
        annotations_dir=str(shared_data / "annotations" / "msvd"),
        videos_dir=str(shared_data / "clips" / "msvd"),
    )
    module.setup()
    assert sum(len(part.videos) for part in module.applied.parts.values()) == 5
