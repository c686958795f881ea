"""The CLIP tower: names and sizes of open_clip, weight files, pixels, token outputs."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from src.errors import UserError
from src.models.clip_tower import CLIP_MEAN, CLIP_STD, MAX_LOGIT_SCALE, ClipTower, normalise_frames
from src.models.freeze import freeze_clip
from src.models.tokenizer import PretrainedTokenizer
from tests.tiny_clip import tiny_arch


@pytest.fixture(scope="module")
def tower() -> ClipTower:
    torch.manual_seed(0)
    return ClipTower(tiny_arch()).eval()


def test_vit_b_32_has_the_published_names_and_size() -> None:
    with torch.device("meta"):
        tower = ClipTower("ViT-B-32-quickgelu")
        reference = open_clip.create_model("ViT-B-32-quickgelu", device="meta")
    assert tower.clip.state_dict().keys() == reference.state_dict().keys()
    assert sum(p.numel() for p in tower.parameters()) == 151_277_313
    assert (tower.image_size, tower.embed_dim, tower.context_length) == (224, 512, 77)


def test_tiny_architecture_is_registered() -> None:
    with torch.device("meta"):
        tower = ClipTower("videotext-tiny")
    assert tower.image_size == 64
    assert tower.tokenizer(16).end_id == tower.config["text_cfg"]["vocab_size"] - 1


def test_text_equals_open_clip_on_padded_captions(tower: ClipTower) -> None:
    tokens_BL = torch.tensor([[62, 5, 9, 63, 0], [62, 63, 0, 0, 0]])
    padded = torch.zeros(2, tower.context_length, dtype=torch.int64)
    padded[:, :5] = tokens_BL
    with torch.no_grad():
        pooled, tokens_BLD = tower.encode_text_tokens(tokens_BL)
        torch.testing.assert_close(pooled, tower.clip.encode_text(padded))
        torch.testing.assert_close(tower.encode_text(tokens_BL), pooled)
    assert tokens_BLD.shape == (2, 5, 32)
    torch.testing.assert_close(tokens_BLD[0, 3], pooled[0])


def test_frames_equal_encode_image(tower: ClipTower) -> None:
    frames = torch.randn(2, 3, 3, 16, 16)
    with torch.no_grad():
        got = tower.encode_frames(frames, torch.ones(2, 3).bool())
        torch.testing.assert_close(got, tower.clip.encode_image(frames.flatten(0, 1)).view(2, 3, 32))


def test_pixels_are_normalised_and_padding_is_exactly_zero() -> None:
    frames = torch.randint(0, 256, (2, 2, 3, 4, 4), dtype=torch.uint8)
    mask = torch.tensor([[True, False], [True, True]])
    pixels = normalise_frames(frames, torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD), mask)
    assert (pixels[0, 1] == 0).all()
    expected = (frames[1, 0, 2, 3, 3] / 255 - CLIP_MEAN[2]) / CLIP_STD[2]
    torch.testing.assert_close(pixels[1, 0, 2, 3, 3], expected)
    floats = torch.randn(1, 1, 3, 4, 4)
    assert normalise_frames(floats, torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)) is floats


def test_3d_patches_start_as_2d_and_look_at_neighbours() -> None:
    torch.manual_seed(0)
    flat = ClipTower(tiny_arch()).eval()
    deep = ClipTower(tiny_arch(), linear_patch="3d").eval()
    deep.clip.load_state_dict(flat.clip.state_dict())
    deep.patch_conv3d = deep._make_patch_conv3d()
    frames, mask = torch.randn(1, 4, 3, 16, 16), torch.ones(1, 4).bool()
    with torch.no_grad():
        torch.testing.assert_close(deep.encode_frames(frames, mask), flat.encode_frames(frames, mask))
        nn.init.normal_(deep.patch_conv3d.weight)
        before = deep.encode_frames(frames, mask)
        frames[0, 3] += 1
        moved = (deep.encode_frames(frames, mask) - before).abs().amax(-1)[0] > 1e-6
    assert moved.tolist() == [False, False, True, True]
    assert not deep.clip.visual.conv1.weight.requires_grad


def test_logit_scale_is_clamped() -> None:
    tower = ClipTower(tiny_arch())
    with torch.no_grad():
        tower.logit_scale.fill_(9.0)
    tower.clamp_logit_scale()
    assert tower.logit_scale.item() == pytest.approx(MAX_LOGIT_SCALE)


class Archive(nn.Module):
    """Looks like OpenAI's archive: half-precision weights and three scalars."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in state.items():
            holder: nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(holder, part):
                    holder.add_module(part, nn.Module())
                holder = getattr(holder, part)
            holder.register_buffer(leaf, value.half())
        for name in ("input_resolution", "context_length", "vocab_size"):
            self.register_buffer(name, torch.tensor(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("kind", ["archive", "pt", "wrapped", "safetensors"])
@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_local_weight_files(tower: ClipTower, tmp_path: Path, kind: str) -> None:
    state = {name: value.half().float() for name, value in tower.clip.state_dict().items()}
    path = tmp_path / ("clip.safetensors" if kind == "safetensors" else "clip.pt")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "archive":
        torch.jit.save(torch.jit.script(Archive(state)), path)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}} if kind == "wrapped" else state, path)
    loaded = ClipTower(tiny_arch(), pretrained=str(path))
    for name, value in loaded.clip.state_dict().items():
        assert value.dtype is torch.float32
        assert torch.equal(value, state[name]), name


