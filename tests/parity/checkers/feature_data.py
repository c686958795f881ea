"""Batches of precomputed features: the collate function of Dual Encoding, the data sets of Collaborative Experts."""

from __future__ import annotations

import json
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from src.batch import ExpertSpec, InputSpec, TextBatch, VideoBatch
from src.data.annotation import CaptionRecord, VideoRecord
from src.data.benchmarks.didemo import DidemoDataModule
from src.data.benchmarks.msrvtt import LISTS, MsrvttDataModule
from src.data.caption_tokens import CaptionTokens
from src.data.datamodule import RetrievalDataModule
from src.data.datasets import CaptionCollate, Frames, VideoCollate
from src.data.feature_source import FeatureSource
from src.data.features.experts import find_experts
from src.data.features.source import import_source
from src.data.features.writer import StoreWriter
from src.data.splits import SplitPart, SplitSpec
from src.models.vocabulary import SPECIAL, VocabularyTokenizer, words_of
from tests.parity.cases import Case

DIDEMO_LISTS = {f"{part}_list.txt": part for part in ("train", "val", "test")}
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


def check_experts(case: Case) -> None:
    """Feature pickles in the published layout, imported to stores, read by the data set's own module.

    The reference marks a missing expert by NaN and `ind` 0; here it is zeros and False in `present_BE`.
    """
    hyper = case.meta["hyper"]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_published_layout(case, root)
        stores = {}
        for expert in find_experts(root / "features").experts:
            stores[expert.name] = root / "stores" / expert.name
            import_source(expert.load(), stores[expert.name])
        limits = hyper["max_tokens"]
        experts = tuple(
            ExpertSpec(expert, dim, expert in limits, limits.get(expert), "max" if expert in limits else "longest")
            for expert, dim in hyper["dims"].items()
        )
        pooled = hyper["text_agg"] == "avg"
        words = ExpertSpec("text.w2v", hyper["text_dim"], not pooled, None if pooled else limits["text"])
        if not pooled:
            words = replace(words, pad="max")
        data = data_module(case, root, InputSpec(None, experts=experts, text_features=(words,)), stores)
        data.setup()
        check_train(case, data)
        check_val(case, data)


def check_train(case: Case, data: RetrievalDataModule) -> None:
    """The captions that the reference drew; it keeps the order of the list."""
    part, wanted = data.part("train"), case.group("out/train")
    assert [video.id for video in part.videos] == case.meta["train"]
    first = {video: index for index, video in reversed(list(enumerate(part.video_index)))}
    picked = [first[video] + max(int(k), 0) for video, k in enumerate(wanted["picked_caption"])]  # -1: a paragraph
    text, video = batches(part, data.inputs, data.stores, picked)
    compare_experts(video, wanted)
    compare_words(text, wanted["text"].flatten(0, 1), wanted["text_token_mask"].flatten())


def check_val(case: Case, data: RetrievalDataModule) -> None:
    """All captions that count; the reference pads each video to the same number of them and masks the others."""
    part, wanted = data.part("val"), case.group("out/val")
    assert [video.id for video in part.videos] == case.meta["val"]
    text, video = batches(part, data.inputs, data.stores, list(range(len(part.captions))))
    counts_VC = wanted["query_masks"].bool()
    assert part.captions_per_video() == counts_VC.sum(1).tolist()
    compare_words(text, wanted["text"][counts_VC], wanted["text_token_mask"][counts_VC])
    rows = torch.tensor([part.video_index.index(v) for v in range(len(part.videos))])
    compare_experts(VideoBatch.map(video, lambda tensor: tensor[rows]), wanted)


def compare_experts(video: VideoBatch, wanted: dict[str, torch.Tensor]) -> None:
    assert video.present_BE is not None
    for column, name in enumerate(video.features):
        present_B = wanted[f"ind/{name}"].bool()
        assert torch.equal(video.present_BE[:, column], present_B), name
        expected = wanted[f"experts/{name}"]
        assert torch.isnan(expected[~present_B]).all()
        torch.testing.assert_close(video.features[name], torch.nan_to_num(expected), rtol=1e-6, atol=0, msg=name)


