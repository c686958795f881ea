"""Frozen in Time: pixels, padding, losses, checkpoints, and what training does to frames."""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from src.batch import FrameSpec, TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.data.annotation import CaptionRecord, VideoRecord
from src.data.cache_writer import begin, write_shard
from src.data.datasets import FrameSource, TrainPairs, VideoItems
from src.data.frame_cache import FrameCache, Recipe, load_frames
from src.data.frozen_transforms import IMAGENET_MEAN, IMAGENET_STD, evaluation_frames
from src.data.splits import SplitPart
from src.data.transforms import to_square, to_training_square
from src.errors import UserError
from src.models.frozen import Frozen
from src.models.space_time import fit_temporal
from tests.clips import make_clip, true_frames


def model(**changes: Any) -> Frozen:
    torch.manual_seed(0)
    options = {
        "text_model": "videotext-tiny",
        "vit": "videotext-tiny",
        "image_size": 16,
        "patch_size": 8,
        "width": 96,
        "depth": 1,
        "num_frames": 3,
        "projection_dim": 8,
    }
    made = Frozen(**{**options, **changes}).eval()
    assert made.video_model is not None
    with torch.no_grad():
        made.video_model.temporal_embed.normal_()
    return made


def clip(frames: int = 3, valid: int = 3) -> VideoBatch:
    pixels = torch.randint(
        0, 256, (2, frames, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    mask_BT = torch.arange(frames).expand(2, -1) < valid
    pixels[~mask_BT] = 0
    return VideoBatch(torch.arange(2), pixels, mask_BT)


# ---- the model ---------------------------------------------------------------------------------


def test_what_it_asks_for() -> None:
    spec = model(max_words=20).input_spec
    assert spec.frames == FrameSpec(3, 16, "frozen", resize="frozen", augment="frozen")
    assert spec.tokenizer is not None
    assert spec.tokenizer(["a red circle"])[0].shape == (1, 20)
    assert model(sampling="uniform", resize="squash", augment="none").input_spec.frames == FrameSpec(
        3, 16, "uniform", resize="squash"
    )


def test_pixels_are_normalised_and_empty_frames_are_zero() -> None:
    found = model().normalised(clip(valid=2))
    pixel = clip(valid=2).frames_BTCHW[1, 1, :, 5, 6] / 255  # type: ignore[index]
    expected = (pixel - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(found[1, 1, :, 5, 6], expected)
    assert not found[:, 2].any()
    already = replace(clip(valid=2), frames_BTCHW=found)
    assert model().normalised(already) is found


def test_empty_frames_are_attended_to() -> None:
    network, short = model(), clip(valid=2)
    assert short.frames_BTCHW is not None
    assert short.mask_BT is not None
    cut = replace(short, frames_BTCHW=short.frames_BTCHW[:, :2], mask_BT=short.mask_BT[:, :2])
    assert not torch.allclose(network.video_features(short), network.video_features(cut), atol=1e-3)


def test_similarity_is_the_cosine_also_of_zeros() -> None:
    text = TextEmbedding(torch.arange(2), {"text": torch.tensor([[3.0, 4.0], [0.0, 0.0]])}, video_ids=torch.arange(2))
    video = VideoEmbedding(torch.arange(1), {"video": torch.tensor([[5.0, 0.0]])})
    assert model().similarity(text, video).tolist() == [pytest.approx([0.6]), [0.0]]


def test_projections() -> None:
    assert [type(layer).__name__ for layer in model().txt_proj] == ["ReLU", "Linear"]  # type: ignore[union-attr,arg-type]
    assert [type(layer).__name__ for layer in model().vid_proj] == ["Linear"]  # type: ignore[union-attr,arg-type]
    plain = model(projection="none")
    assert plain.encode_video(clip()).parts["video"].shape == (2, 96)
    with pytest.raises(UserError, match="found 96 numbers for captions and 48 for videos"):
        model(projection="none", width=48)
    with pytest.raises(UserError, match=r"model\.projection_dim=0, expected at least 1"):
        model(projection_dim=0)


def embeddings(count: int = 4) -> tuple[TextEmbedding, VideoEmbedding]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.arange(count)
    text = TextEmbedding(ids, {"text": torch.randn(count, 5, generator=generator)}, video_ids=ids // 2)
    return text, VideoEmbedding(ids // 2, {"video": torch.randn(count, 5, generator=generator)})


def test_losses() -> None:
    text, video = embeddings()
    scores = model().similarity(text, video)
    both = -(scores / 0.05).log_softmax(1).diagonal().mean() - (scores / 0.05).log_softmax(0).diagonal().mean()
    torch.testing.assert_close(model().loss(text, video)["loss"], both)
    assert model(temperature=0.5).loss(text, video)["loss"] < both
    own = scores.diagonal()
    costs = torch.cat([(0.3 - own[:, None] + scores).relu(), (0.3 - own[None] + scores).relu()])
    hinge = (costs.sum() - 8 * 0.3) / 24
    torch.testing.assert_close(model(loss="max_margin", margin=0.3).loss(text, video)["loss"], hinge)
    assert model(same_video_positives=True).loss(text, video)["loss"] < both
    with pytest.raises(UserError, match="max_margin counts every other video"):
        model(loss="max_margin", same_video_positives=True)


def test_every_parameter_learns() -> None:
    network = model(num_frames=3, time_init="rand")
    tokenizer = network.input_spec.tokenizer
    assert tokenizer is not None
    tokens_BL, mask_BL = tokenizer(["a red circle", "a blue square"])
    text = network.encode_text(TextBatch(tokens_BL, mask_BL, torch.arange(2), torch.arange(2)))
    network.loss(text, network.encode_video(clip()))["loss"].backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_published_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "distilbert"}))  # every number as published
    with torch.device("meta"):
        network = Frozen(text_model=str(tmp_path))
    assert sum(parameter.numel() for parameter in network.parameters()) == 180_925_184
    assert network.frames == FrameSpec(4, 224, "frozen", resize="frozen", augment="frozen")


# ---- checkpoints -----------------------------------------------------------------------------------


def save(path: Path, state: dict[str, Tensor], prefix: str = "module.") -> str:
    torch.save({"epoch": 3, "state_dict": {prefix + name: value for name, value in state.items()}}, path)
    return str(path)


def test_published_files_load_with_other_numbers_of_frames(tmp_path: Path) -> None:
    published = model(num_frames=2).state_dict()
    extra = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    file = save(tmp_path / "frozen.pth", published | extra)
    for frames, how in ((1, "zeros"), (2, "zeros"), (4, "interp"), (4, "bilinear"), (4, "zeros")):
        torch.manual_seed(9)
        loaded = Frozen(
            **{
                "text_model": "videotext-tiny", "vit": "videotext-tiny", "image_size": 16, "patch_size": 8,
                "depth": 1, "num_frames": frames, "projection_dim": 8, "pretrained": file, "load_temporal": how,
            }  # type: ignore[arg-type]
        ).state_dict()  # fmt: skip
        assert loaded.keys() == published.keys()
        expected = fit_temporal(published["video_model.temporal_embed"], frames, how)  # type: ignore[arg-type]
        assert torch.equal(loaded.pop("video_model.temporal_embed"), expected)
        assert all(torch.equal(value, published[name]) for name, value in loaded.items())


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = model().state_dict()
    removed = {name: value for name, value in state.items() if name != "txt_proj.1.bias"}
    with pytest.raises(UserError, match=r"1 missing: txt_proj.1.bias; 1 unexpected: query_token"):
        model(pretrained=save(tmp_path / "a.pth", removed | {"query_token": torch.zeros(1, 8)}))
    with pytest.raises(UserError, match=r"video_model.pos_embed \(1, 5, 96\) instead of \(1, 17, 96\)"):
        model(image_size=32, pretrained=save(tmp_path / "b.pth", state))


def test_what_may_be_fresh_and_what_is_left_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, target = model(), model()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("txt_proj")}
    file = save(tmp_path / "part.pth", state | {"ocr_model.weight": torch.zeros(1)}, prefix="")
    before = target.state_dict()["txt_proj.1.weight"].clone()
    with caplog.at_level(logging.INFO):
        target.load_pretrained(file, fresh=re.compile("txt_proj"), unused=re.compile("ocr_model"))
    assert torch.equal(target.state_dict()["txt_proj.1.weight"], before)
    assert torch.equal(target.state_dict()["vid_proj.0.weight"], source.state_dict()["vid_proj.0.weight"])
    assert "2 tensors not read, start afresh: txt_proj.1.bias, txt_proj.1.weight" in caplog.text
    assert "1 tensors not used: ocr_model.weight" in caplog.text


def test_an_empty_model_reads_nothing() -> None:
    with torch.device("meta"):
        empty = model(vit_weights="nowhere.pth")
    assert all(parameter.is_meta for parameter in empty.parameters())
    with pytest.raises(UserError, match="neither a file nor a tag"):
        model(vit="vit_base_patch16_224", vit_weights="nowhere.pth")


# ---- frames of training ----------------------------------------------------------------------------

SPEC = FrameSpec(num_frames=4, image_size=32, sampling="frozen", resize="textvr", augment="textvr")


@pytest.fixture
def records(tmp_path: Path) -> list[VideoRecord]:
    """A normal video, one of three frames, one of a single frame."""
    counts = {"long": 30, "short": 3, "one": 1}
    return [VideoRecord(name, make_clip(tmp_path / f"{name}.mp4", count)) for name, count in counts.items()]


def part(records: Sequence[VideoRecord]) -> SplitPart:
    captions = tuple(CaptionRecord(record.id, "a clip") for record in records)
    return SplitPart("train", tuple(records), captions, tuple(range(len(records))))


def disk_cache(folder: Path, records: list[VideoRecord], spec: FrameSpec) -> Path:
    recipe = Recipe(spec, extra_frames=8)
    begin(folder, recipe)
    assert write_shard(folder, "shard-0", records, recipe, 20) == (len(records), [])
    return folder


def source(records: list[VideoRecord], mode: str, folder: Path, spec: FrameSpec = SPEC) -> FrameSource:
    if mode == "disk":
        disk_cache(folder, records, spec)
    return FrameSource(spec, cache=mode, cache_dir=folder)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["none", "memory", "disk"])
