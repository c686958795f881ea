"""Which frames of a video a model sees: pure functions from a frame count to sorted frame indices.

Five rules, chosen by `FrameSpec.sampling`; n is the number of frames of the file (or segment), F `num_frames`:

| rule | evaluation | training (`rng` given) |
|---|---|---|
| uniform | middle frame of each of min(F, n) equal intervals | any frame of each interval |
| clip2video | the 5 fps JPEG folder CLIP2Video reads, every `framerate`-th file, F of them | interior ones jittered |
| clip4clip | `framerate` frames of every second, then F of them by `position` | the same |
| frozen | middle frame of each of min(F, n) equal intervals | random frame, never an interval's last one |
| internvideo | every round(fps / `framerate`)-th frame, then F of them spread evenly | the same |

Indices count decoded frames in display order, so on variable-frame-rate files they are spread over frames, not
over time. They never decrease; only `clip2video` repeats one, where the file has fewer than 5 frames a second.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from src.batch import FrameSpec
from src.errors import UserError

CLIP2VIDEO_EXTRACTION_FPS = 5.0

Segment = tuple[float | None, float | None]


def frame_indices(
    num_frames_in_file: int,
    fps: float,
    spec: FrameSpec,
    rng: np.random.Generator | None = None,
    segment: Segment = (None, None),
) -> list[int]:
    """Indices of the frames that `spec` asks for, at most `spec.num_frames`.

    Args:
        num_frames_in_file: frames the decoder will return, at least 1.
        fps: average frames per second of the file.
        spec: the rule and its numbers.
        rng: given in training, None in evaluation (no randomness).
        segment: start and end in seconds; None = from the beginning / to the end.

    Raises:
        UserError: for a file without frames, or a segment that starts behind the last frame.
    """
    if num_frames_in_file < 1:
        raise UserError("found a video with 0 frames, expected at least 1; remove it from the annotation")
    check_spec(spec)
    start, stop = segment_frames(num_frames_in_file, fps, segment)
    if spec.sampling == "clip4clip":
        seconds = None if segment == (None, None) else clip4clip_seconds(segment, num_frames_in_file, fps)
        picked = clip4clip_picks(num_frames_in_file, fps, spec.framerate, seconds) or [start]
        return clip4clip_slice(picked, spec.num_frames, spec.position)
    if spec.sampling == "internvideo":
        picked = internvideo_picks(num_frames_in_file, fps, spec.framerate, segment)
        return clip4clip_slice(picked, spec.num_frames, position=2)
    count = stop - start
    if spec.sampling == "clip2video":
        jitter = None if rng is None else np.random.RandomState(int(rng.integers(2**32)))
        grid = extraction_grid(count, fps)
        # A clip with fewer extracted files than the stride has no frame upstream; it keeps its first one here.
        positions = clip2video_positions(len(grid), min(spec.framerate, len(grid)), spec.num_frames, jitter)
        local = [grid[position] for position in positions]
    elif spec.sampling == "frozen":
        choose = None if rng is None else (lambda candidates: int(rng.integers(candidates.start, candidates.stop)))
        local = frozen_indices(spec.num_frames, count, choose=choose)
    else:
        local = uniform_indices(spec.num_frames, count, rng)
    return [start + index for index in local]


def check_spec(spec: FrameSpec) -> None:
    """Raise UserError for numbers that no rule can use."""
    if spec.num_frames < 1:
        raise UserError(f"found num_frames={spec.num_frames}, expected at least 1; set model.num_frames=12")
    if spec.framerate < (0 if spec.sampling == "clip4clip" else 1):
        raise UserError(f"found framerate={spec.framerate} for {spec.sampling} sampling, expected 1 or more")


def segment_frames(num_frames: int, fps: float, segment: Segment) -> tuple[int, int]:
    """Half-open range of frame indices of a segment in seconds; never empty.

    Raises:
        UserError: when the segment is empty or starts after the last frame.
    """
    start_s, end_s = segment
    start = 0 if start_s is None else max(0, math.floor(start_s * fps))
    stop = num_frames if end_s is None else min(num_frames, math.ceil(end_s * fps))
    if start_s is not None and end_s is not None and end_s <= start_s:
        raise UserError(f"found a segment from {start_s} s to {end_s} s, expected the end behind the start")
    if start >= num_frames or stop < 1:
        raise UserError(
            f"found a segment from {start_s or 0} s to {end_s} s in a video of {num_frames / fps:.2f} s; "
            "correct the segment in the annotation"
        )
    return start, max(stop, start + 1)


def intervals(num_frames: int, length: int) -> list[tuple[int, int]]:
    """Half-open intervals [lo, hi) that cut `length` frames into min(num_frames, length) parts, none of them empty.

    Source: m-bain/frozen-in-time, base/base_dataset.py sample_frames.
    """
    edges = np.linspace(0, length, num=min(num_frames, length) + 1).astype(int).tolist()
    return list(itertools.pairwise(edges))


def uniform_indices(num_frames: int, length: int, rng: np.random.Generator | None = None) -> list[int]:
    """The middle frame of each interval; with `rng` any frame of the interval."""
    if rng is None:
        return [(lo + hi - 1) // 2 for lo, hi in intervals(num_frames, length)]
    return [int(rng.integers(lo, hi)) for lo, hi in intervals(num_frames, length)]


def frozen_indices(
    num_frames: int,
    length: int,
    fix_start: int | None = None,
    choose: Callable[[range], int] | None = None,
) -> list[int]:
    """Frames as Frozen in Time and TextVR pick them.

    Args:
        num_frames: F.
        length: frames of the video.
        fix_start: offset added to each interval's first frame (sliding-window test); may pass the end of the video,
            where it is cut to the last frame.
        choose: draws one of a range of candidates (`random.choice` reproduces the reference); None = interval middle.

    Source: m-bain/frozen-in-time, base/base_dataset.py sample_frames.
    Deviates: an interval of one frame has no candidate upstream (IndexError, the video is lost); here its frame is
        taken. `fix_start` past the end is not cut upstream.
    """
    parts = intervals(num_frames, length)
    if choose is not None:
        return [choose(range(lo, max(lo + 1, hi - 1))) for lo, hi in parts]
    if fix_start is not None:
        return [min(lo + fix_start, length - 1) for lo, _ in parts]
    return [(lo + hi - 1) // 2 for lo, hi in parts]


def clip2video_positions(
    num_files: int,
    stride: int,
    max_frames: int,
    rng: np.random.RandomState | None = None,
) -> list[int]:
    """Positions in the name-sorted frame folder that CLIP2Video reads; empty when num_files < stride.

    Args:
        num_files: extracted frames.
        stride: `feature_framerate` of the scripts, which is a stride and not a rate.
        max_frames: F.
        rng: training jitter; the legacy generator, because the published order of draws depends on it.

    Source: CryhanFang/CLIP2Video, dataloaders/dataloader_msrvtt_frame.py.
    """
    base = np.linspace(0, num_files - 1, num_files // stride, dtype=int)
    if len(base) <= max_frames:
        return base.tolist()
    picked = np.linspace(0, len(base) - 1, max_frames, dtype=int)
    if rng is not None and max_frames > 1:
        step = int(picked[1] - picked[0]) // 2
        if step > 2:
            picked[1:-1] += rng.randint(-step, step, size=max_frames - 2)
    return base[picked].tolist()


def extraction_grid(num_frames: int, fps: float, rate: float = CLIP2VIDEO_EXTRACTION_FPS) -> list[int]:
    """Source frame of every image that `ffmpeg -i video -r <rate> %08d.jpg` writes, for a constant frame rate.

    ffmpeg compares each frame's time with the next output slot: more than 1.1 slots late and it is dropped, more than
    1.1 early and the slots between are filled with it. That writes frame 1 directly after frame 0 and then the
    *last* frame of every slot (30 fps: 0, 1, 5, 11, 17, …), which the plain grid 0, 6, 12, … would miss.

    Source: video_sync_process of fftools (constant-rate branch), which the image2 muxer selects.
    """
    slots_per_frame = rate / fps
    grid: list[int] = []
    for index in range(num_frames):
        delta = index * slots_per_frame - len(grid) + slots_per_frame
        if delta > 1.1:
            grid += [index] * round(delta)
        elif delta >= -1.1:
            grid.append(index)
    return grid


def clip4clip_seconds(segment: Segment, num_frames: int, fps: float) -> tuple[int, int]:
    """Whole seconds (both inclusive) that CLIP4Clip's loaders hand to the extractor for a segment."""
    start_s, end_s = segment
    end = num_frames / fps if end_s is None else end_s
    return math.floor(start_s or 0), math.ceil(end)


