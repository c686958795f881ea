"""Making one small constant-rate copy of a video: 3 frames per second, short side 224, H.264 in mp4 or mkv.

Decoding such a copy costs a fraction of decoding the original, and 3 frames per second are more than the published
recipes look at. PyAV brings its own FFmpeg, so no `ffmpeg` command is needed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from src.data.decoders import DecodeError, scan
from src.data.video import VideoError
from src.errors import UserError

VERSION = 1  # of the rules below; part of the fingerprint
TEMPORARY = ".part"  # ending of files being written
LONGEST_GAP_S = 3600.0  # repeating one frame for longer is a broken clock, not a slow video
# Audio codecs that are copied into the file as they are; others become AAC.
COPIED_AUDIO = {"aac", "mp3", "ac3", "eac3", "opus", "alac", "flac"}


@dataclass(frozen=True)
class TranscodeRecipe:
    """What decides the bytes of the copy, up to the version of the encoder.

    Attributes:
        rule: fixed = short side of `short_side` px whatever the orientation, every frame shown at its own time,
            unreadable files reported. upstream = as the published preprocessing: portrait videos are squashed to a
            width of `short_side` and a height of `short_side` * width / height, frames are picked as `ffmpeg -r`
            does (the second one right after the first, one or two more than the duration holds), and unreadable
            files are copied byte for byte.
        fps: frames per second of the copy.
        short_side: pixels, even.
        crf: quality of x264: 0 lossless, 23 its default, 51 worst.
        keyint: frames from key frame to key frame; small values make reading single frames cheap.
        preset: speed of x264.
        audio: copy = keep the first audio stream (audio experts need it), drop = video only, as the reference.

    Source: InternVideo@main `Downstream/Video-Text-Retrieval/preprocess/compress_video.py` (facts, not code).
    Deviates: `rule=fixed` mends the portrait rule and the timing; `rule=upstream` reproduces the reference, but both
        keep the folders of the source, which the reference flattens, so that equal names do not collide.
    """

    rule: Literal["fixed", "upstream"] = "fixed"
    fps: float = 3.0
    short_side: int = 224
    crf: int = 23
    keyint: int = 3
    preset: str = "veryfast"
    audio: Literal["drop", "copy"] = "drop"

    def __post_init__(self) -> None:
        if self.rule not in ("fixed", "upstream"):
            raise UserError(f"found rule {self.rule!r}, expected fixed or upstream; give task.rule=fixed")
        if self.audio not in ("drop", "copy"):
            raise UserError(f"found audio {self.audio!r}, expected drop or copy; give task.audio=drop")
        if self.short_side < 2 or self.short_side % 2:
            raise UserError(f"found short_side={self.short_side}, expected an even number; give task.short_side=224")
        if not 0 < self.fps <= 240 or not 0 <= self.crf <= 51 or self.keyint < 1:
            raise UserError(
                f"found fps={self.fps}, crf={self.crf}, keyint={self.keyint}, expected fps above 0, crf from 0 to 51, "
                "keyint of at least 1; mend task.fps, task.crf or task.keyint"
            )

    def facts(self) -> dict[str, Any]:
        return {"version": VERSION} | asdict(self)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Transcoded:
    """The copy: its size in bytes and px, its frames, and whether it is the unreadable source itself."""

    bytes: int
    width: int
    height: int
    frames: int
    copied: bool = False


class TimedFrame(NamedTuple):
    """A decoded frame, when it is shown and for how long (seconds)."""

    at_s: float
    lasts_s: float
    frame: Any


def target_size(width: int, height: int, recipe: TranscodeRecipe) -> tuple[int, int]:
    """(width, height) of the copy of an upright picture; both even."""
    side, aspect = recipe.short_side, width / height
    if aspect > 1:
        return _even(side * aspect), side
    return side, _even(side * aspect if recipe.rule == "upstream" else side / aspect)


def _even(length: float) -> int:
    return math.trunc(length / 2) * 2


def at_constant_rate(frames: Iterator[TimedFrame], fps: float) -> Iterator[tuple[Any, int]]:
    """Each frame with the number of times it is written: as often as a tick k / fps falls into its time."""
    ticks = 0
    shown: TimedFrame | None = None
    for frame in frames:
        if shown is not None:
            until = _ticks_before(frame.at_s, fps)
            yield shown.frame, max(0, until - ticks)
            ticks = max(ticks, until)
        shown = frame
    if shown is not None:
        yield shown.frame, max(int(ticks == 0), _ticks_before(shown.at_s + shown.lasts_s, fps) - ticks)


def _ticks_before(at_s: float, fps: float) -> int:
    return math.ceil(at_s * fps - 1e-6)


def as_ffmpeg(frames: Iterator[TimedFrame], fps: float) -> Iterator[tuple[Any, int]]:
    """Each frame with the number of times that `ffmpeg -r` writes it.

    A frame is dropped when it ends more than 1.1 ticks before the next tick and repeated when it ends more than 1.1
    ticks after it; between the two it is written, early or late. When a gap is filled, its first half shows the frame
    before it.
    """
    tick = 0
    before: Any = None
    for frame in frames:
        early = frame.at_s * fps - tick
        ahead = early + frame.lasts_s * fps
        early = 0.0 if early < 0 < ahead else early
        count = 0 if ahead < -1.1 else round(ahead) if ahead > 1.1 else 1
        repeated = min(count, round(early - 0.6)) if ahead > 1.1 and early > 1.1 and before is not None else 0
        if repeated:
            yield before, repeated
        yield frame.frame, count - repeated
        tick += count
        before = frame.frame


def transcode(source: Path, target: Path, recipe: TranscodeRecipe) -> Transcoded:
    """Write the copy; it is complete under its name or not there.

    Args:
        source: any file that FFmpeg reads.
        target: where the copy goes; its ending chooses the container (.mkv, .mov, else mp4). Its folder exists.
        recipe: what the copy is like.

    Raises:
        VideoError: the source cannot be read (`rule=fixed`), or not be encoded.
        OSError: the target cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}{TEMPORARY}")
    try:
        done = _write(source, temporary, recipe)
        _replace(temporary, target)
        return done
    finally:
        temporary.unlink(missing_ok=True)