@pytest.mark.parametrize("augment", ["textvr", "frozen"])
def test_training_frames_depend_on_seed_epoch_and_item_only(
    records: list[VideoRecord], tmp_path: Path, mode: str, augment: str
) -> None:
    spec = replace(SPEC, augment=augment, resize=augment)  # type: ignore[arg-type]
    frames = source(records, mode, tmp_path / "cache", spec)
    first = TrainPairs(part(records), frames, seed=7)
    again = TrainPairs(part(records), pickle.loads(pickle.dumps(frames)), seed=7)  # noqa: S301 our own

    def pixels(pairs: TrainPairs, epoch: int, index: int) -> np.ndarray:
        item = pairs[epoch, index]
        assert item is not None
        return item.frames.frames_TCHW

    shown = VideoItems(part(records), frames)[0]
    for index in range(3):
        np.testing.assert_array_equal(pixels(first, 0, index), pixels(again, 0, index))
        assert (pixels(first, 0, index) != pixels(first, 1, index)).any()
    assert (pixels(TrainPairs(part(records), frames, seed=8), 0, 0) != pixels(first, 0, 0)).any()
    # Evaluation sees the plain frames, before and after.
    plain = load_frames(records[0], replace(spec, augment="none"))[0]
    evaluated = VideoItems(part(records), frames)[0]
    assert shown is not None
    assert evaluated is not None
    np.testing.assert_array_equal(shown.frames.frames_TCHW, plain)
    np.testing.assert_array_equal(evaluated.frames.frames_TCHW, plain)


