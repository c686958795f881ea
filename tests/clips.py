"""Small video files of every awkward kind, made with PyAV; frame i is recognisable."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 16000


def picture(number: int, width: int, height: int) -> np.ndarray:
    """uint8 (H, W, 3): a gradient that shifts and a square that moves, different for every number below 256."""
    picture = np.zeros((height, width, 3), np.uint8)
    rows, columns = np.mgrid[:height, :width]
    picture[..., 0] = (columns * 3 + number * 7) % 256
    picture[..., 1] = (rows * 3) % 256
    picture[..., 2] = number * 5 % 256
    side = min(width, height) // 4
    left = (number * 3) % (width - side)
    picture[4 : 4 + side, left : left + side] = (255, 255, 0)
    return picture


def make_clip(
    path: Path,
    num_frames: int = 30,
    fps: Fraction | int = 30,
    size: tuple[int, int] = (64, 48),
    *,
    codec: str = "libx264",
    codec_options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    gop: int = 12,
    pixels: str = "yuv420p",
    audio: bool = True,
    rotation: int = 0,
) -> Path:
    """Encode `num_frames` pictures of (width, height) `size`, with a silent AAC track where `audio`."""
    rate = Fraction(fps)
    with av.open(str(path), "w", options=container_options or {}) as container:
        video = container.add_stream(codec, rate=rate, options=codec_options or {})
        video.width, video.height, video.pix_fmt, video.gop_size = *size, pixels, gop
        if rotation:
            video.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=RATE, layout="mono") if audio else None
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(i, *size))
            frame.pts, frame.time_base = (i if pts is None else pts[i]), 1 / rate
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound is not None:
            _mux_silence(container, sound, num_frames / float(rate))
    return path


def make_audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        _mux_silence(container, container.add_stream("aac", rate=RATE, layout="mono"), 0.5)
    return path


def _mux_silence(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    samples = np.zeros((1, max(1024, int(seconds * RATE))), np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate, frame.pts = RATE, 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def make_gif(path: Path, num_frames: int = 8) -> Path:
    return make_clip(path, num_frames, 10, codec="gif", pixels="rgb8", audio=False)


def make_truncated(path: Path, share: float = 0.6) -> Path:
    """An mp4 with its index in front and the last part of the data missing, as a broken download leaves it."""
    make_clip(path, container_options={"movflags": "faststart"}, audio=False)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def cut_beginning(path: Path, seconds: float) -> Path:
    """Move an mp4's edit list, so that players start `seconds` later."""
    with av.open(str(path)) as container:
        ticks = int(seconds / container.streams.video[0].time_base)
    data = bytearray(path.read_bytes())
    start = data.index(b"elst") + 12  # after the name, version and flags, and the count
    duration, media_time = struct.unpack(">Ii", data[start : start + 8])
    data[start : start + 8] = struct.pack(">Ii", duration, media_time + ticks)
    path.write_bytes(data)
    return path


def true_frames(path: Path) -> np.ndarray:
    """All frames in display order, upright: decoded one after another, which every container allows."""
    with av.open(str(path)) as container:
        return np.stack(
            [
                np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
                for frame in container.decode(video=0)
            ]
        )
