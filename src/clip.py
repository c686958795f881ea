"""What travels from the decoder to a feature extractor: one decoded item, and what an extractor wants decoded.

Stands below both `src.data` and `src.extractors`, so that neither needs to import the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Medium = Literal["frames", "audio", "text"]


@dataclass(frozen=True)
class Clip:
    """One decoded item.

    Attributes:
        id: video id, or the key of a caption.
        path: the video file; None for captions.
        frames_THWC: uint8 RGB at the request's rate and size, for `medium = "frames"`.
        frame_indices: position of each frame in the file.
        fps: frames per second of the file.
        size_hw: height and width of the file's frames, pixels, before any resizing.
        span: first frame and end of the video in its file.
        wave_CN: float32 in [-1, 1], for `medium = "audio"`.
        sample_rate: of the waveform, Hz.
        text: for `medium = "text"`.
    """

    id: str
    path: Path | None = None
    frames_THWC: np.ndarray | None = None
    frame_indices: tuple[int, ...] = ()
    fps: float = 0.0
    size_hw: tuple[int, int] = (0, 0)
    span: tuple[int, int] = (0, 0)
    wave_CN: np.ndarray | None = None
    sample_rate: int = 0
    text: str = ""


@dataclass(frozen=True)
class Request:
    """What is to be decoded for an extractor.

    Attributes:
        fps: frames per second of video time, in the middle of each interval of 1/fps seconds, none twice;
            None = every frame.
        max_frames: at most so many frames, evenly spread over those of `fps`; None = all.
        short_side: frames are scaled (bicubic, antialiased) so that their shorter side has so many pixels;
            None = as they are.
        sample_rate: Hz, of the waveform; None = that of the file.
        mono: channels are averaged.
    """

    fps: float | None = 1.0
    max_frames: int | None = None
    short_side: int | None = None
    sample_rate: int | None = None
    mono: bool = True


@dataclass(frozen=True)
class Unusable:
    """In place of a clip: there is none, and why.

    Attributes:
        id: video id, or the key of a caption.
        reason: in words.
        failed: True when something is broken and might be mended; False when the item just has nothing of the kind
            (no sound).
    """

    id: str
    reason: str
    failed: bool
