"""Checkpoints of Frozen in Time and of TextVR: their tensors' names and ours, both ways.

Published are files of `torch.save`: `state_dict`, with `module.` before each name where several GPUs trained, beside
`arch`, `epoch`, `monitor_best`, `config` (an object, see `src.models.stand_ins`) and the optimizer's state. The towers
have the same names here; what reads the words of a TextVR is below `fusion.` here, and has no prefix there.

Source: m-bain/frozen-in-time @ e1f13e1, callsys/TextVR @ ae16786.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from src.convert import collaborative_experts
from src.errors import UserError
from src.models.base import RetrievalModule
from src.models.frozen import COUNTER, TEMPORAL, FrozenBase, sized
from src.models.space_time import TemporalFit, fit_temporal
from src.models.textvr import FUSION, TextVR

TOWERS = ("text_model.", "video_model.", "txt_proj.", "vid_proj.")
OURS = "fusion."
PREFIX = "module."
_VIT = ("image_size", "patch_size", "width", "depth", "heads")

extras = collaborative_experts.extras  # both trainers come from one template


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a published checkpoint; those of towers alone are so, too."""
    bare = [name.removeprefix(PREFIX) for name in state]
    captions = any(name.startswith("text_model.") for name in bare)
    return any(name.startswith("video_model.") for name in bare) or (captions and any(map(FUSION.match, bare)))


def is_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a `Frozen` or `TextVR`."""
    known = all(name.startswith((*TOWERS, OURS)) and not name.endswith(COUNTER) for name in state)
    return known and any(name.startswith(("video_model.", OURS)) for name in state)


def from_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under our names; `left_out` says which are dropped.

    Raises:
        UserError: only some names have the prefix of several GPUs, or tensors do not belong to the publication.
    """
    prefixed = sum(name.startswith(PREFIX) for name in state)
    if prefixed not in (0, len(state)):  # upstream looks at the first name only, and damages all others
        raise UserError(
            f"{prefixed} of {len(state)} names begin with {PREFIX}, expected all or none; this is no checkpoint as it "
            "was saved"
        )
    bare = {name.removeprefix(PREFIX): value for name, value in state.items() if not name.endswith(COUNTER)}
    converted = {OURS + name if FUSION.match(name) else name: value for name, value in bare.items()}
    foreign = sorted(name for name in converted if not name.startswith((*TOWERS, OURS)))
    if foreign:
        raise UserError(
            f"{len(foreign)} of {len(state)} tensors belong neither to Frozen in Time nor to TextVR: "
            f"{', '.join(foreign[:12])}; expected a checkpoint as they save it"
        )
    return converted


def to_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the published names, without prefix; the inverse of `from_upstream`.

    Raises:
        UserError: a tensor that has no name there.
    """
    converted = {}
    for name, value in state.items():
        upstream = name.removeprefix(OURS)
        if not (name.startswith(TOWERS) or (upstream != name and FUSION.match(upstream))):
            raise UserError(f"tensor {name} has no name in Frozen in Time or TextVR; export a model=frozen or textvr")
        converted[upstream] = value
    return converted


def left_out(state: Mapping[str, Tensor], rest: Mapping[str, Any]) -> list[str]:
    """What of a published file is not converted, and what its numbers depend on, for the log."""
    counters = [name for name in state if name.endswith(COUNTER)]
    notes = [f"not converted, positions are counted: {', '.join(counters)}"] if counters else []
    if "optimizer" in rest:
        notes.append("not converted: the state of the optimizer")
    if any(FUSION.match(name.removeprefix(PREFIX)) for name in state):
        notes.append("it was trained on words as model.ocr_rule=upstream model.ocr_positions=upstream prepares them")
    return notes


def options_of(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of the model that its tensors tell; the number of frames is none, see `fitted`."""
    told: dict[str, Any] = {"mode": _mode(ours)}
    heads = [ours[name] for name in ("txt_proj.1.weight", "vid_proj.0.weight") if name in ours]
    told |= {"projection": "minimal", "projection_dim": len(heads[0])} if heads else {"projection": "none"}
    table, patches = ours.get("video_model.pos_embed"), ours.get("video_model.patch_embed.proj.weight")
    if table is not None and patches is not None:
        patch = patches.shape[-1]
        blocks = {name.split(".")[2] for name in ours if name.startswith("video_model.blocks.")}
        told |= {"image_size": patch * math.isqrt(table.shape[1] - 1), "patch_size": patch}
        told |= {"width": table.shape[2], "depth": len(blocks)}
    return told


def resolved(options: Mapping[str, Any]) -> dict[str, Any]:
    """The model's options with the numbers that the name of the ViT stands for."""
    if "vit" not in options:
        return dict(options)
    return {**options, **vars(sized(options["vit"], **{name: options.get(name) for name in _VIT}))}


def check_inputs(model: RetrievalModule, ours: Mapping[str, Tensor], found: Mapping[str, Any], source: str) -> None:
    """Compare the kind of the checkpoint with that of the model.

    Raises:
        UserError: another model, or a model that reads words where the checkpoint does not, and the other way round.
    """
    mode = _mode(ours)
    if not isinstance(model, FrozenBase) or (mode != "vision" and not isinstance(model, TextVR)):
        chosen = "model=frozen" if mode == "vision" else f"model=textvr model.mode={mode}"
        title = "Frozen in Time" if mode == "vision" else "TextVR"
        raise UserError(f"{source} is of {title}; choose {chosen}")
    if mode == "vision" and isinstance(model, TextVR) and model.fusion is not None:
        raise UserError(
            f"{source} holds nothing that reads words; convert it with model=frozen, and train a model=textvr from it "
            "with model.pretrained=FILE model.pretrained_parts=frozen (both towers) or video (the video's only)"
        )


def fitted(
    model: RetrievalModule, ours: Mapping[str, Tensor], options: Mapping[str, Any]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors with as many positions in time as the model has frames, and what was done about it, for the log."""
    fits, own = dict(ours), model.state_dict().get(TEMPORAL)
    table = fits.get(TEMPORAL)
    if own is None or table is None or table.ndim != 3 or own.shape[1] == table.shape[1]:
        return fits, []
    how: TemporalFit = options.get("load_temporal", "zeros")
    given, fits[TEMPORAL] = table.shape[1], fit_temporal(table, own.shape[1], how)
    done = "the first are kept" if own.shape[1] < given else f"filled up by model.load_temporal={how}"
    return fits, [f"trained with {given} frames, model.num_frames={own.shape[1]}: positions in time, {done}"]


def file_content(
    state: Mapping[str, Tensor], options: Mapping[str, Any], found: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a published file holds, but for the optimizer's state; the configuration is a dict there.

    Args:
        state: tensors named as `to_upstream` does.
        options: of our model; not used, the reference builds its model from its own configuration.
        found: `extras` of the published file from which the tensors came.
    """
    told = dict(found or {})
    return {
        "arch": told.get("arch", "FrozenInTime"),
        "epoch": told.get("epoch", 0),
        "state_dict": OrderedDict(state),
        "monitor_best": told.get("monitor_best", 0.0),
        "config": told.get("config", {}),
    }


def _mode(ours: Mapping[str, Tensor]) -> str:
    reads = any(name.startswith(OURS) for name in ours)
    sees = any(name.startswith("video_model.") for name in ours)
    return "vision" if not reads else "fusion" if sees else "ocr"
