"""Published state dicts of X-Pool, DRL, X-CLIP and TS2-Net: names both ways, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from src.convert import xpool
from src.convert.formats import family_of
from src.errors import UserError
from src.models.clip4clip import Clip4Clip
from src.models.heads.base import Head
from src.models.heads.ti import TokenInteractionHead
from src.models.heads.wti import WeightedTokenInteractionHead
from src.models.heads.xclip import XClipHead
from src.models.heads.xpool import XPoolHead
from src.models.weights import load_strictly
from tests.tiny_clip import tiny_arch

HEADS: dict[str, Callable[..., Head]] = {
    "DRL": partial(WeightedTokenInteractionHead, order="seqTransf", temporal_layers=2),
    "one layer": partial(WeightedTokenInteractionHead, arch=1),
    "three layers": partial(WeightedTokenInteractionHead, arch=3),
    "no weights": TokenInteractionHead,
    "X-CLIP": partial(XClipHead, order="seqTransf", temporal_layers=2),
    "X-Pool": XPoolHead,
}


def make(name: str) -> Clip4Clip:
    torch.manual_seed(0)
    return Clip4Clip(arch=tiny_arch(), head=HEADS[name], num_frames=4, max_words=6)


@pytest.mark.parametrize("name", HEADS)
def test_round_trip(name: str) -> None:
    state = make(name).state_dict()
    family = family_of(state)
    published = family.exports["upstream"](state)
    assert family.name == ("X-Pool" if name == "X-Pool" else "CLIP4Clip, CLIP2Video, DRL and X-CLIP")
    assert family_of(published) is family
    assert not any(key.startswith(("tower.", "head.")) for key in published)
    for wrapped in (published, {f"module.{key}": value for key, value in published.items()}):
        back = family.from_upstream(wrapped)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[key], state[key]) for key in state)


def test_published_names_of_the_heads() -> None:
    """Those of the golden files."""
    found = {name: set(family_of(s := make(name).state_dict()).exports["upstream"](s)) for name in HEADS}
    assert {key for key in found["X-CLIP"] if "mat_weight" in key or "logit_weight" in key} == {
        *("global_mat_weight", "local_mat_weight", "word_logit_weight", "frame_logit_weight"),
        *("word_mat_weight", "frame_mat_weight", "word_mat_weight2", "frame_mat_weight2"),
    }
    assert {key for key in found["one layer"] if "weight_fc" in key} == {
        f"{kind}_weight_fc.{leaf}" for kind in ("text", "video") for leaf in ("weight", "bias")
    }
    assert {key.split("weight_fc.")[1] for key in found["three layers"] if "text_weight_fc" in key} == {
        f"{layer}.{leaf}" for layer in (0, 2, 4) for leaf in ("weight", "bias")
    }
    assert {key.rpartition(".")[0] for key in found["X-Pool"] if key.startswith("pool_frames.")} == {
        *(f"pool_frames.cross_attn.{name}_proj" for name in ("q", "k", "v", "out")),
        *("pool_frames.linear_proj", "pool_frames.layer_norm1", "pool_frames.layer_norm2", "pool_frames.layer_norm3"),
    }


def published_xpool() -> tuple[CLIPModel, dict[str, Tensor]]:
    """A file of X-Pool as its code would write it, with transformers' own CLIP in the sizes of the tiny one."""
    sizes = {"num_hidden_layers": 2, "intermediate_size": 128}
    text = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 10}
    vision = {"hidden_size": 48, "num_attention_heads": 3, "image_size": 16, "patch_size": 8}
    ends = {"bos_token_id": 62, "eos_token_id": 63, "pad_token_id": 0}
    torch.manual_seed(1)
    clip = CLIPModel(
        CLIPConfig(
            text_config={**sizes, **text, **ends},
            vision_config={**sizes, **vision, "intermediate_size": 192},
            projection_dim=32,
        )
    ).eval()
    state = {f"clip.{name}": value for name, value in clip.state_dict().items()}
    state["clip.text_model.embeddings.position_ids"] = torch.arange(10)[None]  # of older versions
    head = {name: value for name, value in xpool.to_upstream(make("X-Pool").state_dict()).items() if "pool" in name}
    return clip, state | {name: torch.randn_like(value) for name, value in head.items()}


def test_xpool_with_the_clip_of_transformers_gives_the_same_vectors() -> None:
    clip, published = published_xpool()
    model = make("X-Pool").eval()
    load_strictly(model, family_of(published).from_upstream(published), "x-pool")
    torch.manual_seed(2)
    tokens_BL = torch.cat([torch.tensor([[62], [62]]), torch.randint(1, 60, (2, 4)), torch.tensor([[63], [63]])], dim=1)
    frames_BTCHW = torch.randn(2, 3, 3, 16, 16)
    with torch.no_grad():
        text_BD = clip.text_projection(clip.text_model(tokens_BL).pooler_output)
        frames_ND = clip.visual_projection(clip.vision_model(frames_BTCHW.flatten(0, 1)).pooler_output)
        mask_BT = torch.ones(2, 3, dtype=torch.bool)
        torch.testing.assert_close(model.tower.encode_text(tokens_BL), text_BD, rtol=1e-4, atol=1e-5)
        found_BTD = model.tower.encode_frames(frames_BTCHW, mask_BT)
    torch.testing.assert_close(found_BTD.flatten(0, 1), frames_ND, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.head.state_dict()["key.weight"], published["pool_frames.cross_attn.k_proj.weight"])


def test_xpool_on_openais_clip_is_read_too() -> None:
    state = make("X-Pool").state_dict()
    from_transformers = xpool.to_upstream(state)
    clip, _ = xpool.openai_names({k[5:]: v for k, v in from_transformers.items() if k.startswith("clip.")})
    published = {f"clip.{name}": value for name, value in clip.items()}
    published |= {name: value for name, value in from_transformers.items() if name.startswith("pool_frames.")}
    back = family_of(published).from_upstream(published)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_unknown_tensors_are_listed() -> None:
    _, published = published_xpool()
    published |= {"clip.text_model.adapter.weight": torch.ones(1), "clip.extra": torch.ones(1)}
    with pytest.raises(UserError, match=r"2 of \d+ tensors named clip.… .*CLIP: extra, text_model.adapter.weight"):
        family_of(published).from_upstream(published)
    _, published = published_xpool()
    with pytest.raises(UserError, match=r"1 of .* tensors belong to none of .*: expander.weight"):
        family_of(published).from_upstream({**published, "expander.weight": torch.ones(1)})


def test_token_selection_of_ts2net_is_refused_by_name() -> None:
    """What it has in common with CLIP4Clip is known, its selector is not built."""
    state = make("no weights").state_dict()
    published = family_of(state).exports["upstream"](state) | {"token_selector.score.weight": torch.ones(2)}
    with pytest.raises(UserError, match=r"1 of .* tensors belong to none of .*: token_selector.score.weight"):
        family_of(published).from_upstream(published)