def _replace(temporary: Path, target: Path) -> None:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(target)


def _write(source: Path, temporary: Path, recipe: TranscodeRecipe) -> Transcoded:
    import av

    try:
        if recipe.rule == "fixed":
            scan(source)  # finds truncated files, which decode without an error up to their end
        return _encode(source, temporary, recipe)
    except (av.error.FFmpegError, DecodeError, ValueError) as error:
        number = getattr(error, "errno", 0)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise OSError(number, os.strerror(number)) from error
        if recipe.rule == "upstream":
            shutil.copyfile(source, temporary)
            return Transcoded(temporary.stat().st_size, 0, 0, 0, copied=True)
        if isinstance(error, DecodeError):
            raise VideoError(source, str(error)) from error
        raise VideoError(source, f"cannot be transcoded ({getattr(error, 'strerror', None) or error})") from error


def _encode(source: Path, temporary: Path, recipe: TranscodeRecipe) -> Transcoded:
    import av

    suffix = temporary.name.split(".")[-3].lower()
    container_format = {"mkv": "matroska", "mov": "mov"}.get(suffix, "mp4")
    options = {} if container_format == "matroska" else {"movflags": "+faststart"}
    with ExitStack() as stack:
        reader = stack.enter_context(av.open(str(source)))
        if not reader.streams.video:
            raise DecodeError("no video stream")
        writer = stack.enter_context(av.open(str(temporary), "w", format=container_format, options=options))
        copy = _Copy(reader, writer, recipe)
        picks = (as_ffmpeg if recipe.rule == "upstream" else at_constant_rate)(copy.frames(), recipe.fps)
        for frame, count in picks:
            copy.show(frame, count)
        copy.finish()
    return Transcoded(temporary.stat().st_size, *copy.size, copy.shown)


