"""Decoding one video for feature extraction: frames on a grid of seconds, or the waveform.

Unlike a model's frames (`src.data.sampling`), which are a fixed number per video, these follow the video's time.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src.clip import Clip, Medium, Request, Unusable
from src.data.annotation import VideoRecord
from src.data.sampling import segment_frames, uniform_indices
from src.data.video import Backend, VideoError, open_video
from src.errors import UserError

# Frames of the file's size that are held at once, before they are scaled down.
_CHUNK_BYTES = 256 * 2**20


@dataclass(frozen=True)
class ClipDecoder:
    """Decodes any video of a data set as one extractor wants it; travels to worker processes.

    Attributes:
        medium: "frames" or "audio".
        request: what the extractor wants.
        backend: video decoder (the sound is PyAV's).
        timeout_s: limit for one file, seconds; 0 = none.
    """

    medium: Medium
    request: Request
    backend: Backend = "auto"
    timeout_s: float = 60.0

    def __call__(self, record: VideoRecord) -> Clip | Unusable:
        """The clip, or why there is none; only mistakes that concern no single file are raised."""
        if record.path is None:
            return Unusable(record.id, "the data set knows no file of it", failed=True)
        read = read_frames if self.medium == "frames" else read_audio
        try:
            return read(record, record.path, self) or Unusable(record.id, "no audio", failed=False)
        except VideoError as error:
            return Unusable(record.id, error.reason, failed=True)
        except UserError as error:
            return Unusable(record.id, str(error), failed=True)


def frame_grid(num_frames: int, fps: float, request: Request, start: int = 0, stop: int | None = None) -> list[int]:
    """Indices of the frames that a request asks for.

    Args:
        num_frames: of the file.
        fps: of the file.
        request: the middle of every interval of 1/fps seconds, counted from the beginning of the segment; a file
            with fewer frames a second gives each of its frames once.
        start: first frame of the segment.
        stop: end of the segment (not included); None = the end of the file.

    Returns:
        Strictly increasing indices, at least one.
    """
    stop = num_frames if stop is None else stop
    count = stop - start
    if request.fps is None or request.fps >= fps:
        grid = list(range(start, stop))
    else:
        intervals = max(1, math.floor(count / fps * request.fps + 0.5))
        middles = ((k + 0.5) / request.fps * fps for k in range(intervals))
        grid = list(dict.fromkeys(start + min(int(middle), count - 1) for middle in middles))
    if request.max_frames is None or len(grid) <= request.max_frames:
        return grid
    return [grid[i] for i in uniform_indices(request.max_frames, len(grid))]


def read_frames(record: VideoRecord, path: Path, decoder: ClipDecoder) -> Clip:
    """Decode the frames of a video.

    Raises:
        VideoError: the file cannot be decoded, or not in time.
        UserError: the segment lies outside the file.
    """
    with open_video(path, decoder.backend, decoder.timeout_s) as reader:
        start, stop = segment_frames(len(reader), reader.fps, (record.start_s, record.end_s))
        indices = frame_grid(len(reader), reader.fps, decoder.request, start, stop)
        first = reader.read(indices[:1])
        height, width = first.shape[1:3]
        size = short_side_size(height, width, decoder.request.short_side)
        frames = np.empty((len(indices), *size, 3), np.uint8)
        per_chunk = max(1, _CHUNK_BYTES // first.nbytes)
        for at in range(0, len(indices), per_chunk):
            frames[at : at + per_chunk] = resized(reader.read(indices[at : at + per_chunk]), size)
        return Clip(record.id, path, frames, tuple(indices), reader.fps, (height, width), (start, stop))


def short_side_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Height and width after scaling the shorter side; the longer one is truncated, as torchvision does."""
    if short_side is None:
        return height, width
    if width <= height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)


def resized(frames_THWC: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Scale every frame with PIL's bicubic filter; frames of that size pass through."""
    if frames_THWC.shape[1:3] == size_hw:
        return frames_THWC
    height, width = size_hw
    return np.stack(
        [np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.BICUBIC)) for f in frames_THWC]
    )


def read_audio(record: VideoRecord, path: Path, decoder: ClipDecoder) -> Clip | None:
    """Decode the first sound track; None when there is none, or when it is empty.

    Raises:
        VideoError: the file cannot be decoded, or not in time.
    """
    if not path.is_file():
        raise VideoError(path, "file not found")
    wave, rate = _in_time(lambda stop: _decode_audio(path, decoder.request, stop), path, decoder.timeout_s)
    if wave is None:
        return None
    first = 0 if record.start_s is None else max(0, math.floor(record.start_s * rate))
    last = wave.shape[1] if record.end_s is None else math.ceil(record.end_s * rate)
    cut = wave[:, first:last]
    if cut.shape[1] == 0:
        return None
    if decoder.request.mono:
        cut = cut.mean(axis=0, dtype=np.float32, keepdims=True)
    return Clip(record.id, path, wave_CN=np.ascontiguousarray(cut), sample_rate=rate)


def _decode_audio(path: Path, request: Request, stop: threading.Event) -> tuple[np.ndarray | None, int]:
    """float32 (channels, samples) and their rate; sample 0 is the beginning of the file's time line."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                return None, 0
            stream = container.streams.audio[0]
            stream.codec_context.thread_count = 1
            rate = request.sample_rate or stream.rate
            # Channels stay apart: FFmpeg's own mix to mono is louder than their mean.
            resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate)
            lead = 0
            pieces: list[np.ndarray] = []
            for frame in itertools.chain(container.decode(stream), [None]):
                if stop.is_set():
                    raise VideoError(path, "abandoned")
                if frame is not None and not pieces and frame.time:
                    lead = round(max(frame.time, 0.0) * rate)
                pieces += [piece.to_ndarray() for piece in resampler.resample(frame)]
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(path, f"the sound cannot be decoded ({error.strerror or error})") from error
    if not pieces:
        return None, rate
    wave = np.concatenate(pieces, axis=1)
    return np.pad(wave, ((0, 0), (lead, 0))), rate


def _in_time(call: Callable[[threading.Event], Any], path: Path, limit_s: float) -> Any:
    """Run a call in a thread that is left behind when the time is over; see `src.data.video` for why."""
    if limit_s <= 0:
        return call(threading.Event())
    stop, answer = threading.Event(), list[Any]()

    def work() -> None:
        try:
            answer.append((call(stop), None))
        except BaseException as error:  # noqa: BLE001  (handed to the caller, who raises it)
            answer.append((None, error))

    thread = threading.Thread(target=work, name="audio-decoder", daemon=True)
    thread.start()
    thread.join(limit_s)
    if not answer:
        stop.set()
        raise VideoError(path, f"no answer from the decoder within {limit_s:g} s")
    result, error = answer[0]
    if error is not None:
        raise error
    return result
