"""Map-style data sets over one split part, and how their items become the batches of `src.batch`.

Training pairs one video with one caption; evaluation has two data sets, videos and captions, joined by id, so
that each video and each caption is encoded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from src.batch import FrameSpec, InputSpec, PairBatch, TextBatch, VideoBatch
from src.data.annotation import VideoRecord
from src.data.caption_tokens import CaptionTokens
from src.data.feature_source import FeatureSource, Keys
from src.data.frame_cache import FrameCache, load_frames, read_shape
from src.data.samplers import SampleKey
from src.data.splits import SplitPart
from src.data.teachers import TeacherSource
from src.data.transforms import to_training_square
from src.data.video import Backend, Problem, VideoError, VideoShape, append_problem, resolve_backend
from src.data.words import WordSource

CacheMode = Literal["none", "memory", "disk"]
TrainSamples = Literal["all_captions", "one_per_video"]


class Frames(NamedTuple):
    """uint8 frames (T, 3, S, S), T = the model's number of frames, of which the first `n_valid` are real."""

    frames_TCHW: np.ndarray
    n_valid: int


class FrameSource:
    """Loads the frames of one video, from the cache or the file, and reports the videos that it cannot read.

    Args:
        spec: frames that the model asks for; None for models without frames.
        backend: decoder.
        timeout_s: time limit per file, seconds.
        cache: "memory" keeps what was decoded, without jitter, in this process; "disk" reads `cache_dir`.
        cache_dir: folder written by `task=prepare`.
        problems_file: unreadable videos are appended here (workers share it); None = nowhere.
    """

    def __init__(
        self,
        spec: FrameSpec | None,
        *,
        backend: Backend = "auto",
        timeout_s: float = 30.0,
        cache: CacheMode = "none",
        cache_dir: Path | None = None,
        problems_file: Path | None = None,
    ) -> None:
        self.spec = spec
        self.backend = backend
        self.timeout_s = timeout_s
        self.cache = cache
        self.cache_dir = cache_dir
        self.problems_file = problems_file
        self.problems: dict[str, Problem] = {}
        self._memory: dict[str, Frames] = {}
        self._disk: FrameCache | None = None

    def __getstate__(self) -> dict[str, object]:
        # Decoded frames are too big to be sent to a worker; the disk cache maps its files anew there.
        return self.__dict__ | {"_memory": {}}

    def check(self) -> None:
        """Fail here, in the main process, for what would fail in every worker.

        Raises:
            UserError: the decoder is not installed, or the disk cache is missing or holds other frames.
        """
        if self.spec is not None:
            resolve_backend(self.backend)
            self._open_cache()

    def load(self, record: VideoRecord, rng: np.random.Generator | None = None) -> Frames | None:
        """Return the frames of one video, or None when it cannot be read.

        Args:
            record: the video.
            rng: given in training, where the sampling rule may jitter the frame positions, and frames may be changed.
        """
        if self.spec is None:
            return Frames(np.zeros((0, 3, 0, 0), dtype=np.uint8), 0)
        if record.id in self.problems:  # a broken file costs its time limit once, not once per epoch
            return None
        if record.id in self._memory:
            return self._changed(self._memory[record.id], rng)
        try:
            frames, n_valid = load_frames(
                record,
                self.spec,
                self.backend,
                self.timeout_s,
                cache=self._open_cache(),
                rng=None if self._keeps else rng,
            )
        except VideoError as error:
            self.report(Problem(record.id, str(record.path), error.reason))
            return None
        loaded = Frames(frames, n_valid)
        if self._keeps:
            self._memory[record.id] = loaded
            return self._changed(loaded, rng)
        return loaded

    def _changed(self, kept: Frames, rng: np.random.Generator | None) -> Frames:
        """What training makes of frames that are kept in memory, which evaluation sees as they are."""
        if self.spec is None or rng is None or self.spec.augment == "none":
            return kept
        frames_TCHW = np.zeros_like(kept.frames_TCHW)
        squares_THWC = kept.frames_TCHW[: kept.n_valid].transpose(0, 2, 3, 1)
        frames_TCHW[: kept.n_valid] = to_training_square(squares_THWC, self.spec, rng)
        return Frames(frames_TCHW, kept.n_valid)

    def has_cached(self, record: VideoRecord) -> bool:
        """Whether the disk cache holds the video, so that its file is not needed."""
        cache = self._open_cache()
        return cache is not None and record.id in cache

    def shape(self, record: VideoRecord) -> VideoShape:
        """Size and length of a video, from the disk cache where it noted them, else from the file.

        Raises:
            VideoError: the file cannot be read.
        """
        cache = self._open_cache() if self.spec is not None else None
        noted = cache.shape(record) if cache is not None else None
        return noted or read_shape(record, self.backend, self.timeout_s)

    @property
    def _keeps(self) -> bool:
        return self.cache == "memory"

    def _open_cache(self) -> FrameCache | None:
        if self.cache == "disk" and self._disk is None and self.cache_dir is not None:
            self._disk = FrameCache.open(self.cache_dir, self.spec)
        return self._disk

    def report(self, problem: Problem) -> None:
        self.problems[problem.video_id] = problem
        if self.problems_file is not None:
            append_problem(self.problems_file, problem)