@pytest.mark.parametrize("mode", ["none", "memory", "disk"])
def test_short_videos_train_and_stay_padded_with_zeros(records: list[VideoRecord], tmp_path: Path, mode: str) -> None:
    pairs = TrainPairs(part(records), source(records, mode, tmp_path / "cache"), seed=0)
    for index, valid in ((1, 3), (2, 1)):  # as many intervals as frames: upstream fails on both
        for epoch in range(5):
            item = pairs[epoch, index]
            assert item is not None
            assert item.frames.n_valid == valid
            assert item.frames.frames_TCHW.shape == (4, 3, 32, 32)
            assert item.frames.frames_TCHW[:valid].any(axis=(1, 2, 3)).all()
            assert not item.frames.frames_TCHW[valid:].any()


def test_all_frames_of_a_clip_change_alike(records: list[VideoRecord]) -> None:
    still_THWC = np.repeat(true_frames(records[0].path)[:1], 4, axis=0)  # type: ignore[arg-type]
    for augment in ("frozen", "textvr"):
        spec = replace(SPEC, augment=augment)  # type: ignore[arg-type]
        found = to_training_square(still_THWC, spec, np.random.default_rng(3))
        assert found.dtype == np.uint8
        for other in found[1:]:
            np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("recipe", ["frozen", "textvr"])
def test_squares_are_the_published_frames_in_eight_bits(records: list[VideoRecord], recipe: str) -> None:
    frames_THWC = true_frames(records[0].path)[:2]  # type: ignore[arg-type]
    squares = to_square(frames_THWC, FrameSpec(2, 56, resize=recipe))  # type: ignore[arg-type]
    float_TCHW = torch.from_numpy(frames_THWC).permute(0, 3, 1, 2).float() / 255
    published = evaluation_frames(float_TCHW, recipe, size=56, center_crop=64)  # type: ignore[arg-type]
    std = torch.tensor(IMAGENET_STD)[:, None, None]
    plain = published * std + torch.tensor(IMAGENET_MEAN)[:, None, None]
    assert squares.dtype == np.uint8
    assert (torch.from_numpy(squares).float() / 255 - plain).abs().max() <= 0.5 / 255 + 1e-6


def test_a_cache_serves_models_that_change_frames_otherwise(records: list[VideoRecord], tmp_path: Path) -> None:
    folder = disk_cache(tmp_path / "cache", records, SPEC)
    FrameCache.open(folder, replace(SPEC, augment="none"))
    with pytest.raises(UserError, match=r"made with resize=textvr, expected resize=squash;"):
        FrameCache.open(folder, replace(SPEC, resize="squash"))
    assert "augment" not in json.loads((folder / "manifest.json").read_text())["recipe"]