def clip4clip_picks(
    num_frames: int,
    fps: float,
    framerate: int,
    seconds: tuple[int, int] | None = None,
) -> list[int]:
    """Frame numbers that CLIP4Clip's extractor reads, before any limit.

    Args:
        num_frames: frames of the file; reading stops at the first number behind the last one.
        fps: as the container says; truncated to an integer, so that 29.97 drifts by one frame in 30 s.
        framerate: frames per second; 0 = all.
        seconds: first and last second, both inclusive; None = all.

    Source: ArrowLuo/CLIP4Clip, dataloaders/rawvideo_util.py video_to_tensor.
    Deviates: fewer frames a second than `framerate` is an assertion upstream; here all of them are taken, and a
        rate below 1 fps counts as 1.
    """
    whole_fps = max(1, int(fps))
    duration = math.ceil(num_frames / whole_fps)
    first, last = (0, duration) if seconds is None else (seconds[0], min(seconds[1], duration))
    interval = max(1, whole_fps // framerate) if framerate > 0 else 1
    offsets = list(range(0, whole_fps, interval))[: framerate or whole_fps]
    picked: list[int] = []
    for second in range(first, last + 1):
        for offset in offsets:
            index = second * whole_fps + offset
            if index >= num_frames:
                return picked
            picked.append(index)
    return picked


def internvideo_picks(num_frames: int, fps: float, framerate: int, segment: Segment = (None, None)) -> list[int]:
    """Frame numbers that InternVideo's decord loader chooses from (MSR-VTT, LSMDC, DiDeMo, VATEX), before any limit.

    Its MSVD and ActivityNet loaders read as CLIP4Clip does (`clip4clip_picks`).

    Args:
        num_frames: frames of the file.
        fps: average frames per second.
        framerate: frames wanted per second, at least 1.
        segment: start and end in seconds; None = from the beginning / to the end. Empty when it starts behind the file.

    Source: OpenGVLab/InternVideo@3965eef InternVideo1/Downstream/Video-Text-Retrieval (decord reader).
    Deviates: a file with less than half as many frames a second as `framerate` is an error upstream (stride 0); here
        all its frames are taken.
    """
    start_s, end_s = segment
    first = 0 if start_s is None else int(start_s * fps)
    last = num_frames - 1 if end_s is None else int(min(end_s * fps, num_frames - 1))
    return list(range(first, last + 1, max(1, round(fps / framerate))))


def clip4clip_slice(picked: Sequence[int], max_frames: int, position: Literal[0, 1, 2]) -> list[int]:
    """The part of a long list that survives: 0 head, 1 tail, 2 spread evenly from first to last."""
    if len(picked) <= max_frames:
        return list(picked)
    if position == 0:
        return list(picked[:max_frames])
    if position == 1:
        return list(picked[-max_frames:])
    return [picked[i] for i in np.linspace(0, len(picked) - 1, num=max_frames, dtype=int)]
