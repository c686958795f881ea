"""Clips as the decoder hands them to an extractor, and what every result has to fulfil."""

from __future__ import annotations

import json

import numpy as np

from src.clip import Clip
from src.data.clips import resized, short_side_size
from src.extractors.base import Extractor
from tests.clips import picture


def clip_of(extractor: Extractor, num_frames: int = 5, size: tuple[int, int] = (96, 64)) -> Clip:
    """A clip as the decoder would hand it over: scaled as the extractor asks."""
    frames = np.stack([picture(7 * i, *size) for i in range(num_frames)])
    height, width = frames.shape[1:3]
    frames = resized(frames, short_side_size(height, width, extractor.request.short_side))
    return Clip("v", None, frames, tuple(range(0, 10 * num_frames, 10)), 10.0, (height, width))


def rows_of(extractor: Extractor, clip: Clip) -> np.ndarray:
    rows = extractor.extract(clip)
    assert rows is not None
    assert rows.dtype == np.float32
    assert rows.shape[1] == extractor.dim
    json.dumps(extractor.recipe())
    return rows
