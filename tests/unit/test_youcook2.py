"""dataset=youcook2 on generated files of both published layouts, and on the published files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.batch import FrameSpec, InputSpec
from src.data.benchmarks.youcook2 import Youcook2DataModule
from src.data.splits import Counts, SplitSpec
from src.errors import UserError

SPLITS = Path(__file__).resolve().parents[2] / "conf" / "split"
CLIPS = SplitSpec("clips", parts={"train": "train_clips", "test": "val_clips"})
PARAGRAPHS = SplitSpec(
    "paragraphs",
    parts={"train": "train_videos", "test": "val_videos"},
    captions={"train": "paragraph", "test": "paragraph"},
)
STEPS = {"aaa": [(3, 9, "cut"), (12, 20, "fry")], "bbb": [(0, 5, "mix"), (5, 7.5, "bake"), (8, 9, "eat")]}


def captioning(video_id: str) -> dict[str, Any]:
    rows = STEPS[video_id]
    return {"duration": 30.5, "timestamps": [[a, b] for a, b, _ in rows], "sentences": [text for *_, text in rows]}


def authors(video_id: str, subset: str) -> dict[str, Any]:
    steps = [{"segment": [a, b], "id": k, "sentence": text} for k, (a, b, text) in enumerate(STEPS[video_id])]
    return {"duration": 30.5, "subset": subset, "recipe_type": "113", "annotations": steps, "video_url": ""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "captioning"
    root.mkdir()
    (root / "captioning_train.json").write_text(json.dumps({"aaa": captioning("aaa")}))
    (root / "captioning_val.json").write_text(json.dumps({"bbb": captioning("bbb")}))
    return root


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    root = tmp_path / "authors"
    root.mkdir()
    database = {"bbb": authors("bbb", "validation"), "aaa": authors("aaa", "training")}
    (root / "youcookii_annotations_trainval.json").write_text(json.dumps({"database": database}))
    return root


def make(folder: Path, split: SplitSpec = CLIPS, **options: Any) -> Youcook2DataModule:
    options = {"inputs": InputSpec(None), "videos_dir": str(folder.parent / "videos")} | options
    return Youcook2DataModule(name="youcook2", split=split, annotations_dir=str(folder), **options)


def test_every_step_is_a_clip(folder: Path) -> None:
    module = make(folder, SplitSpec("c", CLIPS.parts, expected={"train": Counts(2, 2), "test": Counts(3, 3)}))
    test = module.part("test")
    assert [(video.id, video.start_s, video.end_s) for video in test.videos] == [
        ("bbb#0", 0, 5),
        ("bbb#1", 5, 7.5),
        ("bbb#2", 8, 9),
    ]
    assert {video.path for video in test.videos} == {folder.parent / "videos" / "bbb.mp4"}
    assert [(caption.text, caption.keys) for caption in test.captions] == [
        ("mix", ("bbb#0",)),
        ("bake", ("bbb#1",)),
        ("eat", ("bbb#2",)),
    ]


def test_paragraphs_of_whole_videos(folder: Path) -> None:
    module = make(folder, PARAGRAPHS)
    (caption,) = module.part("test").captions
    assert (caption.text, caption.keys) == ("mix bake eat", ("bbb#0", "bbb#1", "bbb#2"))
    (video,) = module.part("test").videos
    assert (video.id, video.start_s, video.end_s) == ("bbb", None, None)


@pytest.mark.parametrize("split", [CLIPS, PARAGRAPHS], ids=lambda split: split.name)
def test_both_layouts_say_the_same(folder: Path, whole: Path, split: SplitSpec) -> None:
    for part in ("train", "test"):
        mine, theirs = make(folder, split).part(part), make(whole, split).part(part)
        assert mine.captions == theirs.captions
        assert [(v.id, v.path, v.start_s, v.end_s) for v in mine.videos] == [
            (v.id, v.path, v.start_s, v.end_s) for v in theirs.videos
        ]
        assert {video.tags for video in theirs.videos} == {(("recipe", "113"),)}
    # Beside the captioning files, the authors' one adds the dish.
    (whole / "youcookii_annotations_trainval.json").rename(folder / "youcookii_annotations_trainval.json")
    assert make(folder, split).part("test").videos[0].tags == (("recipe", "113"),)


def test_lists_of_collaborative_experts_name_videos_or_clips(folder: Path) -> None:
    values = yaml.safe_load((SPLITS / "youcook2_ce.yaml").read_text())
    with pytest.raises(UserError, match=r"\(train\) needs train_list.txt, not found"):
        make(folder, SplitSpec(**values)).setup()
    (folder / "train_list.txt").write_text("aaa\n")
    (folder / "val_list.txt").write_text("bbb#2\nbbb#0\n")
    module = make(folder, SplitSpec(**values))
    assert [caption.text for caption in module.part("train").captions] == ["cut fry"]
    assert [caption.text for caption in module.part("test").captions] == ["eat", "mix"]


def test_video_files_of_any_format_at_any_depth(folder: Path) -> None:
    path = folder.parent / "videos" / "validation" / "113" / "bbb.mkv"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    spec = SplitSpec("c", {"test": "val_clips"})
    module = make(folder, spec, inputs=InputSpec(None, FrameSpec(2, 8)))
    assert {video.path for video in module.part("test").videos} == {path}
    path.unlink()
    with pytest.raises(UserError, match="3 of 3 video files are missing"):
        make(folder, spec, inputs=InputSpec(None, FrameSpec(2, 8))).setup()


def test_a_part_that_the_split_leaves_out_needs_no_file(folder: Path) -> None:
    (folder / "captioning_train.json").unlink()
    assert len(make(folder, SplitSpec("c", {"test": "val_clips"})).part("test").videos) == 3


def test_missing_and_foreign_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a folder; get captioning_train.json"):
        make(tmp_path / "none").setup()
    (folder / "captioning_val.json").write_text(json.dumps({"bbb": {"duration": 3}}))
    with pytest.raises(
        UserError, match=r"captioning_val.json has an entry of another layout \(KeyError: 'timestamps'\)"
    ):
        make(folder).setup()
    (folder / "youcookii_annotations_trainval.json").write_text('{"database": []}')
    with pytest.raises(UserError, match=r'"database" is a list, expected videos by id'):
        make(folder).setup()
    (folder / "youcookii_annotations_trainval.json").unlink()
    (folder / "captioning_val.json").unlink()
    with pytest.raises(
        UserError, match=r"no captioning_val.json and no youcookii_annotations_trainval.json in .*get cap"
    ):
        make(folder).setup()


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("youcook2", {"train": (10_337, 10_337), "test": (3492, 3492)}),
        ("youcook2_paragraph", {"train": (1333, 1333), "test": (457, 457)}),
    ],
)
def test_published_files(name: str, numbers: dict[str, tuple[int, int]], shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "annotations" / "youcook2"
    spec = SplitSpec(**yaml.safe_load((SPLITS / f"{name}.yaml").read_text()))
    module = make(source, spec)
    found = {part: (len(module.part(part).videos), len(module.part(part).captions)) for part in spec.parts}
    assert found == numbers
    assert set(spec.expected) == set(numbers)  # the yaml guards every part
    # The authors' file alone gives the same.
    file = "youcookii_annotations_trainval.json"
    (tmp_path / file).symlink_to(source / file)
    other = make(tmp_path, spec)
    for part in spec.parts:
        assert sorted(c.text for c in other.part(part).captions) == sorted(c.text for c in module.part(part).captions)
        segments = [{(v.id, v.start_s, v.end_s, v.tags) for v in m.part(part).videos} for m in (module, other)]
        assert segments[0] == segments[1]
    videos = module.part("test").videos
    assert all(v.start_s is None or (v.end_s is not None and v.start_s < v.end_s) for v in videos)
