from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.batch import FrameSpec
from src.data.sampling import (
    clip2video_positions,
    clip4clip_picks,
    clip4clip_slice,
    extraction_grid,
    frame_indices,
    frozen_indices,
    intervals,
    segment_frames,
    uniform_indices,
)
from src.errors import UserError

RULES = ["uniform", "clip2video", "clip4clip", "frozen"]


def spec(sampling: str, num_frames: int = 12, **rest: int) -> FrameSpec:
    return FrameSpec(num_frames, 32, sampling=sampling, **rest)  # type: ignore[arg-type]


@given(
    sampling=st.sampled_from(RULES),
    length=st.integers(1, 400),
    fps=st.sampled_from([0.5, 3.0, 5.0, 12.5, 23.976, 29.97, 60.0]),
    num_frames=st.integers(1, 16),
    framerate=st.integers(1, 7),
    seed=st.none() | st.integers(0, 9),
    start=st.none() | st.floats(0, 0.4),
    end=st.none() | st.floats(0.5, 3),
)
def test_indices_are_sorted_inside_the_file_and_never_too_many(
    sampling: str,
    length: int,
    fps: float,
    num_frames: int,
    framerate: int,
    seed: int | None,
    start: float | None,
    end: float | None,
) -> None:
    duration = length / fps
    segment = (None if start is None else start * duration, None if end is None else end * duration)
    rng = None if seed is None else np.random.default_rng(seed)
    found = frame_indices(length, fps, spec(sampling, num_frames, framerate=framerate), rng, segment)
    assert 1 <= len(found) <= num_frames
    assert found == sorted(found)
    assert found[0] >= 0
    assert found[-1] < length
    if sampling != "clip4clip":
        lo, hi = segment_frames(length, fps, segment)
        assert lo <= found[0] <= found[-1] < hi


def test_uniform_takes_the_middles_and_jitters_inside_the_intervals() -> None:
    assert uniform_indices(4, 100) == [12, 37, 62, 87]
    assert uniform_indices(4, 3) == [0, 1, 2]
    drawn = np.array([uniform_indices(4, 10, np.random.default_rng(seed)) for seed in range(200)])
    for column, (lo, hi) in zip(drawn.T, [(0, 2), (2, 5), (5, 7), (7, 10)], strict=True):
        assert set(column) == set(range(lo, hi))


def test_same_generator_state_gives_the_same_jitter() -> None:
    for rule in RULES:
        one, two = (frame_indices(300, 30, spec(rule), np.random.default_rng(5)) for _ in range(2))
        assert one == two


@pytest.mark.parametrize("rule", ["uniform", "frozen"])
def test_training_indices_differ_from_evaluation(rule: str) -> None:
    assert frame_indices(300, 30, spec(rule), np.random.default_rng(1)) != frame_indices(300, 30, spec(rule))


# Rows of the reference's own output.
@pytest.mark.parametrize(
    ("num_frames", "length", "fix_start", "expected"),
    [
        (4, 10, None, [0, 3, 5, 8]),
        (8, 250, None, [15, 46, 77, 108, 140, 171, 202, 233]),
        (4, 100, 3, [3, 28, 53, 78]),
        (1, 50, None, [24]),
    ],
)
def test_frozen_uniform(num_frames: int, length: int, fix_start: int | None, expected: list[int]) -> None:
    assert frozen_indices(num_frames, length, fix_start) == expected


@pytest.mark.parametrize(
    ("num_frames", "length", "expected"),
    [(4, 100, [7, 36, 62, 79]), (8, 33, [0, 5, 9, 12, 16, 22, 24, 28]), (1, 50, [14])],
)
def test_frozen_rand_draws_as_the_reference(num_frames: int, length: int, expected: list[int]) -> None:
    rng = random.Random(8)
    assert frozen_indices(num_frames, length, choose=rng.choice) == expected


def test_frozen_rand_takes_intervals_of_one_frame_that_crash_the_reference() -> None:
    assert frozen_indices(4, 4, choose=random.choice) == [0, 1, 2, 3]
    assert intervals(4, 7) == [(0, 1), (1, 3), (3, 5), (5, 7)]
    assert frozen_indices(4, 7, choose=lambda candidates: candidates[-1]) == [0, 1, 3, 5]


def test_frozen_rand_never_draws_the_last_frame_of_an_interval() -> None:
    drawn = {index for seed in range(300) for index in frame_indices(12, 30, spec("frozen", 3), _rng(seed))}
    assert drawn == set(range(12)) - {3, 7, 11}


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_fix_start_stays_inside_the_video() -> None:
    assert frozen_indices(4, 10, fix_start=6) == [6, 8, 9, 9]


