"""Decoding for extraction: frames on a grid of seconds, sound, and the pool of processes that does it."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from src.clip import Clip, Request, Unusable
from src.data.annotation import VideoRecord
from src.data.clip_pool import CRASHED, decode_all
from src.data.clips import ClipDecoder, frame_grid, short_side_size
from tests.clips import make_clip, make_truncated, true_frames
from tests.odd_decoder import odd_decode

# ----------------------------------------------------------------------------- frames


@pytest.mark.parametrize(
    ("num_frames", "fps", "request_", "expected"),
    [
        (30, 10.0, Request(fps=1.0), [5, 15, 25]),
        (34, 10.0, Request(fps=1.0), [5, 15, 25]),
        (36, 10.0, Request(fps=1.0), [5, 15, 25, 35]),
        (3, 10.0, Request(fps=1.0), [2]),
        (30, 10.0, Request(fps=5.0), list(range(1, 30, 2))),
        (5, 2.0, Request(fps=3.0), [0, 1, 2, 3, 4]),
        (4, 10.0, Request(fps=None), [0, 1, 2, 3]),
        (100, 10.0, Request(fps=1.0, max_frames=2), [25, 75]),
        (100, 10.0, Request(fps=1.0, max_frames=10), list(range(5, 100, 10))),
    ],
)
def test_frames_lie_in_the_middle_of_equal_times(
    num_frames: int, fps: float, request_: Request, expected: list[int]
) -> None:
    assert frame_grid(num_frames, fps, request_) == expected


def test_the_grid_of_a_segment_starts_with_it() -> None:
    assert frame_grid(100, 10.0, Request(fps=1.0), start=40, stop=60) == [45, 55]


def test_sides_are_truncated_as_torchvision_does() -> None:
    assert short_side_size(240, 427, 224) == (224, 398)
    assert short_side_size(427, 240, 224) == (398, 224)
    assert short_side_size(427, 240, None) == (427, 240)


def test_decoded_frames_are_those_of_the_file(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 30, 10, audio=False)
    record = VideoRecord("a", path, start_s=1.0, end_s=3.0)
    clip = ClipDecoder("frames", Request(fps=2.0))(record)
    assert isinstance(clip, Clip)
    assert clip.frame_indices == (12, 17, 22, 27)
    assert clip.fps == 10
    assert clip.size_hw == (48, 64)
    assert np.array_equal(clip.frames_THWC, true_frames(path)[[12, 17, 22, 27]])
    small = ClipDecoder("frames", Request(fps=2.0, short_side=24, max_frames=2))(record)
    assert isinstance(small, Clip)
    assert small.frames_THWC is not None
    assert small.frames_THWC.shape == (2, 24, 32, 3)
    assert small.size_hw == (48, 64)


def test_chunks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = VideoRecord("a", make_clip(tmp_path / "a.mp4", 30, 10, audio=False))
    decode = ClipDecoder("frames", Request(fps=None, short_side=32))
    whole = decode(record)
    monkeypatch.setattr("src.data.clips._CHUNK_BYTES", 7 * 48 * 64 * 3)
    parts = decode(record)
    assert isinstance(whole, Clip)
    assert isinstance(parts, Clip)
    assert np.array_equal(whole.frames_THWC, parts.frames_THWC)


def test_unusable_files_say_why(tmp_path: Path) -> None:
    decode = ClipDecoder("frames", Request())
    broken = make_truncated(tmp_path / "truncated.mp4", share=0.3)
    assert decode(VideoRecord("a", tmp_path / "a.mp4")) == Unusable("a", "file not found", failed=True)
    assert decode(VideoRecord("a")) == Unusable("a", "the data set knows no file of it", failed=True)
    truncated = decode(VideoRecord("a", broken))
    assert isinstance(truncated, Unusable)
    assert truncated.reason.startswith("truncated: ")
    outside = decode(VideoRecord("a", make_clip(tmp_path / "b.mp4", 10, 10), start_s=5.0))
    assert isinstance(outside, Unusable)
    assert "found a segment from 5.0 s" in outside.reason


# ----------------------------------------------------------------------------- sound


def make_tone(path: Path, seconds: float = 2.0, rate: int = 8000) -> Path:
    """A wav file: left channel a sine, right channel its half."""
    times = np.arange(int(seconds * rate)) / rate
    left = np.sin(2 * np.pi * 440 * times).astype(np.float32) * 0.5
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="stereo")
        samples = (np.stack([left, left / 2], axis=1) * 32767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_sound_is_averaged_resampled_and_cut(tmp_path: Path) -> None:
    path = make_tone(tmp_path / "a.wav")
    mono = ClipDecoder("audio", Request())(VideoRecord("a", path))
    assert isinstance(mono, Clip)
    assert mono.wave_CN is not None
    assert mono.wave_CN.shape == (1, 16000)
    assert mono.wave_CN.dtype == np.float32
    assert np.abs(mono.wave_CN).max() == pytest.approx(0.5 * 0.75, abs=1e-3)  # the mean of both channels, not louder
    part = ClipDecoder("audio", Request(sample_rate=4000, mono=False))(VideoRecord("a", path, start_s=0.5, end_s=1.5))
    assert isinstance(part, Clip)
    assert part.wave_CN is not None
    assert part.wave_CN.shape == (2, 4000)
    assert part.sample_rate == 4000
    expected = 0.5 * np.sin(2 * np.pi * 440 * (0.5 + np.arange(4000) / 4000))
    assert np.abs(part.wave_CN[0, 50:-50] - expected[50:-50]).max() < 0.02


def test_no_sound_is_missing_and_no_failure(tmp_path: Path) -> None:
    decode = ClipDecoder("audio", Request())
    silent = make_clip(tmp_path / "silent.mp4", 5, 10, audio=False)
    assert decode(VideoRecord("a", silent)) == Unusable("a", "no audio", failed=False)
    late = make_clip(tmp_path / "late.mp4", 5, 10)
    assert decode(VideoRecord("a", late, start_s=60.0)) == Unusable("a", "no audio", failed=False)
    (tmp_path / "text.mp4").write_text("no video")
    text = decode(VideoRecord("a", tmp_path / "text.mp4"))
    assert isinstance(text, Unusable)
    assert text.failed


def test_sound_that_takes_too_long_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.data.clips._decode_audio", lambda path, request, stop: stop.wait(30))
    path = make_clip(tmp_path / "a.mp4", 5, 10)
    late = ClipDecoder("audio", Request(), timeout_s=0.1)(VideoRecord("a", path))
    assert late == Unusable("a", "no answer from the decoder within 0.1 s", failed=True)


# ----------------------------------------------------------------------------- pool


def test_a_crash_is_listed_and_the_order_is_kept() -> None:
    ids = [str(i) for i in range(12)]
    ids[5:5] = ["deadly"]
    results = list(decode_all(map(VideoRecord, ids), odd_decode, workers=2))
    assert [result.id for result in results] == ids
    assert results[5] == Unusable("deadly", CRASHED, failed=True)
    assert all(isinstance(result, Clip) for result in results if result.id != "deadly")


def test_without_workers_it_decodes_here() -> None:
    results = decode_all(map(VideoRecord, "012"), lambda record: Clip(record.id, text=str(os.getpid())), workers=0)
    assert [result.id for result in results] == ["0", "1", "2"]
