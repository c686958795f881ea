"""Samples and their batches: what is random, what is dropped, what is masked."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from src.batch import FrameSpec, InputSpec
from src.data import datasets
from src.data.annotation import CaptionRecord, VideoRecord
from src.data.datasets import (
    CaptionCollate,
    CaptionItems,
    CaptionTokens,
    FrameSource,
    PairCollate,
    TrainPairs,
    VideoCollate,
    VideoItems,
)
from src.data.splits import SplitPart
from src.data.video import VideoError, read_problems

SPEC = FrameSpec(num_frames=3, image_size=4)


def tokenize(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Code points of the first four characters."""
    tokens_NL = torch.zeros(len(captions), 4, dtype=torch.int64)
    for row, caption in enumerate(captions):
        for column, character in enumerate(caption[:4]):
            tokens_NL[row, column] = ord(character)
    return tokens_NL, tokens_NL > 0


class Loads:
    """Stands for `load_frames`: frames full of the video's number, plus noise when it may jitter."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(
        self,
        record: VideoRecord,
        spec: FrameSpec,
        backend: str,
        timeout_s: float,
        cache: object,
        rng: np.random.Generator | None,
    ) -> tuple[np.ndarray, int]:
        self.calls.append(record.id)
        if record.id.startswith("broken"):
            raise VideoError(record.path or "", "truncated")
        frames = np.full((spec.num_frames, 3, spec.image_size, spec.image_size), int(record.id), dtype=np.uint8)
        if rng is not None:
            frames += rng.integers(0, 100, frames.shape, dtype=np.uint8)
        frames[-1] = 0
        return frames, spec.num_frames - 1


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    fake = Loads()
    monkeypatch.setattr(datasets, "load_frames", fake)
    return fake


def make_part(ids: Sequence[str], captions_each: int = 3) -> SplitPart:
    videos = tuple(VideoRecord(video_id, Path(f"{video_id}.mp4")) for video_id in ids)
    captions = tuple(CaptionRecord(i, f"{k}{i}") for i in ids for k in range(captions_each))
    return SplitPart("train", videos, captions, tuple(v for v in range(len(ids)) for _ in range(captions_each)))


def test_a_sample_depends_on_seed_epoch_and_index_only(loads: Loads) -> None:
    part = make_part([str(k) for k in range(8)])

    def sample(seed: int, epoch: int, index: int) -> tuple[int, bytes]:
        item = TrainPairs(part, FrameSource(SPEC), seed, "one_per_video")[epoch, index]
        assert item is not None
        return item.caption, item.frames.frames_TCHW.tobytes()

    reference = sample(0, 0, 5)
    assert sample(0, 0, 5) == reference
    assert reference[1] not in (sample(1, 0, 5)[1], sample(0, 1, 5)[1])
    chosen = {sample(0, epoch, 5)[0] for epoch in range(40)}
    assert chosen == {15, 16, 17}  # every caption of video 5, and of no other


def test_all_captions_pairs_each_caption_with_its_video(loads: Loads) -> None:
    part = make_part(["4", "9"])
    pairs = TrainPairs(part, FrameSource(SPEC), 0)
    assert len(pairs) == 6
    assert pairs.sample_videos() == [0, 0, 0, 1, 1, 1]
    assert [(item.caption, item.video) for k in range(6) if (item := pairs[0, k])] == list(
        enumerate([0, 0, 0, 1, 1, 1])
    )
    assert TrainPairs(part, FrameSource(SPEC), 0, "one_per_video").sample_videos() == [0, 1]


def test_pairs_are_collated_with_ids_masks_and_dtypes(loads: Loads) -> None:
    part = make_part(["4", "9"])
    pairs = TrainPairs(part, FrameSource(SPEC), 0)
    collate = pair_collate(part)
    batch = collate([pairs[0, 5], pairs[0, 0]])
    assert batch is not None
    assert batch.text.ids.tolist() == [5, 0]
    assert batch.text.video_ids.tolist() == batch.video.ids.tolist() == [1, 0]
    assert batch.text.tokens_BL.dtype == batch.text.ids.dtype == torch.int64
    assert batch.text.tokens_BL[0].tolist() == [ord("2"), ord("9"), 0, 0]
    assert batch.text.mask_BL[0].tolist() == [True, True, False, False]
    frames = batch.video.frames_BTCHW
    assert frames is not None
    assert frames.dtype == torch.uint8
    assert frames.shape == (2, 3, 3, 4, 4)
    assert batch.video.mask_BT is not None
    assert batch.video.mask_BT.tolist() == [[True, True, False]] * 2


def pair_collate(part: SplitPart) -> PairCollate:
    tokens = CaptionTokens([caption.text for caption in part.captions], tokenize)
    return PairCollate(VideoCollate(part, InputSpec(tokenize, SPEC)), CaptionCollate(part, tokens))


def test_unreadable_videos_leave_the_batch_and_are_reported_once(loads: Loads, tmp_path: Path) -> None:
    file = tmp_path / "run" / "problems.jsonl"
    part = make_part(["4", "broken", "9"], captions_each=1)
    source = FrameSource(SPEC, problems_file=file)
    pairs = TrainPairs(part, source, 0)
    collate = pair_collate(part)
    for epoch in range(2):
        batch = collate([pairs[epoch, k] for k in range(3)])
        assert batch is not None
        assert batch.video.ids.tolist() == batch.text.video_ids.tolist() == [0, 2]
    assert collate([pairs[0, 1]]) is None
    assert loads.calls.count("broken") == 1  # its time limit is not paid again in each epoch
    assert [(problem.video_id, problem.reason) for problem in read_problems(file)] == [("broken", "truncated")]


def test_evaluation_keeps_the_captions_of_an_unreadable_video(loads: Loads) -> None:
    part = make_part(["4", "broken", "9"], captions_each=2)
    items = VideoItems(part, FrameSource(SPEC))
    batch = VideoCollate(items.part, InputSpec(tokenize, SPEC))([items[k] for k in range(3)])
    assert batch is not None
    assert batch.ids.tolist() == [0, 2]
    assert VideoCollate(items.part, InputSpec(tokenize, SPEC))([items[1]]) is None
    captions = CaptionItems(part)
    tokens = CaptionTokens([caption.text for caption in part.captions], tokenize)
    text = CaptionCollate(part, tokens)([captions[k] for k in range(len(captions))])
    assert text.ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert text.video_ids.tolist() == [0, 0, 1, 1, 2, 2]


def test_memory_cache_decodes_once_without_jitter(loads: Loads) -> None:
    source = FrameSource(SPEC, cache="memory")
    part = make_part(["4"])
    pairs = TrainPairs(part, source, 0)
    first, second = pairs[0, 0], pairs[1, 2]
    evaluated = VideoItems(part, source)[0]
    assert first is not None
    assert second is not None
    assert evaluated is not None
    assert loads.calls == ["4"]
    assert first.frames.frames_TCHW[0].max() == 4
    assert first.frames is second.frames is evaluated.frames
    assert pickle.loads(pickle.dumps(source))._memory == {}  # noqa: S301


def test_models_without_frames_get_ids_only(loads: Loads) -> None:
    items = VideoItems(make_part(["4", "9"]), FrameSource(None))
    batch = VideoCollate(items.part, InputSpec(tokenize))([items[0], items[1]])
    assert batch is not None
    assert batch.ids.tolist() == [0, 1]
    assert batch.frames_BTCHW is None
    assert loads.calls == []


def test_captions_of_any_script_and_length_reach_the_tokenizer_unchanged() -> None:
    texts = ["🎬🤸🏽", "مرحبا", "一个男人在跑步", "x" * 10_000]
    tokens = CaptionTokens(texts, tokenize)
    assert len(tokens) == 4
    assert tokens.tokens_NL[0, 0] == ord("🎬")
    assert tokens.tokens_NL[2].tolist() == [ord(c) for c in "一个男人"]
