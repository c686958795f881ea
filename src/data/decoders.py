"""The three decoding libraries behind one small interface; `src.data.video` adds time limits and file names.

Every decoder returns the same pixels for the same indices: frames are counted in display order, rotated as the
container says. decord is fastest to drive but trusts that the packets of a file lie in an order that many files do
not have; `Scan` finds out from the packets, without decoding, and PyAV reads what decord would get wrong:

- no time stamps (avi, gif): decord seeks to the wrong frames and returns them without an error;
- a key frame that is decoded before frames shown earlier (open GOP, common in HEVC and MPEG-4 with B-frames):
  decord counts it at its decoding position, so everything behind a seek is off by some frames;
- edit lists that cut the beginning, fragmented mp4 and MPEG-TS: decord's frame 0 is not the first one shown.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any, Protocol

import numpy as np

# Files with this share of frames fewer than packets are read up to the last one; more missing is a broken file.
TOLERATED_SHORTFALL = 0.05
# A seek flushes the decoder, which costs about as much as decoding a few frames.
SEEK_GAIN_FRAMES = 8
INDEXED_CONTAINERS = {"mov", "mp4", "matroska", "webm"}


class DecodeError(Exception):
    """Why a file cannot be read; `src.data.video` adds which file."""


@dataclass(frozen=True)
class Scan:
    """What the packets of a video stream say, before anything is decoded.

    Attributes:
        num_frames: packets that are shown.
        fps: average rate.
        pts: presentation times in display order; empty when packets have none or repeat them.
        keys: display positions of the key frames, for seeking; empty with `pts`.
        untrusted: why decord would return wrong frames; None when it can be trusted.
    """

    num_frames: int
    fps: float
    pts: tuple[int, ...]
    keys: tuple[int, ...]
    untrusted: str | None


class Decoder(Protocol):
    """One open file. Not thread-safe, and never to be used in another process than the one that opened it."""

    name: str
    num_frames: int
    fps: float

    def read(self, indices: Sequence[int], stop: Event) -> np.ndarray:
        """Frames at strictly increasing indices, uint8 (n, H, W, 3) RGB; gives up soon after `stop` is set."""
        ...

    def close(self) -> None: ...


def scan(path: Path) -> Scan:
    """Read the packets (1-3 ms for a 10 s clip) and judge them.

    Raises:
        DecodeError: no video stream, no frames, or the file ends before its header says.
    """
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                kinds = sorted({stream.type for stream in container.streams})
                raise DecodeError(f"no video stream (found {', '.join(kinds) or 'no stream'})")
            stream = container.streams.video[0]
            formats = set(container.format.name.split(","))
            packets = [packet for packet in container.demux(stream) if packet.size]
            _check_complete(path, stream, packets)
            return _judge(packets, formats, stream)
    except (av.error.FFmpegError, OSError) as error:
        raise DecodeError(f"not a readable video ({error.strerror or error})") from error


def _check_complete(path: Path, stream: Any, packets: Sequence[Any]) -> None:
    entries = stream.index_entries
    end = max((entry.pos + entry.size for entry in entries), default=0)
    size = path.stat().st_size
    whole = sum(not packet.is_corrupt for packet in packets)
    if end > size or whole < len(packets):
        promised = stream.frames or len(entries)
        raise DecodeError(f"truncated: {whole} of {promised} frames lie within the file's {size} bytes")
    if not packets:
        raise DecodeError("0 frames in the video stream")


def _judge(packets: Sequence[Any], formats: set[str], stream: Any) -> Scan:
    shown = [packet for packet in packets if not packet.is_discard]
    stamps = [packet.pts for packet in shown]
    stamped = None not in stamps and len(set(stamps)) == len(stamps)
    pts = sorted(stamps) if stamped else []
    fps = _fps(stream, pts, len(shown))
    if not stamped:
        return Scan(len(shown), fps, (), (), "its packets have no time stamps")
    if not shown:
        raise DecodeError("0 frames in the video stream: its edit list shows none")
    positions = {value: position for position, value in enumerate(pts)}
    keys = [(i, positions[p.pts], p) for i, p in enumerate(shown) if p.is_keyframe]
    untrusted = None
    if not formats & INDEXED_CONTAINERS:
        untrusted = f"decord does not seek exactly in {'/'.join(sorted(formats))}"
    elif len(shown) < len(packets) or pts[0] < 0:
        untrusted = "an edit list cuts its beginning"
    elif not keys or keys[0][0] != 0 or any(order != position for order, position, _ in keys):
        untrusted = "key frames are decoded before frames that are shown earlier (open GOP)"
    elif pts[0] > 0 and any(b.dts is None or b.dts <= a.pts for (_, _, a), (_, _, b) in itertools.pairwise(keys)):
        untrusted = "a key frame is decoded before the previous one is shown, and the first is not shown at time 0"
    return Scan(len(shown), fps, tuple(pts), tuple(position for _, position, _ in keys), untrusted)


def _fps(stream: Any, pts: Sequence[int], num_frames: int) -> float:
    """The container's average rate, unless its time stamps tell clearly otherwise (variable frame rate)."""
    stated = float(stream.average_rate or stream.guessed_rate or 0)
    if len(pts) < 2 or not stream.time_base:
        return stated or 25.0
    measured = (num_frames - 1) / float((pts[-1] - pts[0]) * stream.time_base)
    return stated if stated and abs(stated - measured) < 0.05 * measured else measured


