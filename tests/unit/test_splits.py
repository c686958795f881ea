"""Splits: parts, caption policies, counts, exclusions and the errors that protect a result."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.splits import Counts, SplitSpec, apply_split, by_hash
from src.errors import UserError


def make(
    splits: dict[str, tuple[str, ...]], captions: list[tuple[str, str]] | None = None, **more: object
) -> Annotation:
    ids = dict.fromkeys(video_id for listed in splits.values() for video_id in listed)
    if captions is None:
        captions = [(video_id, f"{video_id} {k}") for k in range(2) for video_id in ids]
    videos = tuple(VideoRecord(video_id, Path("videos") / f"{video_id}.mp4") for video_id in ids)
    return Annotation(videos, tuple(CaptionRecord(*pair) for pair in captions), splits, **more)  # type: ignore[arg-type]


SPLITS = {"train": ("c", "a", "b"), "val": ("d",), "test": ("e", "f")}


def test_videos_keep_list_order_and_captions_stand_side_by_side() -> None:
    part = apply_split(SplitSpec("s"), make(SPLITS)).part("train")
    assert [video.id for video in part.videos] == ["c", "a", "b"]
    assert [caption.text for caption in part.captions] == ["c 0", "c 1", "a 0", "a 1", "b 0", "b 1"]
    assert part.video_index == (0, 0, 1, 1, 2, 2)
    assert part.captions_per_video() == [2, 2, 2]


def test_overlapping_parts_say_how_many_and_which() -> None:
    with pytest.raises(UserError, match=r"2 videos are both in train and in test \(first: 'b'\)"):
        apply_split(SplitSpec("s"), make({"train": ("a", "b", "c"), "val": ("d",), "test": ("b", "c")}))


def test_repeated_id_in_a_list() -> None:
    with pytest.raises(UserError, match=r"train names 1 videos more than once \(first: 'a'\)"):
        apply_split(SplitSpec("s"), make({"train": ("a", "a"), "val": ("b",), "test": ("c",)}))


def test_unknown_id_in_a_list() -> None:
    known = make(SPLITS)
    annotation = Annotation(known.videos, known.captions, {**SPLITS, "test": ("e", "zz")})
    with pytest.raises(UserError, match=r"test names 1 videos .* \(first: 'zz'\)"):
        apply_split(SplitSpec("s"), annotation)


def test_unknown_list_names_what_there_is() -> None:
    with pytest.raises(UserError, match=r"'train_9k', expected one that the data set has \(train, val, test\)"):
        apply_split(SplitSpec("s", parts={"train": "train_9k"}), make(SPLITS))


@pytest.mark.parametrize("key", ["parts", "captions", "expected"])
def test_unknown_part_in_the_split_yaml(key: str) -> None:
    value = {"tset": {"parts": "test", "captions": "all", "expected": Counts(1, 1)}[key]}
    with pytest.raises(UserError, match=f"split.{key}: found part 'tset', expected one of train, val, test"):
        SplitSpec("s", **{key: value})  # type: ignore[arg-type]


def test_count_mismatch_prints_both() -> None:
    spec = SplitSpec("s", expected={"test": {"videos": 2, "captions": 5}})  # type: ignore[dict-item]
    with pytest.raises(UserError, match="test has 2 videos and 4 captions, expected 2 videos and 5 captions"):
        apply_split(spec, make(SPLITS))


def test_a_part_may_be_left_out_without_its_expected_counts() -> None:
    """As `~split.parts.train` does, which errors advise to type."""
    expected = {"train": Counts(9000, 180000), "test": Counts(2, 4)}
    assert list(apply_split(SplitSpec("s", parts={"test": "test"}, expected=expected), make(SPLITS)).parts) == ["test"]


@pytest.mark.parametrize("path", sorted(Path("conf/split").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_splits_speak_of_their_own_parts_only(path: Path) -> None:
    split = OmegaConf.load(path)
    assert set(split.captions) == set(split.parts)
    assert set(split.expected) <= set(split.parts)


def test_caption_policies() -> None:
    paired = {"test": (CaptionRecord("f", "its own"), CaptionRecord("e", "another"))}
    annotation = make(SPLITS, paired=paired)
    spec = SplitSpec("s", captions={"train": "first", "test": "file"})
    applied = apply_split(spec, annotation)
    assert [caption.text for caption in applied.part("train").captions] == ["c 0", "a 0", "b 0"]
    assert [caption.text for caption in applied.part("test").captions] == ["another", "its own"]
    with pytest.raises(UserError, match=r"captions.val=file, but the list 'val' comes without captions"):
        apply_split(SplitSpec("s", captions={"val": "file"}), annotation)


def test_a_split_without_val_says_what_to_choose() -> None:
    applied = apply_split(SplitSpec("1ka", parts={"train": "train", "test": "test"}), make(SPLITS))
    with pytest.raises(UserError, match=r"has no val part .*selection=test or selection=last, .*split.val_holdout=500"):
        applied.part("val")


def test_val_holdout_is_taken_from_train_and_depends_on_ids_only() -> None:
    ids = tuple(f"video{k}" for k in range(50))
    spec = SplitSpec("s", parts={"train": "train", "test": "test"}, val_holdout=7)
    applied = apply_split(spec, make({"train": ids, "test": ("x",)}))
    train, val = ([video.id for video in applied.part(name).videos] for name in ("train", "val"))
    assert len(val) == 7
    assert sorted(train + val) == sorted(ids)
    assert set(val) == set(by_hash(ids)[:7])
    backwards = apply_split(spec, make({"train": ids[::-1], "test": ("x",)}))
    assert {video.id for video in backwards.part("val").videos} == set(val)
    # Whoever repeats a run must hold out the same ids on every machine and Python version.
    assert by_hash(f"video{k}" for k in range(5)) == ["video0", "video3", "video4", "video1", "video2"]


@pytest.mark.parametrize(
    ("parts", "holdout", "message"),
    [
        ({"train": "train"}, 3, "split.val_holdout=3, but split 's' has 3 train videos"),
        ({"train": "train", "val": "val"}, 1, "split 's' has a val part"),
        ({"train": "train"}, -1, "split.val_holdout=-1"),
    ],
)
def test_impossible_holdout(parts: dict[str, str], holdout: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply_split(SplitSpec("s", parts=parts, val_holdout=holdout), make(SPLITS))


def test_empty_captions_are_excluded_and_listed_and_odd_ones_survive() -> None:
    odd = ["word " * 2000, "🎬🤸🏽‍♀️", "مرحبا بالعالم", "一个男人在跑步", "tab\there"]
    texts = [("e", text) for text in odd] + [("e", ""), ("e", " \n\t ")] + [("a", "x"), ("f", "")]
    applied = apply_split(
        SplitSpec("s", parts={"train": "train", "test": "test"}), make({"train": ("a",), "test": ("e", "f")}, texts)
    )
    assert [caption.text for caption in applied.part("test").captions] == odd
    assert applied.excluded_counts("test") == {"empty caption": 3, "video without caption": 1}
    assert [item.video_id for item in applied.excluded if item.kind == "video without caption"] == ["f"]
    assert applied.excluded_counts("train") == {}


def test_missing_files_are_an_error_or_dropped_and_listed() -> None:
    def available(video: VideoRecord) -> bool:
        return video.id not in ("a", "f")

    with pytest.raises(UserError, match=r"2 of 6 video files are missing \(first: 'a' at videos/a.mp4\).*available"):
        apply_split(SplitSpec("s"), make(SPLITS), available=available)
    expected = {"train": Counts(3, 6)}  # of the published files, not of what is at hand
    applied = apply_split(SplitSpec("s", subset="available", expected=expected), make(SPLITS), available=available)
    assert [video.id for video in applied.part("train").videos] == ["c", "b"]
    assert applied.part("train").video_index == (0, 0, 1, 1)
    assert applied.excluded_counts("test") == {"missing video": 1}


def test_videos_without_any_of_the_features_that_stand_for_files() -> None:
    def available(video: VideoRecord) -> bool:
        return video.id != "f"

    with pytest.raises(UserError, match=r"1 of 6 videos have none of the features ocr, audio \(first: 'f'\).*extract"):
        apply_split(SplitSpec("s"), make(SPLITS), available=available, features=("ocr", "audio"))
    applied = apply_split(
        SplitSpec("s", subset="available"), make(SPLITS), available=available, features=("ocr", "audio")
    )
    assert [item.detail for item in applied.excluded] == ["it has none of the features ocr, audio"]
    assert applied.excluded_counts("test") == {"missing video": 1}


def test_a_part_of_which_nothing_is_left() -> None:
    applied = apply_split(SplitSpec("s", subset="available"), make(SPLITS), available=lambda video: video.id != "d")
    with pytest.raises(UserError, match=r"no video of the val part is usable \(1 x missing video\)"):
        applied.part("val")


def test_duplicate_ids_and_captions_of_unknown_videos_in_the_annotation() -> None:
    twice = Annotation((VideoRecord("a"), VideoRecord("b"), VideoRecord("a")), ())
    with pytest.raises(UserError, match=r"file.csv: 1 video ids occur more than once \(first: 'a', 2 times\)"):
        twice.check("file.csv")
    with pytest.raises(UserError, match=r"captions name 1 videos that are not in the annotation \(first: 'z'\)"):
        Annotation((VideoRecord("a"),), (CaptionRecord("z", "text"),)).check("file.csv")