def test_weights_of_another_size_are_listed(tower: ClipTower, tmp_path: Path) -> None:
    state = tower.clip.state_dict()
    state["text_projection"] = torch.zeros(3, 3)
    state["surplus"] = torch.zeros(1)
    del state["ln_final.bias"]
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(UserError, match=r"1 missing: ln_final.bias; 1 unexpected: surplus; 1 wrongly shaped: text_pro"):
        ClipTower(tiny_arch(), pretrained=str(tmp_path / "clip.pt"))


@pytest.mark.parametrize(
    ("arch", "pretrained", "message"),
    [
        ("ViT-B-32-quickgellu", None, "did you mean ViT-B-32-quickgelu"),
        ("ViT-B-32", "openai", "set model.arch=ViT-B-32-quickgelu"),
        ("ViT-B-32-quickgelu", "opneai", "neither a file nor a tag.*openai"),
    ],
)
def test_mistakes_name_the_remedy(arch: str, pretrained: str | None, message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=message):
        ClipTower(arch, pretrained)


def test_sizes_that_do_not_fit(tower: ClipTower) -> None:
    with pytest.raises(UserError, match="16×16"):
        tower.encode_frames(torch.zeros(1, 1, 3, 8, 8), torch.ones(1, 1).bool())
    with pytest.raises(UserError, match="max_words=10 or less"):
        tower.encode_text(torch.ones(1, 11, dtype=torch.int64))
    with pytest.raises(UserError, match="max_words=10 or less"):
        tower.tokenizer(11)


def test_foreign_text_tower_gives_pooled_vectors_only() -> None:
    torch.manual_seed(0)
    clip = open_clip.create_model(tiny_arch(), force_custom_text=True)
    tower = ClipTower(tiny_arch())
    tower.clip, tower.is_plain = clip.eval(), False
    tokens_BL = torch.tensor([[62, 5, 9, 63, 0]])
    padded = torch.zeros(1, 10, dtype=torch.int64)
    padded[:, :5] = tokens_BL
    with torch.no_grad():
        torch.testing.assert_close(tower.encode_text(tokens_BL), clip.encode_text(padded))
    with pytest.raises(UserError, match=r"model\.head=meanP"):
        tower.encode_text_tokens(tokens_BL)
    with pytest.raises(UserError, match="freeze_layers=-1"):
        freeze_clip(tower, 0)


TOP = {"logit_scale", "text_projection", "visual.proj", "ln_final.weight", "ln_final.bias"}
TOP |= {"visual.ln_post.weight", "visual.ln_post.bias"}


@pytest.mark.parametrize(("freeze_layers", "blocks"), [(0, {0, 1}), (1, {1}), (2, set())])
def test_freeze_rule(freeze_layers: int, blocks: set[int]) -> None:
    tower = ClipTower(tiny_arch())
    freeze_clip(tower, freeze_layers)
    trained = {name for name, p in tower.clip.named_parameters() if p.requires_grad}
    in_blocks = {name for name in trained if "resblocks" in name}
    assert trained - in_blocks == TOP
    assert {int(name.split("resblocks.")[1][0]) for name in in_blocks} == blocks


def test_freeze_rule_of_3d_patches() -> None:
    intended, upstream = (ClipTower(tiny_arch(), linear_patch="3d") for _ in range(2))
    freeze_clip(intended, 0)
    freeze_clip(upstream, 0, "upstream")
    assert not intended.clip.token_embedding.weight.requires_grad
    assert intended.patch_conv3d is not None
    assert intended.patch_conv3d.weight.requires_grad
    frozen = {name for name, p in upstream.named_parameters() if not p.requires_grad}
    assert frozen == {"clip.visual.conv1.weight"}


def test_siglip_gives_pooled_vectors_by_name() -> None:
    with torch.device("meta"):
        tower = ClipTower("ViT-B-16-SigLIP")
        frames = tower.encode_frames(torch.zeros(1, 2, 3, 224, 224), torch.ones(1, 2).bool())
        text = tower.encode_text(torch.ones(1, 20, dtype=torch.int64))
    assert frames.shape == (1, 2, 768)
    assert text.shape == (1, 768)
    assert not tower.clip.logit_bias.requires_grad
    assert tower.tokenizer(20) == PretrainedTokenizer("ViT-B-16-SigLIP", 20)