def compare_words(text: TextBatch, expected: torch.Tensor, tokens: torch.Tensor) -> None:
    (name,) = text.features
    if text.features[name].ndim == 2:  # one mean vector; the reference keeps an axis of one token
        torch.testing.assert_close(text.features[name], expected[:, 0], rtol=1e-5, atol=1e-7)
        return
    torch.testing.assert_close(text.features[name], expected, rtol=1e-6, atol=0)
    assert torch.equal(text.feature_masks[name].sum(1), tokens.long())


def write_published_layout(case: Case, root: Path) -> None:
    """Pickles of features and lists below `features`, annotation files of the data set below `annotations`."""
    layout, features = case.meta["layout"], {}
    for key, tensor in case.group("in/feat").items():
        expert, _, video = key.rpartition("/")
        missing = tensor.shape == (1,) and bool(torch.isnan(tensor).all())
        features.setdefault(expert, {})[video] = float("nan") if missing else tensor.numpy()
    words: dict[str, dict[int, np.ndarray]] = {}
    for key, tensor in case.group("in/text").items():
        video, _, number = key.rpartition("/")
        words.setdefault(video, {})[int(number)] = tensor.numpy()
    features["text"] = {video: [arrays[k] for k in sorted(arrays)] for video, arrays in words.items()}
    for expert, content in features.items():
        path = root / "features" / layout[expert]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(content))
    folder = root / "annotations"
    folder.mkdir()
    for part, name in layout["lists"].items():
        (folder / name).write_text("\n".join(case.meta[part]))
    if case.meta["jsfusion_caption_idx"]:
        (folder / layout["jsfusion_idx"]).write_bytes(pickle.dumps(case.meta["jsfusion_caption_idx"]))
    write_captions(folder, {video: [f"sentence {k} of {video}" for k in arrays] for video, arrays in words.items()})


def write_captions(folder: Path, captions: dict[str, list[str]]) -> None:
    """Sentences in the files of MSR-VTT and of DiDeMo; their number is what counts here."""
    sentences = [{"video_id": v, "caption": c} for v, texts in captions.items() for c in texts]
    videos = [{"video_id": v, "category": 0, "split": "train"} for v in captions]
    (folder / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    rows = [
        {"annotation_id": n, "description": s["caption"], "video": s["video_id"], "times": [[0, 0]]}
        for n, s in enumerate(sentences)
    ]
    for part in ("train", "val", "test"):
        (folder / f"{part}_data.json").write_text(json.dumps(rows))


def data_module(case: Case, root: Path, inputs: InputSpec, stores: dict[str, Path]) -> RetrievalDataModule:
    """The benchmark that the case names ("MSRVTT dataset, split …"), under the split that its lists stand for."""
    kind = {"MSRVTT": MsrvttDataModule, "DiDeMo": DidemoDataModule}[case.meta["variant"].split()[0]]
    by_file = {name: list_name for list_name, names in LISTS.items() for name in names} | DIDEMO_LISTS
    parts = {part: by_file[name] for part, name in case.meta["layout"]["lists"].items()}
    policy = "paragraph" if case.meta["hyper"]["fuse_captions"] else "all"
    captions = {"train": policy, "val": "file" if case.meta["jsfusion_caption_idx"] else policy}
    return kind(
        name="golden",
        split=SplitSpec("golden", parts=parts, captions=captions),
        inputs=inputs,
        stores=stores,
        annotations_dir=str(root / "annotations"),
        videos_dir=str(root / "videos"),
    )


CHECKERS = {
    "dual_encoding": {"collate": check_collate},
    "collaborative_experts": {"data_*": check_experts},
}
