"""Denoising: which captions training draws, and what a mask file may say."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from src.data.annotation import CaptionRecord, VideoRecord
from src.data.caption_mask import apply_mask, read_mask, write_mask
from src.data.datasets import FrameSource, TrainPairs
from src.data.splits import SplitPart
from src.errors import UserError
from src.tasks.convert_mask import convert_mask

MASKS = {"a": [True, False, True], "b": [False, False, False], "c": [True, True, True], "other": [False]}


def part_of(videos: str = "abc", keys: bool = True) -> SplitPart:
    captions = tuple(CaptionRecord(v, f"{v}{k}", (f"{v}#{k}",) if keys else ()) for v in videos for k in range(3))
    return SplitPart("train", tuple(map(VideoRecord, videos)), captions, tuple(n // 3 for n in range(3 * len(videos))))


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    write_mask(tmp_path / "less100.json", MASKS, {"rank_threshold": 100})
    return tmp_path / "less100.json"


def test_masked_captions_are_never_drawn(mask: Path) -> None:
    part = part_of()
    kept = apply_mask(mask, part)
    assert kept.kept_N.tolist() == [True, False, True, False, False, False, True, True, True]
    assert kept.words() == "4 of 9 training captions left out, 1 videos without any (less100.json)"
    source = FrameSource(None)
    pairs = TrainPairs(part, source, 0, "all_captions", kept=kept.kept_N)
    assert [(i.caption, i.video) for k in range(len(pairs)) if (i := pairs[0, k])] == [
        *((0, 0), (2, 0), (6, 2), (7, 2), (8, 2))
    ]
    assert pairs.sample_videos() == [0, 0, 2, 2, 2]
    pairs = TrainPairs(part, source, 0, "one_per_video", kept=kept.kept_N)
    assert pairs.sample_videos() == [0, 2]  # a video without a caption is left out
    drawn = Counter(item.caption for e in range(600) for k in range(2) if (item := pairs[e, k]))
    assert drawn.keys() == {0, 2, 6, 7, 8}
    # Each with its probability mask / sum(mask), within five standard deviations.
    assert all(
        abs(drawn[k] - 600 / n) < 5 * (600 / n * (1 - 1 / n)) ** 0.5 for k, n in ((0, 2), (2, 2), (6, 3), (8, 3))
    )


def test_lengths_follow_the_samples(mask: Path) -> None:
    kept = apply_mask(mask, part_of()).kept_N
    captions, videos = np.array([1, 9, 2, 9, 9, 9, 3, 4, 5]), np.array([1, 1, 4])
    for samples, expected in (("all_captions", [1, 2, 4, 4, 5]), ("one_per_video", [2, 5])):
        pairs = TrainPairs(part_of(), FrameSource(None), 0, samples, kept=kept)  # type: ignore[arg-type]
        assert pairs.sample_lengths(captions, videos).tolist() == expected


@pytest.mark.parametrize("samples", ["all_captions", "one_per_video"])
def test_a_mask_that_keeps_everything_changes_nothing(samples: Any) -> None:
    part, source = part_of(), FrameSource(None)
    without = TrainPairs(part, source, 3, samples)
    within = TrainPairs(part, source, 3, samples, kept=np.ones(9, dtype=bool))
    keys = [(epoch, index) for epoch in range(5) for index in range(len(without))]
    assert [without[key] and without[key].caption for key in keys] == [within[key].caption for key in keys]  # type: ignore[union-attr]


def test_masks_of_other_data_are_refused(mask: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks 1 of 2 train videos \(first: 'z'"):
        apply_mask(mask, part_of("az"))
    write_mask(tmp_path / "short.json", {"a": [True]}, {})
    with pytest.raises(UserError, match="has 1 captions of video 'a', found caption number 1"):
        apply_mask(tmp_path / "short.json", part_of("a"))
    with pytest.raises(UserError, match="leaves no caption of the train part"):
        apply_mask(mask, part_of("b"))
    with pytest.raises(UserError, match="masks are for single captions"):
        apply_mask(mask, part_of(keys=False))
    with pytest.raises(UserError, match="does not exist; make it by task=prepare"):
        read_mask(tmp_path / "absent.json")
    (tmp_path / "odd.json").write_text(json.dumps({"masks": {}}))
    with pytest.raises(UserError, match="is no videotext caption mask of version 1"):
        read_mask(tmp_path / "odd.json")
    with pytest.raises(UserError, match=r"ends in \.json"):
        write_mask(tmp_path / "mask.npz", {}, {})


def convert(folder: Path, content: object) -> Path:
    (folder / "denoise-less100.pkl").write_bytes(pickle.dumps(content))
    output = folder / "caption_mask.json"
    task = {"source": str(folder / "denoise-less100.pkl"), "output": str(output), "trust": False}
    convert_mask(OmegaConf.create({"task": task}))  # type: ignore[arg-type]
    return output


def test_published_masks_are_imported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    found = read_mask(convert(tmp_path, {"video0": np.array([1, 0, 1]), "video1": [0.0, 0.0]}))
    assert found == {"video0": "101", "video1": "00"}
    assert "caption mask of 2 videos: 3 of 5 captions are left out, all of them for 1 videos" in caplog.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"video0": np.array([0.5, 1.0])}, "expected a 0 or 1 for each caption"),
        ({"video0": np.zeros((2, 3))}, "expected a 0 or 1 for each caption"),
        ([1, 0], "holds list, expected a dict"),
        ({"video0": Path("x")}, "asks for pathlib.*task.trust=true"),
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, content: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        convert(tmp_path, content)
