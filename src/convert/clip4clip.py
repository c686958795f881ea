"""Checkpoints of CLIP4Clip and its descendants, and of OpenAI CLIP: their tensor names and ours, both ways.

Pure functions on state dicts; `src.models.weights` reads files and loads strictly.

Source: ArrowLuo/CLIP4Clip @ 508ffa3, CryhanFang/CLIP2Video @ e941318; open_clip's CLIP has exactly the
tensor names of OpenAI's.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from src.convert import clip_heads
from src.errors import UserError
from src.models.weights import ARCHIVE_SCALARS

# (upstream prefix, our prefix); the first that matches counts, so longer ones stand first.
_TOWER = (
    ("clip.visual.conv2.", "tower.patch_conv3d."),
    ("clip.", "tower.clip."),
)
NAMES = (
    *_TOWER,
    ("frame_position_embeddings.", "head.order.position."),
    ("transformerClip.", "head.order.transformer."),
    ("lstm_visual.", "head.order.lstm."),
    ("cross.embeddings.position_embeddings.", "head.position."),
    ("cross.transformer.", "head.transformer."),
    ("cross.pooler.ln_pool.", "head.norm."),
    ("cross.pooler.dense.", "head.dense."),
    ("similarity_dense.", "head.score."),
    *clip_heads.NAMES,
)
# CLIP2Video calls its transformer over frames, which is no part of the head, as CLIP4Clip does.
CLIP2VIDEO_NAMES = (
    *_TOWER,
    ("frame_position_embeddings.", "position."),
    ("transformerClip.", "temporal."),
    ("type_position_embeddings.", "difference.kind."),
    ("frame2t_attention.", "difference.attention."),
    ("frame2t_projection", "difference.projection"),
    ("trans_layernorm.", "difference.norm."),
    ("actionClip.", "extra."),
    ("weight_center", "head.assignment"),
    ("emb_center", "head.residual"),
)
_ONLY_CLIP2VIDEO = tuple({upstream for upstream, _ in CLIP2VIDEO_NAMES} - {upstream for upstream, _ in NAMES})


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
    is_clip2video = any(name.startswith(_ONLY_CLIP2VIDEO) for name in cleaned)
    table = (*CLIP2VIDEO_NAMES, *NAMES) if is_clip2video else NAMES
    converted: dict[str, Tensor] = {}
    foreign = []
    for name, value in cleaned.items():
        ours = _rename(name, table)
        if ours is None:
            foreign.append(name)
        else:
            converted[ours] = value.float() if value.is_floating_point() else value
    if foreign:
        listing = ", ".join(sorted(foreign)[:12]) + (f", … ({len(foreign) - 12} more)" if len(foreign) > 12 else "")
        raise UserError(
            f"{len(foreign)} of {len(cleaned)} tensors belong to none of CLIP4Clip, CLIP2Video, DRL and X-CLIP: "
            f"{listing}; expected a state dict of theirs or OpenAI's CLIP archive"
        )
    return converted


def to_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under upstream's names; the inverse of `from_upstream`.

    Raises:
        UserError: a tensor that upstream has no name for, or two that have the same: a model that nobody published.
    """
    back = tuple((ours, upstream) for upstream, ours in (*CLIP2VIDEO_NAMES, *NAMES))
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        upstream = _rename(name, back)
        if upstream is None or upstream in converted:
            reason = "no name" if upstream is None else f"the name of another one ({upstream})"
            raise UserError(
                f"tensor {name} has {reason} in CLIP4Clip, CLIP2Video, DRL and X-CLIP; use task.format=ours"
            )
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