class PairItem(NamedTuple):
    """One training sample: positions in the part's caption and video lists, and the frames."""

    caption: int
    video: int
    frames: Frames


class VideoItem(NamedTuple):
    """One video of an evaluation part."""

    video: int
    frames: Frames


class TrainPairs(Dataset[PairItem | None]):
    """Training samples of a part: index = caption ("all_captions") or video ("one_per_video").

    Everything random in a sample (frame jitter, the chosen caption) comes from a generator seeded by
    (seed, epoch, index): neither the number of workers nor that of processes changes it.

    Args:
        part: videos and captions.
        source: of frames.
        seed: of the run.
        samples: what an index means.
        share_videos: samples of one batch that describe the same video share its frames, decoded once.
        kept: bool (N,), captions to train on; videos of which none is kept are left out. None = all.
    """

    def __init__(
        self,
        part: SplitPart,
        source: FrameSource,
        seed: int,
        samples: TrainSamples = "all_captions",
        share_videos: bool = False,
        *,
        kept: np.ndarray | None = None,
    ) -> None:
        self.part = part
        self.source = source
        self.seed = seed
        self.samples = samples
        self.share_videos = share_videos
        every = range(len(part.videos))
        self._captions: Sequence[int] = range(len(part.captions)) if kept is None else np.flatnonzero(kept).tolist()
        self._videos: Sequence[int] = every
        self._captions_of: list[list[int]] = []
        if samples == "all_captions" and kept is None:  # of millions, no list is made that nobody needs
            return
        self._captions_of = [[] for _ in every]
        for caption in self._captions:
            self._captions_of[part.video_index[caption]].append(caption)
        if kept is not None:
            self._videos = [video for video in every if self._captions_of[video]]

    def __len__(self) -> int:
        return len(self._captions if self.samples == "all_captions" else self._videos)

    def __getitem__(self, key: SampleKey) -> PairItem | None:
        """Return the sample, or None when its video cannot be read."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[SampleKey]) -> list[PairItem | None]:
        """The samples of a batch, which a loader asks for in one call."""
        items: list[PairItem | None] = []
        loaded: dict[int, Frames | None] = {}
        for epoch, index in keys:
            caption, video, rng = self._draw(epoch, index)
            if not self.share_videos or video not in loaded:
                loaded[video] = self.source.load(self.part.videos[video], rng)
            frames = loaded[video]
            items.append(None if frames is None else PairItem(caption, video, frames))
        return items

    def sample_videos(self) -> list[int]:
        """Video of each sample, for the batch sampler."""
        if self.samples == "one_per_video":
            return list(self._videos)
        return [self.part.video_index[caption] for caption in self._captions]

    def sample_lengths(self, captions: np.ndarray, videos: np.ndarray) -> np.ndarray:
        """Length of each sample, from those of all captions and all videos; a video counts with its longest caption.

        Args:
            captions: int64 (N_captions,).
            videos: int64 (N_videos,).
        """
        own = np.array(self.part.video_index, dtype=np.int64)[self._captions]
        if self.samples == "all_captions":
            return np.maximum(captions[self._captions], videos[own])
        longest = videos.copy()
        np.maximum.at(longest, own, captions[self._captions])
        return longest[self._videos]

    def _draw(self, epoch: int, index: int) -> tuple[int, int, np.random.Generator | None]:
        """Caption and video of a sample, and the generator for what else is random in it."""
        if self.samples == "one_per_video":
            rng = np.random.default_rng([self.seed, epoch, index])
            video = self._videos[index]
            return int(rng.choice(self._captions_of[video])), video, rng
        caption = self._captions[index]
        drawn = None if self.source.spec is None else np.random.default_rng([self.seed, epoch, index])
        return caption, self.part.video_index[caption], drawn


class VideoItems(Dataset[VideoItem | None]):
    """The videos of an evaluation part; None for one that cannot be read."""

    def __init__(self, part: SplitPart, source: FrameSource) -> None:
        self.part = part
        self.source = source

    def __len__(self) -> int:
        return len(self.part.videos)

    def __getitem__(self, index: int) -> VideoItem | None:
        frames = self.source.load(self.part.videos[index])
        return None if frames is None else VideoItem(index, frames)


class CaptionItems(Dataset[int]):
    """The captions of an evaluation part, by position; the collate function holds the tokens."""

    def __init__(self, part: SplitPart) -> None:
        self.part = part

    def __len__(self) -> int:
        return len(self.part.captions)

    def __getitem__(self, index: int) -> int:
        return index

    def __getitems__(self, indices: list[int]) -> list[int]:
        return indices


class VideoCollate:
    """Videos to a `VideoBatch`; None when no video of the batch is readable.

    Args:
        part: whose videos the items point at.
        inputs: what the model wants.
        features: reads its experts; None when it has none.
        words: reads the words in the picture; None when it wants none.
    """

    def __init__(
        self,
        part: SplitPart,
        inputs: InputSpec,
        features: FeatureSource | None = None,
        words: WordSource | None = None,
    ) -> None:
        self.spec = inputs.frames
        self.features = features
        self.words = words
        self.videos = part.videos if words else ()
        self.keys: list[Keys] = [(video.key,) for video in part.videos] if features else []

    def __call__(self, items: Sequence[VideoItem | None]) -> VideoBatch | None:
        readable = [item for item in items if item is not None]
        if not readable:
            return None
        return self.batch([item.video for item in readable], [item.frames for item in readable])

    def batch(self, ids: Sequence[int], frames: Sequence[Frames]) -> VideoBatch:
        batch = VideoBatch(torch.tensor(ids, dtype=torch.int64))
        if self.features:
            values, masks, present_BE = self.features.batch([self.keys[video] for video in ids])
            batch = replace(batch, features=values, feature_masks=masks, present_BE=present_BE)
        if self.words:
            batch = replace(batch, words=self.words.batch([self.videos[video] for video in ids]))
        if self.spec is None:
            return batch
        frames_BTCHW = torch.from_numpy(np.stack([item.frames_TCHW for item in frames]))
        n_valid_B = torch.tensor([item.n_valid for item in frames])
        mask_BT = torch.arange(frames_BTCHW.shape[1]) < n_valid_B[:, None]
        return replace(batch, frames_BTCHW=frames_BTCHW, mask_BT=mask_BT)


class CaptionCollate:
    """Caption positions to a `TextBatch`.

    Args:
        part: whose captions the positions count.
        tokens: of these captions.
        features: reads precomputed text features; None when the model wants none.
    """

    def __init__(self, part: SplitPart, tokens: CaptionTokens, features: FeatureSource | None = None) -> None:
        self.tokens = tokens
        self.features = features
        self.keys: list[Keys] = [caption.keys for caption in part.captions] if features else []
        self.video_index = torch.tensor(part.video_index, dtype=torch.int64)

    def __call__(self, items: Sequence[int]) -> TextBatch:
        ids_B = torch.tensor(items, dtype=torch.int64)
        batch = self.tokens.batch(ids_B, self.video_index[ids_B])
        if not self.features:
            return batch
        values, masks, present_BE = self.features.batch([self.keys[caption] for caption in items])
        return replace(batch, features=values, feature_masks=masks, present_BE=present_BE)


class PairCollate:
    """Training samples to a `PairBatch`, without the unreadable ones; None when none is left.

    Args:
        videos: makes the video side.
        captions: makes the text side.
        share_videos: each distinct video once, and `PairBatch.rows` to say which caption it belongs to.
        teachers: reads what teachers think of the pairs; None without teachers.
    """

    def __init__(
        self,
        videos: VideoCollate,
        captions: CaptionCollate,
        share_videos: bool = False,
        teachers: TeacherSource | None = None,
    ) -> None:
        self.videos = videos
        self.captions = captions
        self.share_videos = share_videos
        self.teachers = teachers

    def __call__(self, items: Sequence[PairItem | None]) -> PairBatch | None:
        readable = [item for item in items if item is not None]
        if not readable:
            return None
        captions = [item.caption for item in readable]
        scores = None
        if self.teachers is not None:
            scores = self.teachers.batch(captions, [item.video for item in readable])
        text = self.captions(captions)
        if not self.share_videos:
            video = self.videos.batch([i.video for i in readable], [i.frames for i in readable])
            return PairBatch(text, video, teachers=scores)
        distinct = {item.video: item.frames for item in readable}
        row_of = {video: row for row, video in enumerate(distinct)}
        rows_B = torch.tensor([row_of[item.video] for item in readable])
        return PairBatch(text, self.videos.batch(list(distinct), list(distinct.values())), rows_B, scores)
