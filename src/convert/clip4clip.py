"""Checkpoints of CLIP4Clip, CLIP2Video and OpenAI CLIP: their tensor names and ours, both ways.

Pure functions on state dicts; `src.models.weights` reads files and loads strictly.

Source: ArrowLuo/CLIP4Clip @ 508ffa3, CryhanFang/CLIP2Video @ e941318; open_clip's CLIP has exactly the
tensor names of OpenAI's.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from src.errors import UserError
from src.models.weights import ARCHIVE_SCALARS

# (upstream prefix, our prefix); the first that matches counts, so longer ones stand first.
NAMES = (
    ("clip.visual.conv2.", "tower.patch_conv3d."),
    ("clip.", "tower.clip."),
    ("frame_position_embeddings.", "position."),
    ("transformerClip.", "temporal."),
    ("lstm_visual.", "lstm."),
    ("type_position_embeddings.", "difference.kind."),
    ("frame2t_attention.", "difference.attention."),
    ("frame2t_projection", "difference.projection"),
    ("trans_layernorm.", "difference.norm."),
    ("actionClip.", "alignment.transformer."),
    ("weight_center", "alignment.assignment"),
    ("emb_center", "alignment.residual"),
    ("cross.embeddings.position_embeddings.", "cross.position."),
    ("cross.transformer.", "cross.transformer."),
    ("cross.pooler.ln_pool.", "cross.norm."),
    ("cross.pooler.dense.", "cross.dense."),
    ("similarity_dense.", "cross.score."),
)


def from_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Upstream tensors under our names, in float32.

    Removes a `module.` prefix (saved under DistributedDataParallel) and the archive's scalars, and renames
    the old layer-norm names gamma and beta. A bare OpenAI CLIP gives the tensors of the tower only.

    Raises:
        UserError: lists every tensor that belongs to neither repository.
    """
    cleaned = _clean(state)
    if not any(name.startswith("clip.") for name in cleaned) and "visual.class_embedding" in cleaned:
        cleaned = {f"clip.{name}": value for name, value in cleaned.items()}
    converted: dict[str, Tensor] = {}
    foreign = []
    for name, value in cleaned.items():
        ours = _rename(name, NAMES)
        if ours is None:
            foreign.append(name)
        else:
            converted[ours] = value.float() if value.is_floating_point() else value
    if foreign:
        listing = ", ".join(sorted(foreign)[:12]) + (f", … ({len(foreign) - 12} more)" if len(foreign) > 12 else "")
        raise UserError(
            f"{len(foreign)} of {len(cleaned)} tensors belong to neither CLIP4Clip nor CLIP2Video: {listing}; "
            "expected their state dict or OpenAI's CLIP archive"
        )
    return converted


def to_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under upstream's names; the inverse of `from_upstream`.

    Raises:
        UserError: a tensor that upstream has no name for.
    """
    back = tuple((ours, upstream) for upstream, ours in NAMES)
    converted = {}
    for name, value in state.items():
        upstream = _rename(name, back)
        if upstream is None:
            raise UserError(f"tensor {name} has no name in CLIP4Clip or CLIP2Video; export another format")
        converted[upstream] = value
    return converted


def _rename(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    for old, new in table:
        if name.startswith(old):
            return new + name[len(old) :]
    return None


def _clean(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    wrapped = bool(state) and all(name.startswith("module.") for name in state)
    cleaned = {}
    for name, value in state.items():
        name = name.removeprefix("module.") if wrapped else name
        if name in ARCHIVE_SCALARS:
            continue
        stem, _, leaf = name.rpartition(".")
        leaf = {"gamma": "weight", "beta": "bias"}.get(leaf, leaf)
        cleaned[f"{stem}.{leaf}" if stem else leaf] = value
    return cleaned
