"""Checkpoints of X-Pool whose CLIP is that of transformers: their tensor names and ours, both ways.

X-Pool can also be trained on OpenAI's CLIP; such files are read as those of CLIP4Clip are. The names of the pooling are
those of the code; that a published file has a `clip.` before the names of transformers' `CLIPModel` is assumed, no file
was at hand.

Source: layer6ai-labs/xpool modules/transformer.py; transformers' CLIPModel.

Shape suffixes: D width of a transformer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from src.convert import clip4clip
from src.errors import UserError

CLIP = "clip."
_BLOCKS = {
    "text_model.encoder.layers.": "transformer.resblocks.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
}
_IN_BLOCK = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}
_OUTSIDE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_POSITIONS = "embeddings.position_ids"  # numbers 0, 1, …, kept by old versions of transformers


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are those of transformers' CLIP and X-Pool's pooling."""
    names = {name.removeprefix("module.") for name in state}
    return f"{CLIP}visual_projection.weight" in names


def is_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are those of a CLIP with our head xpool, and nothing else."""
    own = all(name.startswith(("tower.clip.", "head.")) for name in state)
    return own and "head.query.weight" in state and "tower.clip.visual.proj" in state


def from_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under our names, in float32.

    Raises:
        UserError: lists tensors that belong to neither part.
    """
    cleaned = {name.removeprefix("module."): value for name, value in state.items() if _POSITIONS not in name}
    clip = {name.removeprefix(CLIP): value for name, value in cleaned.items() if name.startswith(CLIP)}
    pooling = {name: value for name, value in cleaned.items() if not name.startswith(CLIP)}
    converted, foreign = openai_names(clip)
    if foreign:
        raise UserError(
            f"{len(foreign)} of {len(clip)} tensors named {CLIP}… do not belong to transformers' CLIP: "
            f"{', '.join(sorted(foreign)[:12])}{', …' if len(foreign) > 12 else ''}; expected X-Pool's state dict"
        )
    return clip4clip.from_upstream({**{CLIP + name: value for name, value in converted.items()}, **pooling})


def to_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under published names; the inverse of `from_upstream`."""
    published = clip4clip.to_upstream(state)
    clip = {name.removeprefix(CLIP): value for name, value in published.items() if name.startswith(CLIP)}
    pooling = {name: value for name, value in published.items() if not name.startswith(CLIP)}
    return {**{CLIP + name: value for name, value in transformers_names(clip).items()}, **pooling}


def openai_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of transformers' CLIPModel under OpenAI's names, and the names that it does not have."""
    converted: dict[str, Tensor] = {}
    foreign = []
    for name, value in state.items():
        if name in _TRANSPOSED:
            converted[_TRANSPOSED[name]] = value.T.contiguous()
        elif ".self_attn.q_proj." in name:
            packed = [state[name.replace("q_proj", projection)] for projection in _PROJECTIONS]
            stem, _, leaf = name.partition("self_attn.q_proj.")
            converted[f"{_renamed(stem, _BLOCKS)}attn.in_proj_{leaf}"] = torch.cat(packed)
        elif ".self_attn.k_proj." in name or ".self_attn.v_proj." in name:
            continue
        elif (renamed := _openai_name(name)) is not None:
            converted[renamed] = value
        else:
            foreign.append(name)
    return converted, foreign


def transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of OpenAI's CLIP under the names of transformers' CLIPModel; the inverse of `openai_names`."""
    transposed = {ours: published for published, ours in _TRANSPOSED.items()}
    blocks = {ours: published for published, ours in _BLOCKS.items()}
    in_block = {ours: published for published, ours in _IN_BLOCK.items()}
    outside = {ours: published for published, ours in _OUTSIDE.items()}
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in transposed:
            converted[transposed[name]] = value.T.contiguous()
        elif ".attn.in_proj_" in name:
            stem, _, leaf = name.partition("attn.in_proj_")
            for projection, piece in zip(_PROJECTIONS, value.chunk(3), strict=True):
                converted[f"{_renamed(stem, blocks)}self_attn.{projection}.{leaf}"] = piece
        else:
            converted[_in_block(name, blocks, in_block) or _renamed(name, outside) or name] = value
    return converted


def _openai_name(name: str) -> str | None:
    return _in_block(name, _BLOCKS, _IN_BLOCK) or _renamed(name, _OUTSIDE)


def _in_block(name: str, blocks: Mapping[str, str], parts: Mapping[str, str]) -> str | None:
    """The new name of a tensor of a transformer block; None for all others."""
    for old, new in blocks.items():
        if name.startswith(old):
            number, _, part = name[len(old) :].partition(".")
            renamed = _renamed(part, parts)
            return None if renamed is None else f"{new}{number}.{renamed}"
    return None


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    return next((new + name[len(old) :] for old, new in table.items() if name.startswith(old)), None)
