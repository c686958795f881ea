"""Base of every benchmark: annotation + split + the model's input spec -> loaders of typed batches."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import LightningDataModule

from src.batch import InputSpec, PairBatch, TextBatch, VideoBatch
from src.data.annotation import Annotation, VideoRecord
from src.data.caption_mask import KeptCaptions, apply_mask, captions_to_train_on
from src.data.caption_tokens import CaptionTokens
from src.data.checks import Finding
from src.data.datasets import (
    CacheMode,
    CaptionCollate,
    CaptionItems,
    FrameSource,
    PairCollate,
    TrainPairs,
    TrainSamples,
    VideoCollate,
    VideoItems,
)
from src.data.feature_source import FeatureSource
from src.data.loader import BatchLoader, worker_options
from src.data.part_facts import all_problems, part_facts
from src.data.samplers import ShardBatchSampler, TrainBatchSampler
from src.data.splits import AppliedSplit, SplitPart, SplitSpec, apply_split
from src.data.teachers import TeacherSource
from src.data.topics import topics_part
from src.data.video import Backend, Problem, read_problems
from src.data.windowed_videos import WindowCollate, WindowedVideos
from src.data.words import ShownWords, WordSource
from src.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True, repr=False)
class RetrievalDataModule(LightningDataModule, ABC):
    """Loaders of one benchmark under one split; a benchmark adds its paths and `read`.

    Attributes:
        name: data set name in reports and run folders.
        split: the split to apply; from `conf/split`.
        inputs: what the model needs; from the model.
        seed: seed of the sample order, the caption choice and the frame jitter.
        problems_file: unreadable videos are appended here, by every worker; None = not kept.
        batch_size: training samples per step, over all processes: the same command trains the same way on 1 or 4
            devices. Must be a multiple of the number of processes.
        eval_batch_size: videos (or captions) per evaluation batch.
        num_workers: loader processes; 0 loads in the main process.
        backend: video decoder; auto = decord where it is installed, else pyav.
        timeout_s: time limit for decoding one file, seconds; 0 = none.
        cache: none = decode each time; memory = keep decoded frames (small data, num_workers=0, no jitter);
            disk = read the frames that `task=prepare` wrote to `cache_dir`.
        cache_dir: folder of the disk cache.
        train_samples: all_captions = each caption is a sample; one_per_video = each video is a sample with a
            random one of its captions.
        unique_videos_in_batch: no training batch (over all processes) holds two captions of one video.
        keep_groups_together: videos of one group (hard negatives) meet in the same training batch.
        encode_videos_once: captions of one training batch that describe the same video share one decoded and encoded
            video. Less work where videos have many captions; they then also share its frame jitter and dropout.
        bucket_by_length: samples of similar length (tokens, feature steps) meet in a batch, for less padding.
        drop_last: leave the last batch of an epoch out where it is not full; false: train on it, too.
        caption_mask: file that says which training captions are left out; `src.data.caption_mask`. None = none.
        ocr_dir: folder with <video id>.json of the Kwai layout, or a store of extractor=ocr; read for models that ask
            for the words in the picture.
        stores: name -> folder of the feature stores that the run reads.
    """

    name: str
    split: SplitSpec
    inputs: InputSpec
    seed: int = 0
    problems_file: Path | None = None
    batch_size: int = 32
    eval_batch_size: int = 32
    num_workers: int = 0
    backend: Backend = "auto"
    timeout_s: float = 30.0
    cache: CacheMode = "none"
    cache_dir: str | None = None
    train_samples: TrainSamples = "all_captions"
    unique_videos_in_batch: bool = False
    keep_groups_together: bool = False
    encode_videos_once: bool = False
    bucket_by_length: bool = False
    drop_last: bool = True
    caption_mask: str | None = None
    ocr_dir: str | None = None
    stores: dict[str, Path] = field(default_factory=dict)
    val_part: Literal["val", "test"] = field(default="val", init=False)

    def __post_init__(self) -> None:
        super().__init__()
        # Evaluation shards are not padded: a process may have none of a very small part.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self._tokens: dict[str, CaptionTokens] = {}
        self._used_parts: set[str] = set()
        if self.cache == "memory" and self.num_workers:
            raise UserError(
                f"dataset.cache=memory with dataset.num_workers={self.num_workers} would keep a copy per worker; "
                "set dataset.num_workers=0 or dataset.cache=disk"
            )
        if self.cache == "disk" and self.cache_dir is None:
            raise UserError(
                "dataset.cache=disk needs a folder; set dataset.cache_dir=FOLDER and fill it by task=prepare"
            )
        if self.eval_batch_size < 1:
            raise UserError(f"dataset.eval_batch_size={self.eval_batch_size}, expected a positive number")

    @abstractmethod
    def read(self) -> Annotation:
        """Read the annotation files.

        Raises:
            UserError: a file is missing or malformed; the message says what to put where.
        """

    def own_findings(self) -> list[Finding]:
        """What `task=check_data` should say about files that only this benchmark has."""
        return []

    @cached_property
    def annotation(self) -> Annotation:
        """What `read` returned, checked."""
        annotation = self.read()
        annotation.check(f"data set {self.name!r}")
        return annotation

    @cached_property
    def applied(self) -> AppliedSplit:
        """The split's parts and what was left out of them."""
        needs_files = self.inputs.frames is not None or bool(self.inputs.experts)
        features = [spec.name for spec in self.experts.specs] if self.inputs.frames is None else []
        return apply_split(
            self.split, self.annotation, available=self.is_available if needs_files else None, features=features
        )

    @cached_property
    def source(self) -> FrameSource:
        """Where frames come from; shared by all loaders of this process."""
        return FrameSource(
            self.inputs.frames,
            backend=self.backend,
            timeout_s=self.timeout_s,
            cache=self.cache,
            cache_dir=Path(self.cache_dir) if self.cache_dir else None,
            problems_file=self.problems_file,
        )

    @cached_property
    def experts(self) -> FeatureSource:
        """Reads the experts of videos that evaluation needs."""
        return FeatureSource([spec for spec in self.inputs.experts if not spec.training_only], self.stores)

    @cached_property
    def training_experts(self) -> FeatureSource:
        """Reads all experts of videos, targets of the loss included."""
        return FeatureSource(self.inputs.experts, self.stores)

    @cached_property
    def text_features(self) -> FeatureSource:
        """Reads the precomputed features of captions."""
        return FeatureSource(self.inputs.text_features, self.stores, "caption")

    @cached_property
    def words(self) -> WordSource | None:
        """Reads the words in the picture; None when the model wants none."""
        if self.inputs.words is None:
            return None
        return WordSource(self.inputs.words, self.ocr_dir, self.source, self.problems_file)

    def shown_words(self, part: SplitPart) -> ShownWords | None:
        """What was read in each video of a part, for people; None when the model reads no words."""
        return ShownWords(self.words, part.videos) if self.words else None

    @cached_property
    def kept_captions(self) -> KeptCaptions | None:
        """The training captions that the mask leaves; None without mask.

        Raises:
            UserError: the file cannot be used.
        """
        if self.caption_mask is None:
            return None
        return apply_mask(Path(self.caption_mask).expanduser(), self.applied.part("train"))

    @cached_property
    def trained_captions(self) -> np.ndarray | None:
        """bool (N,), captions of the train part to train on; None = all of them."""
        features = self.text_features if self.inputs.tokenizer is None else None
        return captions_to_train_on(self.applied.part("train"), self.kept_captions, features)

    def is_available(self, video: VideoRecord) -> bool:
        """Whether the video's file, its frames in the disk cache, or at least one of its experts are at hand."""
        if self.inputs.frames is None and self.experts:
            return self.experts.has_any((video.key,))
        return (video.path is not None and video.path.is_file()) or self.source.has_cached(video)

    def setup(self, stage: str | None = None) -> None:
        """Read and split, and check that frames and features can be had at all; repeated calls cost nothing."""
        self.source.check()
        self.experts.check()
        self.text_features.check()
        if self.words:
            self.words.check(part.videos for part in self.applied.parts.values())
        _ = self.applied

    def part(self, name: str) -> SplitPart:
        """One part of the split.

        Raises:
            UserError: the split has no such part, or nothing of it can be used.
        """
        self._used_parts.add(name)
        return self.applied.part(name)

    def select_on(self, part: Literal["val", "test"]) -> None:
        """Make `val_dataloader` read this part; the test part when a split without val is selected on test."""
        self.val_part = part

    def batches_per_epoch(self, world_size: int | None = None) -> int:
        """Training steps of one epoch; each step is `batch_size` samples over all processes."""
        return len(self._train_sampler(0, world_size or self._rank_and_world_size()[1]))

    def train_dataloader(self) -> BatchLoader[PairBatch]:
        """Loader of `PairBatch`; its order depends on (seed, epoch) only."""
        self.training_experts.check()
        part = self.part("train")
        teachers = self._teachers(part)
        sampler = self._train_sampler(*self._rank_and_world_size())
        used, total = len(sampler) * self.batch_size, len(sampler.videos)
        if total - used > max(self.batch_size, total // 20):
            logger.info(
                "an epoch trains on %d of %d samples, others each time: videos with many captions cannot fill batches "
                "of %d distinct videos (unique_videos_in_batch)",
                used,
                total,
                self.batch_size,
            )
        return BatchLoader(
            self._pairs(part),
            batch_sampler=sampler,
            collate_fn=PairCollate(
                VideoCollate(part, self.inputs, self.training_experts, self.words),
                self.caption_collate(part),
                self.encode_videos_once,
                teachers,
            ),
            keep_length=True,
            **self._worker_options(sampler.batch_size),
        )

    def val_dataloader(self) -> list[BatchLoader[Any]]:
        """[videos, captions] of the part that `select_on` chose (val)."""
        return self.eval_dataloaders(self.val_part)

    def test_dataloader(self) -> list[BatchLoader[Any]]:
        """[videos, captions] of the test part."""
        return self.eval_dataloaders("test")

    def eval_dataloaders(self, name: str) -> list[BatchLoader[Any]]:
        """[loader of `VideoBatch`, loader of `TextBatch`] of a part; each process has its own share, unpadded."""
        part = self.part(name)
        return [self._video_loader(part), self._caption_loader(part)]

    def search_dataloaders(self) -> list[BatchLoader[Any]]:
        """[videos of the test part, topics of all editions in their order]; a topic's `video_ids` are -1.

        Raises:
            UserError: the model reads precomputed text features, which topics do not have.
        """
        topics = topics_part(self.annotation, self.inputs.text_features)
        return [self._video_loader(self.part("test")), self._caption_loader(topics)]

    def _video_loader(self, part: SplitPart) -> BatchLoader[VideoBatch]:
        windows, collate = self.inputs.windows, VideoCollate(part, self.inputs, self.experts, self.words)
        size = self.eval_batch_size if windows is None else 1  # a video may have many windows
        return BatchLoader(
            VideoItems(part, self.source) if windows is None else WindowedVideos(part, self.source, windows),
            batch_sampler=ShardBatchSampler(len(part.videos), size, *self._rank_and_world_size()),
            collate_fn=collate if windows is None else WindowCollate(collate),
            **self._worker_options(self.eval_batch_size),
        )

    def _caption_loader(self, part: SplitPart) -> BatchLoader[TextBatch]:
        # Captions are tokenised already: workers would only copy integers.
        return BatchLoader(
            CaptionItems(part),
            batch_sampler=ShardBatchSampler(len(part.captions), self.eval_batch_size, *self._rank_and_world_size()),
            collate_fn=self.caption_collate(part),
            generator=torch.Generator().manual_seed(self.seed),
        )

    @property
    def problems(self) -> list[Problem]:
        """What is missing from the parts asked for, each once: left out by the split, or unreadable in any process."""
        met = [*self.source.problems.values(), *(self.words.problems.values() if self.words else ())]
        if self.problems_file is not None:
            met += read_problems(self.problems_file)
        return all_problems(self.applied, self._used_parts, met)

    def describe(self, part: str = "test") -> dict[str, Any]:
        """Protocol facts of one part: what a number in a table depends on besides the model."""
        chosen = self.part(part)
        facts = part_facts(self.name, self.split, chosen)
        facts["excluded"] = self.applied.excluded_counts(part)
        facts["without_expert"] = self.experts.lacking((video.key,) for video in chosen.videos)
        if self.words:
            facts["without_ocr"] = len(self.words.lacking(chosen.videos))
        if self.inputs.windows:
            facts["windows"] = self.inputs.windows.words
        return facts | ({"caption_mask": self.kept_captions.words()} if self.kept_captions else {})

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save: the order of an epoch follows from (seed, epoch)."""
        return {}

    def _train_sampler(self, rank: int, world_size: int) -> TrainBatchSampler:
        if self.batch_size % world_size:
            raise UserError(
                f"dataset.batch_size={self.batch_size} cannot be divided among {world_size} processes; "
                f"set dataset.batch_size={max(1, self.batch_size // world_size) * world_size}"
            )
        part = self.part("train")
        pairs = self._pairs(part)
        videos = pairs.sample_videos()
        return TrainBatchSampler(
            videos,
            self.batch_size // world_size,
            self.seed,
            rank=rank,
            world_size=world_size,
            unique_videos=self.unique_videos_in_batch,
            groups=[part.videos[video].group for video in videos] if self.keep_groups_together else None,
            lengths=self._lengths(pairs) if self.bucket_by_length else None,
            drop_last=self.drop_last,
        )

    def _pairs(self, part: SplitPart) -> TrainPairs:
        return TrainPairs(
            part,
            self.source,
            self.seed,
            self.train_samples,
            self.encode_videos_once,
            kept=self.trained_captions,
        )

    def _teachers(self, part: SplitPart) -> TeacherSource | None:
        """Reads the scores that training imitates; None when the model has no teachers."""
        if not self.inputs.teachers:
            return None
        several = self._rank_and_world_size()[1] > 1
        source = TeacherSource(self.inputs.teachers, self.stores, part, split=self.split.name, whole_rows=several)
        source.check()
        return source

    def _lengths(self, pairs: TrainPairs) -> np.ndarray:
        """What a sample adds to the padding of its batch: tokens of its caption, or steps of its longest expert."""
        captions = self._tokens_of(pairs.part).lengths().numpy()
        if self.text_features:
            features = self.text_features.lengths([caption.keys for caption in pairs.part.captions])
            captions = np.maximum(captions, features)
        return pairs.sample_lengths(captions, self.experts.lengths([(video.key,) for video in pairs.part.videos]))

    def caption_collate(self, part: SplitPart) -> CaptionCollate:
        """Makes batches of captions of a part, named by their positions."""
        return CaptionCollate(part, self._tokens_of(part), self.text_features)

    def _tokens_of(self, part: SplitPart) -> CaptionTokens:
        if part.name not in self._tokens:
            texts = [caption.text for caption in part.captions]
            folder = Path(self.cache_dir) / "tokens" if self.cache_dir else None
            self._tokens[part.name] = CaptionTokens(texts, self.inputs.tokenizer, folder)
        return self._tokens[part.name]

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _worker_options(self, batch_size: int) -> dict[str, Any]:
        return worker_options(self.num_workers, self.seed, self.timeout_s * batch_size)