class _Copy:
    """One file being read and its copy being written, stream by stream."""

    def __init__(self, reader: Any, writer: Any, recipe: TranscodeRecipe) -> None:
        self._reader, self._writer, self._recipe = reader, writer, recipe
        self._video_in = reader.streams.video[0]
        self._video_in.thread_count = 1
        self._rate = Fraction(recipe.fps).limit_denominator(1001)
        sounds = reader.streams.audio
        self._audio_in: Any = sounds[0] if sounds and recipe.audio == "copy" else None
        self._audio_out: Any = self._add_audio(writer) if self._audio_in is not None else None
        self._video_out: Any = None
        self._held: list[tuple[Any, float]] = []  # audio before the first picture: the file begins with all streams
        self.size = (0, 0)
        self.shown = 0

    def _add_audio(self, writer: Any) -> Any:
        if self._audio_in.codec_context.name in COPIED_AUDIO:
            return writer.add_stream_from_template(self._audio_in)
        return writer.add_stream("aac", rate=self._audio_in.codec_context.sample_rate)

    def frames(self) -> Iterator[TimedFrame]:
        """The video's frames in display order, on a clock that starts with the file; audio is passed on in between.

        Without other streams the clock starts with the first frame.
        """
        streams = [self._video_in] + ([self._audio_in] if self._audio_in is not None else [])
        start_s = (self._reader.start_time or 0) / 1e6 if self._has_company() else None
        default_s = 1 / float(self._video_in.guessed_rate or 25)
        end_s = 0.0
        for packet in self._reader.demux(streams):
            if packet.stream.type == "audio":
                self._pass_audio(packet, start_s or 0.0)
                continue
            for frame in self._decode(packet):
                at_s = end_s + (start_s or 0.0) if frame.pts is None else float(frame.pts * frame.time_base)
                start_s = at_s if start_s is None else start_s
                lasts_s = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else default_s
                if at_s - start_s > end_s + LONGEST_GAP_S:
                    raise DecodeError(f"its time stamps jump by {at_s - start_s - end_s:.0f} s")
                end_s = at_s - start_s + lasts_s
                yield TimedFrame(at_s - start_s, lasts_s, frame)

    def _has_company(self) -> bool:
        return self._audio_in is not None or (self._recipe.rule == "upstream" and len(self._reader.streams) > 1)

    def _decode(self, packet: Any) -> list[Any]:
        import av

        try:
            return packet.decode()
        except av.error.FFmpegError:
            if self._recipe.rule == "upstream":
                return []  # the ffmpeg command goes on as well
            raise

    def _pass_audio(self, packet: Any, start_s: float) -> None:
        if self._video_out is None:
            self._held.append((packet, start_s))
        elif self._audio_in.codec_context.name not in COPIED_AUDIO:
            for frame in packet.decode():
                if frame.pts is not None:
                    frame.pts = max(0, frame.pts - round(start_s / frame.time_base))
                self._writer.mux(self._audio_out.encode(frame))
        elif packet.dts is not None:
            shift = round(start_s / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = self._audio_out
            self._writer.mux(packet)

    def show(self, frame: Any, count: int) -> None:
        """Write the frame `count` times."""
        if count == 0:
            return
        turns = round(frame.rotation / 90) % 4
        if self._video_out is None:
            upright = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
            self._open_video(target_size(*upright, self._recipe))
        picture = _resized(frame, self.size, turns)
        picture.time_base = 1 / self._rate
        for _ in range(count):
            picture.pts = self.shown
            self._writer.mux(self._video_out.encode(picture))
            self.shown += 1

    def _open_video(self, size: tuple[int, int]) -> None:
        if min(size) < 2:
            raise DecodeError(f"{size[0]} x {size[1]} px would be left of it")
        recipe = self._recipe
        keyint = str(recipe.keyint)
        # Without B-frames every packet is shown in the order in which it is stored, which all decoders seek exactly.
        gop = {"g": keyint, "keyint_min": keyint, "sc_threshold": "0", "bf": "0"}
        options = {"crf": str(recipe.crf), "preset": recipe.preset} | gop
        stream = self._writer.add_stream("libx264", rate=self._rate, options=options)
        stream.width, stream.height = self.size = size
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        stream.codec_context.time_base = 1 / self._rate
        self._video_out = stream
        for packet, start_s in self._held:
            self._pass_audio(packet, start_s)
        self._held.clear()

    def finish(self) -> None:
        if self._video_out is None:
            raise DecodeError("no frame can be decoded")
        self._writer.mux(self._video_out.encode())
        if self._audio_in is not None and self._audio_in.codec_context.name not in COPIED_AUDIO:
            self._writer.mux(self._audio_out.encode())


def _resized(frame: Any, size: tuple[int, int], turns: int) -> Any:
    """The frame as yuv420p of (width, height) `size`, turned upright by `turns` quarter turns against the clock."""
    import av

    width, height = reversed(size) if turns % 2 else size
    small = frame.reformat(width=width, height=height, format="yuv420p", interpolation="BICUBIC")
    if not turns:
        # A frame of the decoder says how it was coded; the encoder would repeat its key frames.
        small.pict_type = av.video.frame.PictureType.NONE
        return small
    packed = small.to_ndarray()
    cut = (height * width, height * width * 5 // 4)
    planes = np.split(packed.ravel(), cut)
    shapes = ((height, width), (height // 2, width // 2), (height // 2, width // 2))
    turned = [np.rot90(plane.reshape(shape), turns).ravel() for plane, shape in zip(planes, shapes, strict=True)]
    return av.VideoFrame.from_ndarray(np.concatenate(turned).reshape(size[1] * 3 // 2, size[0]), format="yuv420p")
