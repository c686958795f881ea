"""The space-time transformer against a plain one with masks, its start from ViTs, positions in time."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from src.errors import UserError
from src.models import space_time
from src.models.space_time import SpaceTimeTransformer, VitSize, fit_temporal, vit_size, vit_state

SIZES: dict[str, Any] = {"image_size": 16, "patch_size": 8, "width": 24, "depth": 2, "heads": 3, "num_frames": 3}


def tower(**changes: Any) -> SpaceTimeTransformer:
    torch.manual_seed(0)
    made = SpaceTimeTransformer(**{**SIZES, "time_init": "rand", **changes})
    with torch.no_grad():
        made.temporal_embed.normal_()
    return made


def masked_attention(layer: nn.Module, x_BSD: Tensor, same_group_SS: Tensor) -> Tensor:
    """Full attention in which patches outside the own group do not exist; the class token is in every group."""
    batch, tokens, width = x_BSD.shape
    q, k, v = layer.qkv(x_BSD).split(width, dim=2)
    q, k, v = (part.view(batch, tokens, layer.heads, -1).transpose(1, 2) for part in (q, k, v))
    allowed = same_group_SS.clone()
    allowed[0, :] = True
    allowed[:, 0] = True
    scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).masked_fill(~allowed, float("-inf"))
    merged = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width)
    return layer.proj(merged)


def plain_forward(model: SpaceTimeTransformer, video: Tensor) -> Tensor:
    frames, patches = video.shape[1], model.pos_embed.shape[1] - 1
    frame_of = torch.arange(frames).repeat_interleave(patches)
    place_of = torch.arange(patches).repeat(frames)
    minus = torch.tensor([-1])
    groups = {name: torch.cat([minus, of]) for name, of in (("time", place_of), ("space", frame_of))}
    same = {name: of[:, None] == of[None, :] for name, of in groups.items()}
    x = model.embed(video)
    for block in model.blocks:
        time = x + masked_attention(block.timeattn, block.norm3(x), same["time"])
        space = x + masked_attention(block.attn, block.norm1(time), same["space"])
        x = space + block.mlp(block.norm2(space))
    return model.norm(x)[:, 0]


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_divided_attention_is_masked_attention(frames: int) -> None:
    model, video = tower().double(), torch.randn(2, frames, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(model(video), plain_forward(model, video))


def test_more_groups_than_a_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, video = tower(), torch.randn(2, 3, 3, 16, 16)
    whole = model(video)
    monkeypatch.setattr(space_time, "MOST_GROUPS", 3)
    torch.testing.assert_close(model(video), whole)


def test_positions_are_those_of_place_and_time() -> None:
    model, video = tower(), torch.randn(2, 3, 3, 16, 16)
    tokens = model.embed(video)
    torch.testing.assert_close(tokens[:, 0], (model.cls_token + model.pos_embed[:, :1])[:, 0].expand(2, -1))
    patch = model.patch_embed.proj(video[:, 2])[:, :, 1, 0]  # frame 2, second row, first column: place 2 of 4
    torch.testing.assert_close(tokens[:, 1 + 2 * 4 + 2], patch + model.pos_embed[0, 3] + model.temporal_embed[0, 2])


def test_time_that_starts_at_zero_adds_nothing_and_learns() -> None:
    model, video = tower(time_init="zeros"), torch.randn(2, 3, 3, 16, 16)
    block = model.blocks[0]
    assert isinstance(block, nn.Module)
    x = model.embed(video)
    assert not block.timeattn(block.norm3(x), 3, "time").any()
    model(video).sum().backward()
    assert block.timeattn.qkv.weight.grad.abs().sum() > 0
    assert torch.equal(block.timeattn.proj.weight, torch.ones(24, 24))


def test_order_of_frames_matters_only_with_positions_in_time() -> None:
    model, video = tower(), torch.randn(1, 3, 3, 16, 16)
    assert not torch.allclose(model(video), model(video.flip(1)), atol=1e-3)
    with torch.no_grad():
        model.temporal_embed.zero_()
    torch.testing.assert_close(model(video), model(video.flip(1)))


@pytest.mark.parametrize("shape", [(1, 4, 3, 16, 16), (1, 2, 3, 24, 16)])
def test_frames_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"found .* frames of .* px, expected at most 3 of 16×16"):
        tower()(torch.zeros(shape))


@pytest.mark.parametrize("changes", [{"patch_size": 7}, {"heads": 5}, {"num_frames": 0}, {"depth": 0}])
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="image_size a multiple of patch_size"):
        tower(**changes)


def test_weights_in_half_precision_read_pixels_in_full() -> None:
    video = torch.randn(2, 3, 3, 16, 16)
    found = tower().bfloat16()(video)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), tower()(video), atol=0.1, rtol=0.1)


def vit() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
    ).eval()


def test_starts_as_the_vit_of_timm(tmp_path: Path) -> None:
    network, video = vit(), torch.randn(2, 1, 3, 16, 16)
    save_file({name: value.half() for name, value in network.state_dict().items()}, tmp_path / "vit.safetensors")
    state = vit_state(str(tmp_path / "vit.safetensors"), "vit_tiny_patch16_224")
    model = tower(time_init="zeros")
    kept, unused = model.start_from_vit(network.state_dict(), "timm")
    assert {re.sub(r"blocks\.\d+", "blocks.N", name) for name in kept} == {
        "temporal_embed",
        *(f"blocks.N.timeattn.{layer}.{what}" for layer in ("qkv", "proj") for what in ("weight", "bias")),
        *(f"blocks.N.norm3.{what}" for what in ("weight", "bias")),
    }
    assert unused == ["head.weight", "head.bias"]
    with torch.no_grad():
        model.temporal_embed.zero_()
        torch.testing.assert_close(model(video), network.forward_features(video[:, 0])[:, 0], atol=1e-5, rtol=1e-5)
    assert all(value.dtype is torch.float32 for value in state.values())
    assert sorted(model.start_from_vit(state, "file")[1]) == sorted(unused)


def test_other_vits_are_refused() -> None:
    state = vit().state_dict()
    with pytest.raises(UserError, match=r"larger does not fit.*pos_embed \(1, 5, 24\) instead of \(1, 17, 24\)"):
        tower(image_size=32).start_from_vit(state, "larger")
    with pytest.raises(UserError, match=r"1 missing: blocks.1.mlp.fc1.bias"):
        tower().start_from_vit({k: v for k, v in state.items() if k != "blocks.1.mlp.fc1.bias"}, "cut")


def test_weights_by_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"neither a file nor a tag of vit_base_patch16_224 \(tags: .*orig_in21k_ft_in1k"
    ):
        vit_state("nowhere.pth", "vit_base_patch16_224")

    def offline(name: str, pretrained: bool) -> nn.Module:
        assert name == "vit_base_patch16_224.orig_in21k_ft_in1k"
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"could not be fetched \(no route to host\).*timm/vit_base.*vit_weights=FILE"):
        vit_state("orig_in21k_ft_in1k", "vit_base_patch16_224")


def test_shapes_by_name() -> None:
    assert vit_size("vit_base_patch16_224") == VitSize(224, 16, 768, 12, 12)
    assert vit_size("videotext-tiny").image_size == 64
    for name in ("vit_tiny_patch16_224", "vit_small_patch32_384", "vit_large_patch16_224"):
        with torch.device("meta"):
            network: Any = timm.create_model(name)
        size = vit_size(name)
        assert network.embed_dim == size.width
        assert len(network.blocks) == size.depth
        assert network.blocks[0].attn.num_heads == size.heads
        assert network.pos_embed.shape[1] == 1 + (size.image_size // size.patch_size) ** 2
    with pytest.raises(UserError, match=r"model.vit=resnet50, expected vit_SIZE"):
        vit_size("resnet50")


def test_published_size() -> None:
    with torch.device("meta"):
        model = SpaceTimeTransformer(**vars(vit_size("vit_base_patch16_224")), num_frames=4)
    assert sum(parameter.numel() for parameter in model.parameters()) == 114_168_576
    assert space_time.EPS == model.norm.eps == 1e-6


def test_positions_for_other_numbers_of_frames() -> None:
    table = torch.tensor([[[0.0, 10.0], [4.0, 30.0]]])
    assert fit_temporal(table, 1).tolist() == [[[0, 10]]]
    assert fit_temporal(table, 3).tolist() == [[[0, 10], [4, 30], [0, 0]]]
    assert fit_temporal(table, 4, "interp").tolist() == [[[0, 10], [0, 10], [4, 30], [4, 30]]]
    assert fit_temporal(table, 4, "bilinear").tolist() == [[[0, 10], [1, 15], [3, 25], [4, 30]]]
