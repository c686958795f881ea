"""Weight files of InternVideo and CLIP as tensors of one tower, whatever the layout of the file.

The tower's module has exactly the published names (`visual.transformer.temporal_cls_token`, `visual_proj`, …).
Four layouts come to them: OpenAI's CLIP and open_clip's (no prefix, `visual.proj`, 4-d patches); the pre-trained
Lightning file (`clip.`, perhaps with other heads); the fine-tuned `pytorch_model.bin` (`clip.` and a similarity
header); and ours (`tower.clip.`).

Source: OpenGVLab/InternVideo @ 3965eef, InternVideo1/Downstream/Video-Text-Retrieval modules/clip_evl.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.errors import UserError
from src.models.weights import ARCHIVE_SCALARS, load_strictly

log = logging.getLogger(__name__)

OURS = "tower.clip."
PUBLISHED = "clip."
PATCHES = "visual.conv1.weight"
UNREAD = "text_mask_embedding"
"""Of masked language modelling; retrieval only carries it along."""

_TOWER = re.compile(
    r"(visual\.|visual_proj$|visual_ln_post\.|transformer\.|token_embedding\.|positional_embedding$|ln_final\."
    rf"|text_projection$|logit_scale$|{UNREAD}$)"
)
_VIDEO = re.compile(r"visual\.transformer\.(temporal_cls_token$|balance$|dpe\.|dec\.|resblocks\.\d+\.lmhra\d+\.)")
_MOVED = {"visual.proj": "visual_proj"} | {f"visual.ln_post.{n}": f"visual_ln_post.{n}" for n in ("weight", "bias")}


@dataclass(frozen=True)
class TowerTensors:
    """A weight file, sorted.

    Attributes:
        tower: the tower's tensors under published names without prefix, float32; of CLIP those that it has.
        others: everything else under the file's names: a similarity header, heads of pre-training.
        is_clip: whether the file knows nothing of video.
    """

    tower: dict[str, Tensor]
    others: dict[str, Tensor]
    is_clip: bool


def is_video_name(name: str) -> bool:
    """Whether a published name without prefix is of what InternVideo adds to CLIP's image tower."""
    return _VIDEO.match(name) is not None


def knows_video(names: Iterable[str]) -> bool:
    """Whether these are names of an InternVideo tower, under any of the prefixes."""
    return any(is_video_name(_bare(name)) for name in names)


def tower_tensors(state: Mapping[str, Tensor]) -> TowerTensors:
    """Sort the tensors of a file of any layout.

    `visual.proj` and `visual.ln_post` become `visual_proj` and `visual_ln_post`. Where a file has both, the former
    count, as upstream, and the latter are among the others. Flat patches get a temporal kernel of 1.
    """
    wrapped = bool(state) and all(name.startswith("module.") for name in state)
    names = {name.removeprefix("module.") if wrapped else name: value for name, value in state.items()}
    prefix = next((p for p in (OURS, PUBLISHED) if any(name.startswith(p) for name in names)), "")
    tower: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, value in names.items():
        bare = name.removeprefix(prefix)
        if name.startswith(prefix) and _TOWER.match(bare):
            tower[bare] = value.float() if value.is_floating_point() else value
        elif name not in ARCHIVE_SCALARS:
            others[name] = value
    for old, new in _MOVED.items():
        if old in tower:
            if new in tower:
                others[prefix + new] = tower[new]
            tower[new] = tower.pop(old)
    if PATCHES in tower and tower[PATCHES].ndim == 4:
        tower[PATCHES] = inflate(tower[PATCHES], 1)
    return TowerTensors(tower, others, is_clip=not knows_video(tower))


