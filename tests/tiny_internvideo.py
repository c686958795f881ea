"""Files in the layouts that InternVideo publishes, of any size, written from the published table of names alone."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    """Of a tower; widths of the image half and the text half, and the joint one."""

    width: int
    layers: int
    patch: int
    patches: int
    decoders: int
    text_width: int
    text_layers: int
    words: int
    vocabulary: int
    joint: int


L14 = Sizes(1024, 24, 14, 256, 4, 768, 12, 77, 49408, 768)
B16 = Sizes(768, 12, 16, 196, 4, 512, 12, 77, 49408, 512)
TINY = Sizes(96, 3, 16, 16, 3, 96, 2, 77, 4096, 96)
"""`videotext-tiny`."""


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _block(name: str, width: int, norms: int = 2) -> Shapes:
    shapes: Shapes = {
        f"{name}.attn.in_proj_weight": (3 * width, width),
        f"{name}.attn.in_proj_bias": (3 * width,),
        f"{name}.attn.out_proj.weight": (width, width),
        f"{name}.attn.out_proj.bias": (width,),
        f"{name}.mlp.c_fc.weight": (4 * width, width),
        f"{name}.mlp.c_fc.bias": (4 * width,),
        f"{name}.mlp.c_proj.weight": (width, 4 * width),
        f"{name}.mlp.c_proj.bias": (width,),
    }
    for index in range(1, norms + 1):
        shapes |= _norm(f"{name}.ln_{index}", width)
    return shapes


def clip_shapes(sizes: Sizes) -> Shapes:
    """The names that OpenAI's CLIP has, with theirs for the projection."""
    width, text = sizes.width, sizes.text_width
    shapes: Shapes = {
        "visual.conv1.weight": (width, 3, sizes.patch, sizes.patch),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (sizes.patches + 1, width),
        **_norm("visual.ln_pre", width),
        **_norm("visual.ln_post", width),
        "visual.proj": (width, sizes.joint),
        "token_embedding.weight": (sizes.vocabulary, text),
        "positional_embedding": (sizes.words, text),
        **_norm("ln_final", text),
        "text_projection": (text, sizes.joint),
        "logit_scale": (),
    }
    for index in range(sizes.layers):
        shapes |= _block(f"visual.transformer.resblocks.{index}", width)
    for index in range(sizes.text_layers):
        shapes |= _block(f"transformer.resblocks.{index}", text)
    return shapes


def tower_shapes(sizes: Sizes) -> Shapes:
    """The names of the InternVideo tower, without prefix."""
    width = sizes.width
    shapes = {name.replace("visual.proj", "visual_proj"): shape for name, shape in clip_shapes(sizes).items()}
    shapes = {name.replace("visual.ln_post", "visual_ln_post"): shape for name, shape in shapes.items()}
    shapes["visual.conv1.weight"] = (width, 3, 1, sizes.patch, sizes.patch)
    shapes["visual.transformer.temporal_cls_token"] = (1, 1, width)
    shapes["visual.transformer.balance"] = (width,)
    shapes["text_mask_embedding"] = (1, 1, sizes.text_width)
    for index in range(sizes.decoders):
        shapes[f"visual.transformer.dpe.{index}.weight"] = (width, 1, 3, 3, 3)
        shapes[f"visual.transformer.dpe.{index}.bias"] = (width,)
        shapes |= _block(f"visual.transformer.dec.{index}", width, norms=3)
    return shapes


def values(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of these shapes; a scale that training has limited."""
    draw = torch.Generator().manual_seed(seed)
    state = {name: 0.1 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    return {name: value.fill_(4.6) if name == "logit_scale" else value for name, value in state.items()}


def finetuned(tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """`pytorch_model.bin`."""
    return {f"clip.{name}": value for name, value in tower.items()}


def pretrained(tower: dict[str, Tensor], moved: bool = True, objects: bool = False) -> dict[str, Any]:
    """`InternVideo-MM-L-14.ckpt`: what Lightning writes, with heads of other tasks.

    Args:
        tower: its tensors.
        moved: False: projection and last norm under CLIP's names.
        objects: among the settings stands something that a restricted reader refuses.
    """
    names = {name: name for name in tower}
    if not moved:
        names |= {"visual_proj": "visual.proj"}
        names |= {f"visual_ln_post.{leaf}": f"visual.ln_post.{leaf}" for leaf in ("weight", "bias")}
    heads = {
        "mlm_score.predictions.bias": torch.zeros(5),
        "mlm_score.predictions.decoder.weight": torch.zeros(5, 4),
        "text_decoder.resblocks.0.ln_1.weight": torch.ones(4),
        "text_decoder.resblocks.1.ln_1.weight": torch.ones(4),
        "itm_head.weight": torch.zeros(2, 4),
    }
    state = {f"clip.{names[name]}": value for name, value in tower.items()} | heads
    settings: Any = Namespace(lr=1e-4) if not objects else Foreign()
    return {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "1.5.10",
        "state_dict": state,
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "hyper_parameters": {"config": settings},
    }


class Foreign:
    """Of a program that is not installed here."""
