"""InternVideo: padding, number of frames, fresh start, what is trained, weight files, mistakes of the user."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from src.batch import TextBatch, VideoBatch
from src.errors import UserError
from src.models import evl_tower
from src.models.clip_tower import ClipTower
from src.models.evl_tower import EvlTower
from src.models.freeze import freeze_clip
from src.models.fusion_tower import FusionTower
from src.models.heads.seq_transf import SeqTransfHead
from src.models.heads.wti import WeightedTokenInteractionHead
from src.models.heads.xclip import XClipHead
from src.models.internvideo import InternVideo
from tests.tiny_clip import tiny_arch

TOWERS = ("global", "fusion")


def make(tower: str = "global", **options: Any) -> InternVideo:
    torch.manual_seed(0)
    model = InternVideo(arch=tiny_arch(), tower=tower, num_frames=4, max_words=6, **options).eval()  # type: ignore[arg-type]
    with torch.no_grad():  # a fresh decoder is the identity: nothing would depend on it
        for name, parameter in model.named_parameters():
            if ".dec." in name or ".dpe." in name or ".lmhra" in name or "temporal_cls" in name:
                parameter.normal_(std=0.1)
    return model


def texts(count: int = 3) -> TextBatch:
    torch.manual_seed(1)
    tokens = torch.randint(1, 60, (count, 6))
    tokens[:, 0], tokens[:, 5] = 62, 63
    return TextBatch(tokens, torch.ones(count, 6).bool(), torch.arange(count), torch.arange(count))


def videos(lengths: tuple[int, ...] = (4, 2, 3), time: int = 4) -> VideoBatch:
    generator = torch.Generator().manual_seed(2)
    frames = torch.randint(0, 256, (len(lengths), 12, 3, 16, 16), dtype=torch.uint8, generator=generator)[:, :time]
    mask = torch.arange(time)[None] < torch.tensor(lengths)[:, None]
    return VideoBatch(ids=torch.arange(len(lengths)), frames_BTCHW=frames, mask_BT=mask)


def vectors(model: InternVideo, video: VideoBatch) -> Tensor:
    return model.encode_video(video).parts["video"]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_masked_padding_changes_nothing(tower: str) -> None:
    model = make(tower)
    expected = vectors(model, videos((4, 2, 3)))
    close(vectors(model, videos((4, 2, 3), time=9)), expected)
    video = videos((4, 2, 3), time=5)
    assert video.frames_BTCHW is not None
    assert video.mask_BT is not None
    other = video.frames_BTCHW.float() / 255
    changed = other.masked_fill(~video.mask_BT[..., None, None, None], float("nan"))
    zeros = other.masked_fill(~video.mask_BT[..., None, None, None], 0.0)
    got, same = (
        vectors(model, VideoBatch(ids=video.ids, frames_BTCHW=x, mask_BT=video.mask_BT)) for x in (changed, zeros)
    )
    assert torch.equal(got, same)


@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_upstream_padding_takes_part(tower: str) -> None:
    model, short = make(tower, padding="upstream"), videos((4, 2, 3))
    longer = vectors(model, videos((4, 2, 3), time=8))
    assert (longer - vectors(model, short)).abs().max() > 1e-3
    masked = make(tower)
    close(vectors(masked, videos((4, 4, 4))), vectors(model, videos((4, 4, 4))))


@pytest.mark.parametrize("time", [1, 3, 7])
@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_any_number_of_frames(tower: str, time: int) -> None:
    got = vectors(make(tower), videos((time, 1), time=time))
    assert got.shape == (2, 32)
    assert got.isfinite().all()


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("lengths", [(0, 3), (0, 0)])
@torch.no_grad()
def test_a_video_without_frames_is_zero(tower: str, lengths: tuple[int, int]) -> None:
    got = vectors(make(tower), videos(lengths))
    assert torch.equal(got[0], torch.zeros(32))
    assert (got[1].norm() > 0.9) == (lengths[1] > 0)


@torch.no_grad()
def test_a_fresh_tower_is_clip_on_the_mean_class_token() -> None:
    """Of one frame that is CLIP itself; the sum that the last norm sees is halved, hence not exactly."""
    torch.manual_seed(0)
    clip = ClipTower(tiny_arch()).eval()
    for kind in (EvlTower, FusionTower):
        torch.manual_seed(0)
        tower = kind(tiny_arch()).eval()
        video = videos((1, 1), time=1)
        features = tower.encode_video(video.frames_BTCHW, video.mask_BT)
        expected = clip.encode_frames(video.frames_BTCHW, video.mask_BT)
        close(features.frames_BTD, expected)
        assert features.pooled_BD is not None
        torch.testing.assert_close(features.pooled_BD, expected[:, 0], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_frames_are_read_in_time() -> None:
    """The convolution over time is all that knows of order."""
    model, video = make(), videos((4,))
    assert video.frames_BTCHW is not None
    backwards = VideoBatch(ids=video.ids, frames_BTCHW=video.frames_BTCHW.flip(1), mask_BT=video.mask_BT)
    assert (vectors(model, backwards) - vectors(model, video)).abs().max() > 1e-4
    for conv in model.tower.clip.visual.transformer.dpe:
        conv.weight[:, :, [0, 2]] = 0
    close(vectors(model, backwards), vectors(model, video))


@torch.no_grad()
def test_evaluation_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, video = make(), videos((4, 2, 3))
    whole = vectors(model, video)
    monkeypatch.setattr(evl_tower, "FRAMES_AT_ONCE", 4)
    close(vectors(model, video), whole)


@torch.no_grad()
def test_short_captions_equal_padded_ones() -> None:
    tower = EvlTower(tiny_arch()).eval()
    tokens = torch.tensor([[62, 5, 9, 63, 0]])
    padded = torch.zeros(1, tower.context_length, dtype=torch.int64)
    padded[:, :5] = tokens
    close(tower.encode_text(tokens), tower.encode_text(padded))


@torch.no_grad()
def test_text_tokens_of_the_released_code_are_not_projected() -> None:
    model = make(text_tokens="upstream", head=WeightedTokenInteractionHead)
    tokens = texts().tokens_BL
    sentence, words = model.tower.encode_text_tokens(tokens)
    close(sentence, model.tower.encode_text(tokens))
    close(words @ model.tower.clip.text_projection, make().tower.encode_text_tokens(tokens)[1])


@pytest.mark.parametrize("padding", ["masked", "upstream"])
@pytest.mark.parametrize("tower", TOWERS)
def test_a_step_trains_every_trained_parameter(tower: str, padding: str) -> None:
    model = make(tower, padding=padding).train()
    model.loss(model.encode_text(texts()), model.encode_video(videos()))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"tower.clip.text_mask_embedding"}


def test_what_a_head_does_not_read_is_not_trained(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="src.models.internvideo"):
        model = make(head=WeightedTokenInteractionHead, text_tokens="upstream")
    frozen = {name for name, parameter in model.tower.clip.named_parameters() if not parameter.requires_grad}
    decoder = {name for name in frozen if name.startswith("visual.transformer.")}
    assert frozen - decoder == {"text_mask_embedding", "text_projection"}
    assert {name.split(".")[2] for name in decoder} == {"dpe", "dec", "temporal_cls_token", "balance"}
    assert "does not read the global token's decoder: " in caplog.text
    assert "does not read the text projection: 1 tensors" in caplog.text
    assert make(head=SeqTransfHead).tower.clip.text_projection.requires_grad


@pytest.mark.parametrize("tower", TOWERS)
def test_heads_have_a_place_for_every_frame_that_the_tower_gives(tower: str) -> None:
    model = make(tower, head=XClipHead)
    assert model.similarity(model.encode_text(texts()), model.encode_video(videos())).shape == (3, 3)


def test_batch_statistics_are_not_of_chunks() -> None:
    make("global").configure_loss(cache_chunks=2)
    with pytest.raises(UserError, match=r"found batch normalisation .*set loss\.cache_chunks=1"):
        make("fusion").configure_loss(cache_chunks=2)


def test_half_precision_keeps_scores_whole() -> None:
    model = make().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        text, video = model.encode_text(texts()), model.encode_video(videos())
        assert {x.dtype for x in (*text.parts.values(), *video.parts.values())} == {torch.float32}
        with model.exact_arithmetic():
            scores = model.similarity(text, video)
    assert scores.dtype == torch.float32
    exact = model.similarity(model.encode_text(texts()), model.encode_video(videos()))
    assert 0 < (scores - exact).abs().max() < 0.5
    scores.sum().backward()


def test_recomputed_activations_give_the_same_gradients() -> None:
    kept, recomputed = make().train(), make(activation_checkpointing=True).train()
    for model in (kept, recomputed):
        model.loss(model.encode_text(texts()), model.encode_video(videos()))["loss"].backward()
    for (name, expected), got in zip(kept.named_parameters(), recomputed.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(got.grad, expected.grad, msg=name)
    with pytest.raises(UserError, match="batch"):
        make("fusion", activation_checkpointing=True)


@pytest.mark.parametrize("rule", ["intended", "upstream"])
def test_freezing(rule: Any) -> None:
    tower = FusionTower(tiny_arch(), decoder_layers=1)
    freeze_clip(tower, 1, rule)
    trained = {name for name, parameter in tower.clip.named_parameters() if parameter.requires_grad}
    for name in ("transformer.resblocks.1.ln_1.bias", "visual.transformer.dec.0.ln_3.bias", "text_projection"):
        assert name in trained
    for name in ("visual.conv1.weight", "visual.transformer.resblocks.0.ln_1.bias", "token_embedding.weight"):
        assert name not in trained
    new = {"visual_proj", "visual_ln_post.bias", "visual.transformer.balance"}
    new |= {"visual.transformer.temporal_cls_token", "visual.transformer.resblocks.0.lmhra1.pos_embed.0.bias"}
    assert trained & new == (new if rule == "intended" else set())


def written(folder: Path, prefix: str = "clip.") -> tuple[EvlTower, str]:
    torch.manual_seed(5)
    tower = EvlTower(tiny_arch())
    path = folder / "internvideo.ckpt"
    torch.save({"state_dict": {f"{prefix}{name}": x for name, x in tower.clip.state_dict().items()}}, path)
    return tower, str(path)


def test_weights_are_merged_with_those_of_clip(tmp_path: Path) -> None:
    tower, path = written(tmp_path)
    clip = ClipTower(tiny_arch()).clip.state_dict()
    save_file(clip, tmp_path / "clip.safetensors")
    merged = make(pretrained=None, merge_clip="openai").tower  # an empty model, to be filled later
    assert isinstance(merged, EvlTower)
    merged = EvlTower(tiny_arch(), path, merge_clip=str(tmp_path / "clip.safetensors"), merge_weight=0.25)
    got, own = merged.clip.state_dict(), tower.clip.state_dict()
    close(got["ln_final.weight"], 0.25 * clip["ln_final.weight"] + 0.75 * own["ln_final.weight"])
    patches = "visual.conv1.weight"
    close(got[patches][:, :, 0], torch.lerp(own[patches][:, :, 0], clip[patches], 0.25))
    assert torch.equal(got["visual_proj"], own["visual_proj"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arch": "RN50"}, "plain CLIP ViT"),
        ({"arch": "coca_ViT-B-32"}, "plain CLIP ViT"),
        ({"decoder_layers": 3}, "expected 1 to 2"),
        ({"decoder_layers": 0}, "expected 1 to 2"),
        ({"num_frames": 0}, "num_frames=0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=words):
        InternVideo(**{"arch": tiny_arch(), **options})


def test_tokens_of_another_width_are_not_compared(tmp_path: Path) -> None:
    config = open_clip.get_model_config(tiny_arch())
    assert config is not None
    config["embed_dim"] = 24
    (tmp_path / "unit-test-narrow.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "unit-test-narrow.json")
    with pytest.raises(UserError, match="width 32 with frames of width 24"):
        EvlTower("unit-test-narrow", text_tokens="upstream")


def test_weights_that_make_no_sense(tmp_path: Path) -> None:
    _, path = written(tmp_path)
    save_file(ClipTower(tiny_arch()).clip.state_dict(), tmp_path / "clip.safetensors")
    clip = str(tmp_path / "clip.safetensors")
    with pytest.raises(UserError, match="merge_clip=null"):
        make(pretrained=clip, merge_clip=clip)
    with pytest.raises(UserError, match=r"merge_weight=1\.5"):
        make(pretrained=path, merge_clip=clip, merge_weight=1.5)
    with pytest.raises(UserError, match=r"model\.merge_clip=nowhere is neither a file nor a tag"):
        make(pretrained=path, merge_clip="nowhere")
    save_file({"model.visual.proj": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"merge_clip=.*other\.safetensors has none of the tower's tensors"):
        make(pretrained=path, merge_clip=str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match="QuickGELU"):
        InternVideo(arch="videotext-tiny", pretrained=path)
    with pytest.raises(UserError, match="does not fit"):
        EvlTower(tiny_arch(), path, decoder_layers=1)
    with pytest.raises(UserError, match=r"model\.max_words=10"):
        _ = InternVideo(arch=tiny_arch(), max_words=77).input_spec


def test_frames_of_another_size() -> None:
    video = VideoBatch(
        ids=torch.arange(1),
        frames_BTCHW=torch.zeros(1, 2, 3, 24, 24, dtype=torch.uint8),
        mask_BT=torch.ones(1, 2).bool(),
    )
    with pytest.raises(UserError, match="24×24"):
        make().encode_video(video)


def test_the_head_is_told_the_options() -> None:
    model = make(head=partial(WeightedTokenInteractionHead, arch=1))
    assert model.head.reads_frames
    assert "frames" in model.encode_video(videos()).parts
