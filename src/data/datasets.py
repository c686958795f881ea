"""Map-style data sets over one split part, and how their items become the batches of `src.batch`.

Training pairs one video with one caption; evaluation has two data sets, videos and captions, joined by id, so
that each video and each caption is encoded once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.batch import FrameSpec, InputSpec, PairBatch, TextBatch, Tokenizer, VideoBatch
from src.data.annotation import VideoRecord
from src.data.frame_cache import FrameCache, load_frames
from src.data.samplers import SampleKey
from src.data.splits import SplitPart
from src.data.video import Backend, Problem, VideoError, append_problem, resolve_backend

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
            rng: given in training, where the sampling rule may jitter the frame positions.
        """
        if self.spec is None:
            return Frames(np.zeros((0, 3, 0, 0), dtype=np.uint8), 0)
        if record.id in self.problems:  # a broken file costs its time limit once, not once per epoch
            return None
        if record.id in self._memory:
            return self._memory[record.id]
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
            self._report(Problem(record.id, str(record.path), error.reason))
            return None
        loaded = Frames(frames, n_valid)
        if self._keeps:
            self._memory[record.id] = loaded
        return loaded

    def has_cached(self, record: VideoRecord) -> bool:
        """Whether the disk cache holds the video, so that its file is not needed."""
        cache = self._open_cache()
        return cache is not None and record.id in cache

    @property
    def _keeps(self) -> bool:
        return self.cache == "memory"

    def _open_cache(self) -> FrameCache | None:
        if self.cache == "disk" and self._disk is None and self.cache_dir is not None:
            self._disk = FrameCache.open(self.cache_dir, self.spec)
        return self._disk

    def _report(self, problem: Problem) -> None:
        self.problems[problem.video_id] = problem
        if self.problems_file is not None:
            append_problem(self.problems_file, problem)


class CaptionTokens:
    """Captions of a part, tokenised once.

    Args:
        captions: texts; any Unicode, any length (the tokeniser truncates).
        tokenizer: the model's tokeniser; None for a model that reads no words.
    """

    def __init__(self, captions: Sequence[str], tokenizer: Tokenizer | None) -> None:
        empty = torch.zeros(len(captions), 0)
        tokens_NL, mask_NL = tokenizer(list(captions)) if tokenizer else (empty, empty.bool())
        # Half the memory in every worker; ids are far below 2**31.
        self.tokens_NL = tokens_NL.to(torch.int32)
        self.mask_NL = mask_NL

    def __len__(self) -> int:
        return len(self.tokens_NL)

    def batch(self, ids: Tensor, video_ids: Tensor) -> TextBatch:
        """The captions `ids`, cut after the longest of them (in steps of 8, for the kernels): padding costs time."""
        mask_BL = self.mask_NL[ids]
        longest = int((mask_BL * torch.arange(1, mask_BL.shape[1] + 1)).max()) if mask_BL.numel() else 1
        length = min(-(-longest // 8) * 8, mask_BL.shape[1])
        return TextBatch(self.tokens_NL[ids, :length].long(), mask_BL[:, :length], ids, video_ids)


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
    """

    def __init__(self, part: SplitPart, source: FrameSource, seed: int, samples: TrainSamples = "all_captions") -> None:
        self.part = part
        self.source = source
        self.seed = seed
        self.samples = samples
        self._captions_of: list[list[int]] = [[] for _ in part.videos]
        for caption, video in enumerate(part.video_index):
            self._captions_of[video].append(caption)

    def __len__(self) -> int:
        return len(self.part.captions if self.samples == "all_captions" else self.part.videos)

    def __getitem__(self, key: SampleKey) -> PairItem | None:
        """Return the sample, or None when its video cannot be read."""
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        if self.samples == "all_captions":
            caption, video = index, self.part.video_index[index]
        else:
            video = index
            caption = int(rng.choice(self._captions_of[video]))
        frames = self.source.load(self.part.videos[video], rng)
        return None if frames is None else PairItem(caption, video, frames)

    def sample_videos(self) -> list[int]:
        """Video of each sample, for the batch sampler."""
        return list(self.part.video_index if self.samples == "all_captions" else range(len(self.part.videos)))


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


class VideoCollate:
    """Videos to a `VideoBatch`; None when no video of the batch is readable."""

    def __init__(self, inputs: InputSpec) -> None:
        self.spec = inputs.frames

    def __call__(self, items: Sequence[VideoItem | None]) -> VideoBatch | None:
        readable = [item for item in items if item is not None]
        if not readable:
            return None
        return self.batch([item.video for item in readable], [item.frames for item in readable])

    def batch(self, ids: Sequence[int], frames: Sequence[Frames]) -> VideoBatch:
        ids_B = torch.tensor(ids, dtype=torch.int64)
        if self.spec is None:
            return VideoBatch(ids_B)
        frames_BTCHW = torch.from_numpy(np.stack([item.frames_TCHW for item in frames]))
        n_valid_B = torch.tensor([item.n_valid for item in frames])
        return VideoBatch(ids_B, frames_BTCHW, torch.arange(frames_BTCHW.shape[1]) < n_valid_B[:, None])


class CaptionCollate:
    """Caption positions to a `TextBatch`."""

    def __init__(self, part: SplitPart, tokens: CaptionTokens) -> None:
        self.tokens = tokens
        self.video_index = torch.tensor(part.video_index, dtype=torch.int64)

    def __call__(self, items: Sequence[int]) -> TextBatch:
        ids_B = torch.tensor(items, dtype=torch.int64)
        return self.tokens.batch(ids_B, self.video_index[ids_B])


class PairCollate:
    """Training samples to a `PairBatch`, without the unreadable ones; None when none is left."""

    def __init__(self, videos: VideoCollate, captions: CaptionCollate) -> None:
        self.videos = videos
        self.captions = captions

    def __call__(self, items: Sequence[PairItem | None]) -> PairBatch | None:
        readable = [item for item in items if item is not None]
        if not readable:
            return None
        video = self.videos.batch([item.video for item in readable], [item.frames for item in readable])
        return PairBatch(self.captions([item.caption for item in readable]), video)


def use_one_thread(worker: int) -> None:
    """Set up a loader worker: workers share the cores by being many, not by each using all of them.

    Stands here so that a worker need not import Lightning.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
