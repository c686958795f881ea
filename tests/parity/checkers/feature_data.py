"""Batches of precomputed features: the collate function of Dual Encoding, the data sets of Collaborative Experts."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from src.batch import ExpertSpec, InputSpec, TextBatch, VideoBatch
from src.data.annotation import CaptionRecord, VideoRecord
from src.data.caption_tokens import CaptionTokens
from src.data.datasets import CaptionCollate, Frames, VideoCollate
from src.data.feature_source import FeatureSource
from src.data.features.writer import StoreWriter
from src.data.splits import SplitPart
from src.models.vocabulary import SPECIAL, VocabularyTokenizer, words_of
from tests.parity.cases import Case

NO_FRAMES = Frames(np.zeros((0, 3, 0, 0), dtype=np.uint8), 0)


def write_store(folder: Path, name: str, items: dict[str, np.ndarray | None]) -> Path:
    """A store of these items; None = missing."""
    dim = next(rows.shape[1] for rows in items.values() if rows is not None)
    writer = StoreWriter(folder / name, name=name, dim=dim, recipe={}, ids=list(items))
    for shard in writer.pending():
        writer.write_shard(shard, ((i, items[i], None, None) for i in writer.shard_ids(shard)))
    writer.finish()
    return folder / name


def batches(
    part: SplitPart, inputs: InputSpec, stores: dict[str, Path], captions: list[int]
) -> tuple[TextBatch, VideoBatch]:
    """What a training loader makes of these captions and their videos."""
    tokens = CaptionTokens([caption.text for caption in part.captions], inputs.tokenizer)
    text = CaptionCollate(part, tokens, FeatureSource(inputs.text_features, stores, "caption"))(captions)
    videos = VideoCollate(part, inputs, FeatureSource(inputs.experts, stores))
    ids = text.video_ids.tolist()
    return text, videos.batch(ids, [NO_FRAMES] * len(ids))


def check_collate(case: Case) -> None:
    """Reference batches are sorted by caption length; ours keep their order, so theirs is undone with `out/order`."""
    meta, source = case.meta, case.group("in")
    samples = meta["samples"]
    vocabulary = VocabularyTokenizer(tuple(sorted(meta["bow_vocab"], key=meta["bow_vocab"].get)))
    assert vocabulary.ids == meta["rnn_vocab"]
    assert list(vocabulary.ids)[: len(SPECIAL)] == list(SPECIAL)
    for sample in samples:
        assert words_of(sample["caption"]) == sample["tokens"]
    ids = [f"video{index}" for index in range(len(samples))]
    part = SplitPart(
        "train",
        tuple(VideoRecord(video_id) for video_id in ids),
        tuple(CaptionRecord(video_id, sample["caption"]) for video_id, sample in zip(ids, samples, strict=True)),
        tuple(range(len(ids))),
    )
    frames = {video_id: source[f"frames_{index}"].numpy() for index, video_id in enumerate(ids)}
    tags = {video_id: source[f"tag_{index}"].numpy()[None] for index, video_id in enumerate(ids)}
    dim, num_tags = frames[ids[0]].shape[1], tags[ids[0]].shape[1]
    specs = (
        ExpertSpec("frames", dim, temporal=True, max_steps=meta["video_max_len"]),
        ExpertSpec("mean", dim, store="frames"),
        ExpertSpec("tags", num_tags),
    )
    with tempfile.TemporaryDirectory() as folder:
        stores = {n: write_store(Path(folder), n, items) for n, items in (("frames", frames), ("tags", tags))}
        text, video = batches(part, InputSpec(vocabulary, experts=specs), stores, list(range(len(ids))))
    wanted, order = case.group("out"), case.tensors["out/order"]
    longest = wanted["caption_ids"].shape[1]
    assert torch.equal(text.tokens_BL[order][:, :longest], wanted["caption_ids"])
    assert not text.mask_BL[:, longest:].any()
    assert torch.equal(text.mask_BL[order][:, :longest].float(), wanted["caption_mask"])
    assert torch.equal(text.mask_BL.sum(1)[order], wanted["caption_lengths"])
    assert torch.equal(vocabulary.bag_of_words(text.tokens_BL)[order], wanted["bow"])
    assert torch.equal(video.features["frames"][order], wanted["frames"])
    assert torch.equal(video.feature_masks["frames"][order].float(), wanted["frames_mask"])
    assert torch.equal(video.feature_masks["frames"].sum(1)[order], wanted["video_lengths"])
    torch.testing.assert_close(video.features["mean"][order], wanted["frames_mean"], rtol=1e-5, atol=1e-7)
    assert torch.equal(video.features["tags"][order], wanted["tags"])
    assert video.present_BE is not None
    assert video.present_BE.all()


CHECKERS = {"dual_encoding": {"collate": check_collate}}
