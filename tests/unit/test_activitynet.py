"""dataset=activitynet: paragraphs and clips, on files of the published layout and on the published files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.batch import FrameSpec, InputSpec
from src.data.benchmarks.activitynet import ActivityNetDataModule
from src.data.checks import find_all
from src.data.splits import SplitSpec
from src.errors import UserError

SPLITS = Path(__file__).resolve().parents[2] / "conf" / "split"
VAL_1 = {
    "v_a": {"duration": 7.2, "timestamps": [[0.0, 3.1], [2.5, 7.0]], "sentences": ["A man.", "  He jumps."]},
    "v_b": {"duration": 50.0, "timestamps": [[1, 4]], "sentences": ["A cat."]},
}
VAL_2 = {"v_a": {"duration": 7.2, "timestamps": [[0, 7.2]], "sentences": ["Someone jumps."]}}
TRAIN = {
    "v_t": {"duration": 9, "timestamps": [[5, 2.5], [3, 3]], "sentences": ["Backwards.", "A moment."]},
    "v_u": {"duration": 1.01, "timestamps": [[0, 1]], "sentences": ["Not listed."]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "annotations"
    root.mkdir()
    documents = {"train": TRAIN, "val_1": VAL_1, "val_2": VAL_2, "train_ids": ["v_t"]}
    documents["val_ids"] = ["v_b", "v_z", "v_a", "v_a"]
    for name, document in documents.items():
        (root / f"{name}.json").write_text(json.dumps(document))
    (root / "val_2_list.txt").write_text("v_a\n")
    return root


def make(folder: Path, name: str, *, frames: FrameSpec | None = None, **split: Any) -> ActivityNetDataModule:
    values = yaml.safe_load((SPLITS / f"{name}.yaml").read_text()) | {"expected": {}} | split
    return ActivityNetDataModule(
        name="activitynet",
        split=SplitSpec(**values),
        inputs=InputSpec(None, frames),
        annotations_dir=str(folder),
        videos_dir=str(folder.parent / "videos"),
    )


def test_paragraphs_in_the_order_of_the_id_list(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        test = make(folder, "activitynet").part("test")
    assert [(video.id, video.start_s, video.end_s) for video in test.videos] == [("v_b", 0, 50), ("v_a", 0, 8)]
    assert [caption.text for caption in test.captions] == ["A cat.", "A man.   He jumps."]
    assert test.captions[1].keys == ("v_a#0", "v_a#1")
    # Nothing is left out without a word.
    assert "train_ids.json: 1 videos of train.json are not listed, 0 listed ones have no sentences" in caplog.text
    assert "val_ids.json: 0 videos of val_1.json are not listed, 1 listed ones have no sentences" in caplog.text


def test_the_second_annotator_has_own_paragraphs(folder: Path) -> None:
    test = make(folder, "activitynet_val2").part("test")
    assert [(caption.text, caption.keys) for caption in test.captions] == [("Someone jumps.", ("v_a#2",))]


def test_without_id_lists_the_annotation_says_the_order(folder: Path) -> None:
    for name in ("val_ids.json", "train_ids.json", "val_2_list.txt"):
        (folder / name).unlink()
    assert [video.id for video in make(folder, "activitynet").part("test").videos] == ["v_a", "v_b"]
    (folder / "val_1_list.txt").write_text("v_b\nv_a")
    assert [video.id for video in make(folder, "activitynet").part("test").videos] == ["v_b", "v_a"]


def test_every_sentence_is_a_query_for_its_own_segment(folder: Path) -> None:
    module = make(folder, "activitynet_clips")
    test = module.part("test")
    assert [(v.id, v.start_s, v.end_s, v.group) for v in test.videos] == [
        ("v_b#0", 1, 4, "v_b"),
        ("v_a#0", 0.0, 3.1, "v_a"),
        ("v_a#1", 2.5, 7.0, "v_a"),
    ]
    assert [(c.video_id, c.text, c.keys) for c in test.captions] == [
        ("v_b#0", "A cat.", ("v_b#0",)),
        ("v_a#0", "A man.", ("v_a#0",)),
        ("v_a#1", "  He jumps.", ("v_a#1",)),
    ]
    assert all(video.path == folder.parent / "videos" / f"{video.group}.mp4" for video in test.videos)
    # Times out of order, and a moment without length.
    assert [(video.start_s, video.end_s) for video in module.part("train").videos] == [(2.5, 5.0), (3.0, 4.0)]


def test_parts_may_be_searched_differently(folder: Path) -> None:
    module = make(
        folder,
        "activitynet",
        parts={"train": "train", "test": "val_1_clips"},
        captions={"train": "paragraph", "test": "file"},
    )
    assert [video.id for video in module.part("train").videos] == ["v_t"]
    assert [video.id for video in module.part("test").videos] == ["v_b#0", "v_a#0", "v_a#1"]


def test_file_names_with_and_without_the_prefix(folder: Path) -> None:
    videos = folder.parent / "videos"
    for name in ("val/v_a.mp4", "b.mkv"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).touch()
    test = make(folder, "activitynet", frames=FrameSpec(2, 8), subset="available").part("test")
    assert [video.path for video in test.videos] == [videos / "b.mkv", videos / "val" / "v_a.mp4"]


@pytest.mark.parametrize(
    "entry",
    [
        {"duration": 1, "timestamps": [[0, 1]], "sentences": []},
        {"duration": 1, "timestamps": [[0]], "sentences": ["a"]},
        {"duration": "long", "timestamps": [], "sentences": []},
        {"sentences": ["a"]},
        [],
    ],
)
def test_malformed_entries(folder: Path, entry: Any) -> None:
    (folder / "val_1.json").write_text(json.dumps({"v_a": entry}))
    with pytest.raises(UserError, match=r"val_1.json: v_a is .*expected duration and as many timestamps"):
        make(folder, "activitynet").setup()


def test_what_is_missing_is_said(folder: Path) -> None:
    (folder / "val_1.json").unlink()
    for name in ("activitynet", "activitynet_clips"):
        with pytest.raises(UserError, match=r"\(test\) needs val_1.json, not found in .*; get captions.zip of"):
            make(folder, name).setup()
    make(folder, "activitynet_val2").setup()  # val_1 is not used there


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("activitynet", {"train": (10_009, 10_009), "test": (4917, 4917)}),
        ("activitynet_val2", {"train": (10_009, 10_009), "test": (4885, 4885)}),
        ("activitynet_clips", {"train": (37_421, 37_421), "test": (17_505, 17_505)}),
    ],
)
def test_published_files(name: str, numbers: dict[str, tuple[int, int]], shared_data: Path) -> None:
    expected = yaml.safe_load((SPLITS / f"{name}.yaml").read_text())["expected"]
    module = make(shared_data / "annotations" / "activitynet", name, expected=expected)
    found = {part: (len(module.part(part).videos), len(module.part(part).captions)) for part in module.split.parts}
    assert found == numbers
    assert set(expected) == set(numbers)  # the yaml guards every part
    assert not [f for f in find_all(module.split, module.annotation) if f.severity == "error"]
    for part in numbers:
        assert all(
            v.start_s is not None and v.end_s is not None and v.end_s > v.start_s for v in module.part(part).videos
        )
    keys = [key for caption in module.annotation.captions for key in caption.keys]
    assert len(set(keys)) == len(keys)


@pytest.mark.real
def test_the_two_videos_at_hand(shared_data: Path) -> None:
    module = ActivityNetDataModule(
        name="activitynet",
        split=SplitSpec(
            "v",
            parts={"train": "train_clips", "test": "val_1_clips"},
            captions={"train": "file", "test": "file"},
            subset="available",
        ),
        inputs=InputSpec(None, FrameSpec(4, 16)),
        annotations_dir=str(shared_data / "annotations" / "activitynet"),
        videos_dir=str(shared_data / "clips" / "activitynet"),
    )
    for name, video_id in (("test", "v_GGSY1Qvo990"), ("train", "v_ZNVhz7ctTq0")):
        part = module.part(name)
        assert {video.group for video in part.videos} == {video_id}
        videos, _ = module.eval_dataloaders(name)
        assert sum(len(batch) for batch in videos) == len(part.videos) > 1  # each segment has frames