# What ffmpeg 9 wrote for `-i clip -r 5 %08d.jpg`, read back from numbers painted into the frames.
@pytest.mark.parametrize(
    ("num_frames", "fps", "expected"),
    [
        (60, 30, [0, 1, 5, 11, 17, 23, 29, 35, 41, 47, 53, 59]),
        (61, 25, [0, 1, 4, 9, 14, 19, 24, 29, 34, 39, 44, 49, 54, 59]),
        (90, 30000 / 1001, [0, 1, 5, 11, 17, 23, 29, 35, 41, 47, 53, 59, 65, 71, 77, 83, 89]),
        (75, 15, [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35, 38, 41, 44, 47, 50, 53, 56, 59, 62, 65, 68, 71, 74]),  # noqa: E501
        (20, 3, [0, 0, 1, 2, 2, 3, 3, 4, 5, 5, 6, 6, 7, 8, 8, 9, 9, 10, 11, 11, 12, 12, 13, 14, 14, 15, 15, 16, 17, 17, 18, 18, 19]),  # noqa: E501
        (33, 8, [0, 1, 2, 3, 4, 6, 7, 9, 11, 12, 14, 15, 17, 19, 20, 22, 23, 25, 27, 28, 30, 31]),
        (150, 50, [0, 1, 8, 18, 28, 38, 48, 58, 68, 78, 88, 98, 108, 118, 128, 138, 148]),
        (1, 30, [0]),
        (7, 5, [0, 1, 2, 3, 4, 5, 6]),
    ],
)  # fmt: skip
def test_extraction_grid_is_what_ffmpeg_writes(num_frames: int, fps: float, expected: list[int]) -> None:
    assert extraction_grid(num_frames, fps) == expected


def test_clip2video_reads_every_second_image_of_the_extracted_folder() -> None:
    # 10 s at 30 fps are 52 images, 26 of them after the stride; 12 are spread over those.
    grid = extraction_grid(300, 30)
    positions = clip2video_positions(len(grid), 2, 12)
    assert frame_indices(300, 30, spec("clip2video", framerate=2)) == [grid[p] for p in positions]
    assert len(grid) == 52
    assert positions[-1] == 51


def test_clip2video_jitter_keeps_the_ends() -> None:
    # 300 images: gaps of 27, so interior ones move by up to 13.
    plain = clip2video_positions(300, 1, 12)
    moved = clip2video_positions(300, 1, 12, np.random.RandomState(0))
    assert moved != plain
    assert (moved[0], moved[-1]) == (plain[0], plain[-1])
    assert max(abs(a - b) for a, b in zip(plain, moved, strict=True)) <= (plain[1] - plain[0]) // 2


def test_clip2video_without_a_frame_upstream_keeps_one_here() -> None:
    assert clip2video_positions(1, 2, 12) == []
    assert frame_indices(1, 30, spec("clip2video", framerate=2)) == [0]


def test_clip4clip_truncates_the_rate() -> None:
    assert clip4clip_picks(100, 29.97, 1) == [0, 29, 58, 87]
    assert clip4clip_picks(6, 2.5, 0) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("position", "expected"), [(0, [0, 1, 2]), (1, [7, 8, 9]), (2, [0, 4, 9])])
def test_clip4clip_slice(position: int, expected: list[int]) -> None:
    assert clip4clip_slice(range(10), 3, position) == expected  # type: ignore[arg-type]


def test_segment_seconds_include_the_last_one_for_clip4clip() -> None:
    assert frame_indices(300, 30, spec("clip4clip"), segment=(2, 5)) == [60, 90, 120, 150]
    assert frame_indices(300, 30, spec("uniform", 3), segment=(2, 5)) == [74, 104, 134]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frame_indices(0, 30, spec("uniform")), "0 frames"),
        (lambda: frame_indices(9, 30, spec("uniform", 0)), "num_frames=0"),
        (lambda: frame_indices(9, 30, spec("clip2video", framerate=0)), "framerate=0"),
        (lambda: frame_indices(30, 30, spec("uniform"), segment=(1.5, None)), "from 1.5 s"),
        (lambda: frame_indices(30, 30, spec("uniform"), segment=(0.5, 0.5)), "the end behind the start"),
    ],
)
def test_impossible_requests_are_refused(call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()  # type: ignore[operator]
