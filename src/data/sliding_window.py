"""Evaluation over several shifted frame samples of each video, as Frozen in Time's `test.py -s <stride>`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

WindowCount = Literal["intervals", "upstream"]


@dataclass(frozen=True)
class Windows:
    """Embeddings after aggregation, in order of first appearance.

    Attributes:
        text_QD: one for each distinct caption of a video.
        video_VD: mean over the windows of a video, of embeddings that are not normalised.
        captions: (video, caption) of each row of `text_QD`.
        videos: name of each row of `video_VD`.
    """

    text_QD: Tensor
    video_VD: Tensor
    captions: tuple[tuple[str, str], ...]
    videos: tuple[str, ...]


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


def aggregate_windows(videos: Sequence[str], captions: Sequence[str], text_WD: Tensor, video_WD: Tensor) -> Windows:
    """One embedding per video and per distinct (video, caption) from one row per window.

    Args:
        videos: video of each row.
        captions: caption of each row; every window repeats that of its video.
        text_WD: embedding of each row's caption; the first one of a caption is kept.
        video_WD: embedding of each row's window; averaged before normalisation.

    Source: m-bain/frozen-in-time@e1f13e1, test.py.
    """
    rows: dict[str, list[int]] = {}
    first: dict[tuple[str, str], int] = {}
    for row, (video, caption) in enumerate(zip(videos, captions, strict=True)):
        rows.setdefault(video, []).append(row)
        first.setdefault((video, caption), row)
    video_VD = torch.stack([video_WD[of_video].mean(dim=0) for of_video in rows.values()])
    return Windows(text_WD[list(first.values())], video_VD, tuple(first), tuple(rows))
