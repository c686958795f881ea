"""Evaluation over several shifted frame samples of each video, as Frozen in Time's `test.py -s <stride>`."""

from __future__ import annotations

from typing import Literal

WindowCount = Literal["intervals", "upstream"]


def window_starts(num_frames: int, length: int, stride: int, count: WindowCount = "intervals") -> list[int]:
    """Offsets to add to the first frame of every interval; one frame sample per offset.

    Args:
        num_frames: frames of a sample.
        length: frames of the video.
        stride: frames between two windows.
        count: `intervals` = offsets fill an interval; `upstream` = the length is divided by the number of interval
            edges, one too many, so that about a fifth of the offsets is missing at 4 frames.

    Returns:
        At least [0].

    Source: m-bain/frozen-in-time@e1f13e1, `_fix_temporal_samples`.
    Deviates: a video of at most `num_frames` frames gets no window upstream and is lost under its count; here it
        keeps the first one.
    """
    parts = min(num_frames, length)
    interval = length // (parts + 1 if count == "upstream" else parts)
    return list(range(0, interval, stride)) or [0]
