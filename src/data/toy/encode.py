"""Frames and samples to an mp4 file (H.264 and AAC) through PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from src.data.toy.audio import SAMPLE_RATE_HZ

# In pictures as small as these x264 plans with memory that it never wrote; its portable code does not.
REPRODUCIBLE = {"threads": "1", "x264-params": "cpu-independent=1"}


def write_mp4(path: Path, frames_THWC: np.ndarray, fps: int, samples: np.ndarray) -> None:
    """Encode a clip; the same frames and samples give the same bytes.

    Args:
        path: the file to write.
        frames_THWC: uint8 RGB, even height and width.
        fps: frames per second.
        samples: int16 mono at `SAMPLE_RATE_HZ`.
    """
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast", **REPRODUCIBLE})
        video.height, video.width = frames_THWC.shape[1:3]
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ, options={"b": "48000"})
        audio.layout = "mono"
        for image in frames_THWC:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        sound.sample_rate, sound.time_base, sound.pts = SAMPLE_RATE_HZ, Fraction(1, SAMPLE_RATE_HZ), 0
        container.mux(audio.encode(sound))
        container.mux(audio.encode())