def inflate(weight: Tensor, time: int) -> Tensor:
    """Patches (W, 3, p, p) with a temporal kernel (W, 3, time, p, p): zeros around the centre."""
    inflated = weight.new_zeros(*weight.shape[:2], time, *weight.shape[2:])
    inflated[:, :, time // 2] = weight
    return inflated


def load_tower(clip: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Fill a tower from the tensors of a file of any layout; what is left out, or left as it was, is logged.

    From CLIP, the tensors that only InternVideo has keep their values. Everything else is strict.

    Args:
        clip: the tower, with published names.
        state: the file's tensors.
        source: the file, for messages.

    Raises:
        UserError: the file holds no tower; or lists names and shapes that do not fit.
    """
    tensors = fitting_tensors(clip, state, source)
    load_strictly(clip, tensors, source)


def fitting_tensors(clip: nn.Module, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """What `load_tower` copies: the tower's tensors of the file, and the module's own where the file may lack them.

    Raises:
        UserError: the file holds no tower.
    """
    found = tower_tensors(state)
    if "token_embedding.weight" not in found.tower:
        raise UserError(
            f"{source} holds no CLIP or InternVideo tower (found {', '.join(sorted(state)[:3])}, …); "
            "give InternVideo-MM-L-14.ckpt, a fine-tuned pytorch_model.bin, or a CLIP"
        )
    own = clip.state_dict()
    tensors = dict(found.tower)
    if PATCHES in tensors and PATCHES in own and tensors[PATCHES].shape[2] == 1 != own[PATCHES].shape[2]:
        tensors[PATCHES] = inflate(tensors[PATCHES][:, :, 0], own[PATCHES].shape[2])
    kept = [n for n in own if n not in tensors and (n == UNREAD or (found.is_clip and is_video_name(n)))]
    if kept:
        log.info("%s lacks %d tensors, which start afresh: %s", source, len(kept), listing(kept))
    if found.is_clip:
        tensors |= found.others  # nothing may hide in a CLIP: what does not fit is an error
    elif found.others:
        log.info("%s: %d tensors outside the tower left out: %s", source, len(found.others), listing(found.others))
    return tensors | {name: own[name] for name in kept}


def listing(names: Iterable[str]) -> str:
    """All names, those that differ in numbers or leaves only counted together: `mlm_head.* (4)`."""
    counts = Counter(_family(name) for name in names)
    return ", ".join(f"{family} ({count})" if count > 1 else family for family, count in counts.items())


def _family(name: str) -> str:
    parts = name.split(".")
    keep = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: max(keep, 1)]) + (".*" if len(parts) > max(keep, 1) else "")


def _bare(name: str) -> str:
    name = name.removeprefix("module.")
    return name.removeprefix(OURS) if name.startswith(OURS) else name.removeprefix(PUBLISHED)


def merged(internvideo: Mapping[str, Tensor], clip: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
    """InternVideo's tensors interpolated with CLIP's: weight·CLIP + (1−weight)·InternVideo (upstream `mergeclip`).

    Only names that both files share are merged, so InternVideo's own layers are not, and neither are `visual_proj` and
    `visual_ln_post`, which CLIP calls `visual.proj` and `visual.ln_post`.

    Args:
        internvideo: published names without prefix.
        clip: the tensors of a CLIP file.
        weight: share of CLIP, 0–1.

    Raises:
        UserError: a shared tensor has another shape.
    """
    other = tower_tensors(clip).tower
    result = dict(internvideo)
    for name in internvideo.keys() & other.keys() - set(_MOVED.values()):
        own, theirs = internvideo[name], other[name]
        if name == PATCHES and theirs.shape[2] == 1 != own.shape[2]:
            theirs = inflate(theirs[:, :, 0], own.shape[2])
        if own.shape != theirs.shape:
            raise UserError(
                f"{name} has shape {tuple(theirs.shape)} in the CLIP to merge, {tuple(own.shape)} in the tower; "
                "merge a CLIP of the same architecture"
            )
        result[name] = torch.lerp(own, theirs.to(own), weight)
    return result


def merge_into(clip: nn.Module, state: Mapping[str, Tensor], weight: float, source: str) -> None:
    """`merged` in place, tensor by tensor: copies of all of them would need twice the memory of the model.

    Args:
        clip: the tower with InternVideo's weights.
        state: the tensors of a CLIP file.
        weight: share of CLIP, 0–1.
        source: the file, for messages.

    Raises:
        UserError: a shared tensor has another shape, or there is none.
    """
    own, count = clip.state_dict(), 0
    for name, value in state.items():
        for changed, mixed in merged(own, {name: value}, weight).items():
            if mixed is not own[changed]:
                own[changed].copy_(mixed)
                count += 1
    if not count:
        raise UserError(
            f"model.merge_clip={source} has none of the tower's tensors (found {', '.join(sorted(state)[:3])}, …); "
            "give a CLIP of OpenAI or open_clip, a tag, or null"
        )
    log.info("%d tensors are interpolated with %s", count, source)