class PyavDecoder:
    """PyAV: exact for every file that FFmpeg reads, because each frame is known by its time stamp."""

    name = "pyav"

    def __init__(self, path: Path, found: Scan) -> None:
        self.num_frames = found.num_frames
        self.fps = found.fps
        self._path = path
        self._scan = found
        self._container: Any = None

    def read(self, indices: Sequence[int], stop: Event) -> np.ndarray:
        import av

        try:
            pictures = self._pick(indices, stop)
        except (av.error.FFmpegError, OSError) as error:
            raise DecodeError(f"decoding failed ({error.strerror or error})") from error
        finally:
            self.close()
        return np.stack(pictures)

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def _pick(self, indices: Sequence[int], stop: Event) -> list[np.ndarray]:
        found = self._seeking(indices, stop) if self._scan.pts else None
        return found if found is not None else self._sequential(indices, stop)

    def _open(self) -> Any:
        import av

        self.close()
        self._container = av.open(str(self._path))
        stream = self._container.streams.video[0]
        stream.thread_count = 1
        return stream

    def _seeking(self, indices: Sequence[int], stop: Event) -> list[np.ndarray] | None:
        """Jump over whole groups of pictures; None where a seek landed behind the frame it was meant for."""
        stream = self._open()
        place = {pts: position for position, pts in enumerate(self._scan.pts)}
        pictures: list[np.ndarray] = []
        at = -1
        frames = self._container.decode(stream)
        for index in indices:
            key = max((k for k in self._scan.keys if k <= index), default=0)
            if key > at + SEEK_GAIN_FRAMES:
                self._container.seek(self._scan.pts[key], stream=stream)
                frames = self._container.decode(stream)
            for frame in frames:
                _give_up(stop)
                at = place.get(frame.pts, at)
                if at >= index:
                    break
            if at != index:
                return None
            pictures.append(_picture(frame, pictures))
        return pictures

    def _sequential(self, indices: Sequence[int], stop: Event) -> list[np.ndarray]:
        stream = self._open()
        wanted = iter(indices)
        pictures: list[np.ndarray] = []
        target = next(wanted)
        last, count = None, 0
        for frame in self._container.decode(stream):
            _give_up(stop)
            if count == target:
                pictures.append(_picture(frame, pictures))
                target = next(wanted, -1)
                if target < 0:
                    return pictures
            last, count = frame, count + 1
        if last is None or count < (1 - TOLERATED_SHORTFALL) * self.num_frames:
            raise DecodeError(f"{count} of {self.num_frames} frames can be decoded")
        # Some packets show nothing (hidden reference frames): the indices behind the end become the last frame.
        missing = len(indices) - len(pictures)
        return pictures + [_picture(last, pictures)] * missing


def _give_up(stop: Event) -> None:
    if stop.is_set():
        raise DecodeError("abandoned")


def _picture(frame: Any, before: Sequence[np.ndarray]) -> np.ndarray:
    """One frame as RGB, upright, of the size of the frames `before` it (streams may change size midway)."""
    turns = round(frame.rotation / 90) % 4
    picture = np.rot90(frame.to_ndarray(format="rgb24"), turns)
    if before and before[0].shape != picture.shape:
        height, width = before[0].shape[:2]
        if turns % 2:
            height, width = width, height
        picture = np.rot90(frame.to_ndarray(format="rgb24", width=width, height=height), turns)
    return picture


class DecordDecoder:
    """decord, one thread, for the files whose packets lie in the order it expects."""

    name = "decord"

    def __init__(self, path: Path, found: Scan) -> None:
        if found.untrusted:
            raise DecodeError(f"decord would return wrong frames: {found.untrusted}; use backend=auto or backend=pyav")
        decord = import_decord()
        # decord raises its own error class, a RuntimeError or a bare Exception subclass, depending on the place.
        self._errors = (RuntimeError, decord.base.DECORDError)
        try:
            self._reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        except self._errors as error:
            raise DecodeError(f"decord cannot open it ({_last_line(error)})") from error
        self.num_frames = len(self._reader)
        if self.num_frames != found.num_frames:
            raise DecodeError(f"decord counts {self.num_frames} frames, the file has {found.num_frames}")
        self.fps = found.fps

    def read(self, indices: Sequence[int], stop: Event) -> np.ndarray:
        try:
            return self._reader.get_batch(list(indices)).asnumpy()
        except self._errors as error:
            raise DecodeError(f"decord failed ({_last_line(error)})") from error

    def close(self) -> None:
        self._reader = None


class TorchcodecDecoder:
    """torchcodec in its exact seek mode; needs the extra `torchcodec` and FFmpeg's shared libraries."""

    name = "torchcodec"

    def __init__(self, path: Path, found: Scan) -> None:
        from torchcodec.decoders import VideoDecoder

        try:
            self._decoder = VideoDecoder(
                str(path), dimension_order="NHWC", num_ffmpeg_threads=1, device="cpu", seek_mode="exact"
            )
        except (RuntimeError, ValueError) as error:
            raise DecodeError(f"torchcodec cannot open it ({_last_line(error)})") from error
        self.num_frames = len(self._decoder)
        self.fps = found.fps

    def read(self, indices: Sequence[int], stop: Event) -> np.ndarray:
        try:
            return self._decoder.get_frames_at(list(indices)).data.numpy()
        except (RuntimeError, IndexError) as error:
            raise DecodeError(f"torchcodec failed ({_last_line(error)})") from error

    def close(self) -> None:
        self._decoder = None


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][-200:] if lines else type(error).__name__


def import_decord() -> ModuleType:
    """Import decord as it needs to be: torch first, few retries at the end of a file, silent.

    Raises:
        ImportError: no wheel for this platform (macOS, arm64).
    """
    # Read once, when the library loads. With 256 it gives up on sound files of several seconds.
    os.environ.setdefault("DECORD_EOF_RETRY_MAX", "10240")
    import torch  # noqa: F401  (decord first makes torch crash: both bring their own OpenMP)

    decord = __import__("decord")
    decord.logging.set_level(decord.logging.QUIET)
    return decord
