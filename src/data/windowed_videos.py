"""The videos of an evaluation part as windows: several frame samples of each, shifted against each other.

Frames are decoded anew, in the order of the file and a few at a time: no cache holds them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from src.batch import FrameSpec, VideoBatch, WindowSpec
from src.data.annotation import VideoRecord
from src.data.datasets import Frames, FrameSource, VideoCollate, VideoItem
from src.data.sampling import frozen_indices, segment_frames
from src.data.sliding_window import window_starts
from src.data.splits import SplitPart
from src.data.transforms import to_square
from src.data.video import Backend, Problem, VideoError, open_video
from src.errors import UserError

READ = 32  # frames of a video that are in memory at their full size


def offsets(num_frames: int, length: int, windows: WindowSpec) -> list[int]:
    """Offsets of a video's windows, at most `windows.most` of them."""
    starts = window_starts(num_frames, length, windows.stride, windows.count)
    if windows.most is None or len(starts) <= windows.most:
        return starts
    return [starts[n] for n in np.linspace(0, len(starts) - 1, num=windows.most, dtype=int)]


def load_windows(
    record: VideoRecord, spec: FrameSpec, windows: WindowSpec, backend: Backend = "auto", timeout_s: float = 30.0
) -> list[Frames]:
    """The windows of one video.

    Args:
        record: the video, or the segment of one.
        spec: size of the frames and their number in a window; its sampling rule does not count.
        windows: how they are shifted.
        backend: decoder.
        timeout_s: time limit of the file, seconds.

    Raises:
        VideoError: it cannot be read.
    """
    if record.path is None:
        raise VideoError(record.id, "the annotation names no file")
    with open_video(record.path, backend, timeout_s) as reader:
        try:
            start, stop = segment_frames(len(reader), reader.fps, (record.start_s, record.end_s))
        except UserError as error:
            raise VideoError(record.path, str(error)) from error
        length = stop - start
        samples = [
            frozen_indices(spec.num_frames, length, offset) for offset in offsets(spec.num_frames, length, windows)
        ]
        wanted = sorted({start + index for sample in samples for index in sample})
        pieces = [to_square(reader.read(wanted[n : n + READ]), spec) for n in range(0, len(wanted), READ)]
    squares_NCHW = np.concatenate(pieces)
    place = {index: n for n, index in enumerate(wanted)}
    found = []
    for sample in samples:
        frames_TCHW = np.zeros((spec.num_frames, *squares_NCHW.shape[1:]), dtype=np.uint8)
        frames_TCHW[: len(sample)] = squares_NCHW[[place[start + index] for index in sample]]
        found.append(Frames(frames_TCHW, len(sample)))
    return found


class WindowedVideos(Dataset[list[VideoItem] | None]):
    """The windows of each video of an evaluation part; None for a video that cannot be read.

    Args:
        part: whose videos.
        source: says how they are decoded, and is told which cannot be.
        windows: how they are shifted.
    """

    def __init__(self, part: SplitPart, source: FrameSource, windows: WindowSpec) -> None:
        self.part = part
        self.source = source
        self.windows = windows

    def __len__(self) -> int:
        return len(self.part.videos)

    def __getitem__(self, index: int) -> list[VideoItem] | None:
        record, source = self.part.videos[index], self.source
        if source.spec is None:
            raise UserError("windows need a model that reads frames, found one that reads none; drop the windows")
        try:
            frames = load_windows(record, source.spec, self.windows, source.backend, source.timeout_s)
        except VideoError as error:
            source.report(Problem(record.id, str(record.path), error.reason))
            return None
        return [VideoItem(index, window) for window in frames]


class WindowCollate:
    """The windows of videos to a `VideoBatch`, one a row; None when no video of the batch is readable."""

    def __init__(self, collate: VideoCollate) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[list[VideoItem] | None]) -> VideoBatch | None:
        return self.collate([window for video in items if video is not None for window in video])
