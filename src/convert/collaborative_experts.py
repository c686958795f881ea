"""Checkpoints of Collaborative Experts and of the original MoEE: their tensors' names and ours, both ways.

Published are files of `torch.save`: `trained_model.pth` of collaborative-experts holds `state_dict` beside `config`
(an object, see `src.models.stand_ins`), `epoch`, `monitor_best`, `arch` and the optimizer's state, which is of no use
here; Mixture-of-Embedding-Experts saves a bare state dict.

Source: albanie/collaborative-experts @ 7eb3b9d, antoine77340/Mixture-of-Embedding-Experts @ a53979f.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from src.convert.collaborative_experts_config import model_options
from src.errors import UserError
from src.models.base import RetrievalModule
from src.models.collaborative_experts import CollaborativeExperts
from src.models.concat_experts import ConcatExperts
from src.models.stand_ins import ConfigParser

# (reference, ours): beginnings of names.
NAMES = (
    ("pooling.", "pooling."),
    ("text_pooling.", "text_pooling.vlad."),
    ("ce.moe_fc.", "mixture."),
    ("ce.video_dim_reduce.", "reduce."),
    ("ce.dim_reduce.", "gating.reduce."),
    ("ce.g_reason_1.", "gating.first."),
    ("ce.g_reason_unshared_weights.", "gating.specific."),
    ("ce.g_reason_shared.", "gating.shared."),
    ("ce.h_reason.", "gating.last."),
    ("ce.video_GU.", "video_gates."),
    ("ce.text_GU.", "text_gates."),
)
# Parts within names.
INNER = ((".g_reason_1_specific.", ".first."), (".g_reason_2_specific.", ".second."))
MOEE_NAMES = (
    ("audio_pooling.", "pooling.audio."),
    ("text_pooling.", "text_pooling.vlad."),
    ("mee.video_GU.", "video_gates."),
    ("mee.text_GU.", "text_gates."),
    ("mee.moe_fc.", "mixture."),
)
# The original MoEE numbers its experts as a dict of its training program lists them; ours go by the stores' names.
MOEE_EXPERTS = ("face", "audio", "visual", "motion")
OUR_EXPERTS = ("visual", "audio", "face", "motion")  # antoine-rgb, audio, face, flow
UNUSED = ("ce.moe_fc_bottleneck1.", "ce.moe_cg.", "ce.moe_fc_proj.")
"""Of old checkpoints: nothing reads them."""
COUNTER = "num_batches_tracked"
_OURS = tuple(sorted({ours.split(".")[0] + "." for _, ours in NAMES}))
_PROGRESS = ("arch", "epoch", "monitor_best")


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a published checkpoint, of either publication."""
    return any(name.removeprefix("module.").startswith(("ce.", "mee.")) for name in state)


def is_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a `CollaborativeExperts` or `ConcatExperts`."""
    return "mixture.weight" in state and all(name.startswith(_OURS) for name in state)


def from_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under our names, a `module.` prefix removed; `left_out` says which are dropped.

    Files of PyTorch 0.3 have no `num_batches_tracked`; with a fixed momentum nothing reads it: 0 is set.

    Raises:
        UserError: lists the tensors that do not belong to the publication.
    """
    bare = {name.removeprefix("module."): value for name, value in state.items()}
    original = any(name.startswith("mee.") for name in bare)
    names, inner = (MOEE_NAMES, ()) if original else (NAMES, INNER)
    converted, foreign = {}, []
    for name, value in bare.items():
        if name.startswith(UNUSED):
            continue
        ours = _rename(name, names, inner)
        if ours is None:
            foreign.append(name)
        else:
            converted[ours] = value
    if foreign:
        raise UserError(
            f"{len(foreign)} of {len(state)} tensors do not belong to Collaborative Experts: "
            f"{', '.join(sorted(foreign)[:12])}; expected a trained_model.pth of collaborative-experts"
        )
    if original:
        converted = reordered(converted, _places_of_moee(converted))
    for name in [name for name in converted if name.endswith(".running_mean")]:
        converted.setdefault(name.removesuffix("running_mean") + COUNTER, torch.zeros((), dtype=torch.int64))
    return converted


def left_out(state: Mapping[str, Tensor], rest: Mapping[str, Any]) -> list[str]:
    """What of a published file is not converted, for the log."""
    unused = [name for name in state if name.removeprefix("module.").startswith(UNUSED)]
    notes = [f"not converted, nothing reads them: {', '.join(unused)}"] if unused else []
    if "optimizer" in rest:
        notes.append("not converted: the state of the optimizer, which may be of another epoch than the weights")
    return notes


def to_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the published names; the inverse of `from_upstream`.

    Raises:
        UserError: a tensor that has no name there.
    """
    names = tuple((ours, upstream) for upstream, ours in NAMES)
    inner = tuple((ours, upstream) for upstream, ours in INNER)
    converted = {}
    for name, value in state.items():
        upstream = _rename(name, names, inner if name.startswith("gating.specific.") else ())
        if upstream is None:
            raise UserError(f"tensor {name} has no name in collaborative-experts; export a CE or MoEE model")
        converted[upstream] = value
    return converted


def to_moee(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors as the original MoEE names and numbers them: face, audio, visual, motion.

    Raises:
        UserError: not its four experts, antoine-rgb, audio, face and flow.
    """
    if "pooling.audio.clusters" not in state or len(state["mixture.bias"]) != len(OUR_EXPERTS):
        raise UserError(
            "found a model of other experts, expected the four of the original MoEE for task.format=moee; convert one "
            "of experts=antoine, or choose task.format=upstream"
        )
    moved = reordered(state, [OUR_EXPERTS.index(name) for name in MOEE_EXPERTS])
    names = tuple((ours, upstream) for upstream, ours in MOEE_NAMES)
    converted = {}
    for name, value in moved.items():
        upstream = _rename(name, names, ())
        if upstream is None:
            raise UserError(f"tensor {name} has no name in the original MoEE; export a model=moee")
        converted[upstream] = value
    return converted


def reordered(state: Mapping[str, Tensor], places: list[int]) -> dict[str, Tensor]:
    """Our tensors, whose expert number m becomes what number places[m] was."""
    moved = {}
    for name, value in state.items():
        group, _, rest = name.partition(".")
        if group == "mixture":
            moved[name] = value[places]
        elif group in ("video_gates", "text_gates"):
            number, _, leaf = rest.partition(".")
            moved[f"{group}.{places.index(int(number))}.{leaf}"] = value
        else:
            moved[name] = value
    return moved


def _places_of_moee(state: Mapping[str, Tensor]) -> list[int]:
    """Where the original MoEE has each of our experts, by their sizes: Python 2 left the order of a dict to chance.

    Raises:
        UserError: not four experts, of which one is pooled and the others differ in size.
    """
    sizes = expert_sizes(state)
    dim, clusters = state["pooling.audio.clusters"].shape
    audio = [place for place, size in enumerate(sizes) if size == (dim * clusters, dim)]
    others = sorted((place for place in range(len(sizes)) if place not in audio), key=lambda place: -sizes[place][1])
    if len(audio) != 1 or len({sizes[place][1] for place in others}) != 3 or len(others) != 3:
        raise UserError(
            f"found experts of sizes {', '.join(f'{i} -> {o}' for i, o in sizes)}, expected those of the original "
            "MoEE: appearance, motion and face, of falling size, and pooled audio"
        )
    found = dict(zip(("visual", "motion", "face", "audio"), (*others, *audio), strict=True))
    return [found[name] for name in OUR_EXPERTS]


def expert_sizes(ours: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """(pooled dimension, dimension of the embedding) of each expert; empty for Concat, whose tensors do not tell."""
    table = "reduce." if any(name.startswith("reduce.") for name in ours) else "video_gates."
    shapes = {}
    for name, value in ours.items():
        number, _, leaf = name.removeprefix(table).partition(".")
        if name.startswith(table) and leaf == "fc.weight":
            shapes[int(number)] = (value.shape[1], value.shape[0])
    return [shapes[number] for number in sorted(shapes)] if len(shapes) == len(ours["mixture.bias"]) else []


def options_of(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of the model that its tensors tell, a dot between levels."""
    told: dict[str, Any] = {}
    pooled = {name.split(".")[1] for name in ours if name.startswith("pooling.")}
    for name in sorted(pooled):
        told[f"vlad_clusters.{name}"] = ours[f"pooling.{name}.clusters"].shape[1]
    if "text_pooling.vlad.clusters" in ours:
        both, kept = (ours[f"text_pooling.vlad.{name}"].shape[-1] for name in ("clusters", "clusters2"))
        told |= {"vlad_clusters.text": kept, "text_ghost_clusters": both - kept}
    sizes = expert_sizes(ours)
    if not sizes:
        return told | {"mix": "video_gates.0.fc.weight" in ours}
    gating = _wiring(ours)
    told |= {"gating": gating, "project": "reduce.0.fc.weight" in ours}
    if told["project"]:
        told["shared_dim"] = sizes[0][1]
    if gating != "none":
        told |= {"g_layers": 1 + _count_linear(ours, "shared"), "h_layers": _count_linear(ours, "last")}
        layers = [name for name in ours if name.startswith(("gating.shared.", "gating.last."))]
        if layers:
            told["reason_norm"] = any(name.endswith(".running_mean") for name in layers)
    return told


def _count_linear(ours: Mapping[str, Tensor], part: str) -> int:
    start = f"gating.{part}."
    return sum(name.startswith(start) and name.endswith(".weight") and value.ndim == 2 for name, value in ours.items())


def _wiring(ours: Mapping[str, Tensor]) -> str | tuple[str, ...]:
    if any(name.startswith("gating.specific.") for name in ours):
        return "pairwise-star-specific"
    if "gating.reduce.weight" in ours:
        return "pairwise-star-tensor"
    if "gating.first.weight" not in ours:
        return "none"
    rows, columns = ours["gating.first.weight"].shape
    return "triplet" if columns == 3 * rows else ("pairwise", "pairwise-star")


def resolved(options: Mapping[str, Any]) -> dict[str, Any]:
    """The model's options with gating=auto spelled out, and the steps of features that their own entries set."""
    found = dict(options)
    experts = found.get("experts") or {}
    if found.get("gating") == "auto":
        found["gating"] = "pairwise" if found.get("project") and len(experts) > 1 else "none"
    entries = {**experts, "text": found.get("text") or {}}
    steps = {name: entry["max_steps"] for name, entry in entries.items() if entry.get("max_steps")}
    found["max_tokens"] = steps | dict(found.get("max_tokens") or {})
    return found


def extras(state: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """What a published file says beside its tensors, as plain values: progress, and the configuration.

    Args:
        state: its tensors, as they are named there.
        rest: its other entries.
    """
    config = rest.get("config")
    values = vars(config).get("_config") if isinstance(config, ConfigParser) else config
    found = {name: rest[name] for name in _PROGRESS if isinstance(rest.get(name), str | int | float)}
    if isinstance(values, Mapping):
        # Paths and other objects are of the machine on which it was made.
        found["config"] = json.loads(json.dumps(values, default=lambda value: None))
    return found


def options_told(found: Mapping[str, Any]) -> dict[str, Any]:
    """The options among the extras that change what the model computes and that no tensor tells."""
    if not found.get("config"):
        return {}
    options = model_options(found["config"])
    needless = ("margin", "fix_norm", "randomise", "test_caption_mode")
    return {name: value for name, value in options.items() if name not in needless}


def file_content(
    state: Mapping[str, Tensor], options: Mapping[str, Any], found: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a published file holds, but for the optimizer's state; the configuration is a dict there.

    Args:
        state: tensors named as `to_upstream` does.
        options: of our model; not used, the reference builds its model from its own configuration.
        found: `extras` of the published file from which the tensors came.
    """
    if any(name.startswith("mee.") for name in state):
        return OrderedDict(state)
    told = dict(found or {})
    return {
        "arch": told.get("arch", "CENet"),
        "epoch": told.get("epoch", 0),
        "state_dict": OrderedDict(state),
        "monitor_best": told.get("monitor_best", 0.0),
        "config": told.get("config", {}),
    }


def check_inputs(model: RetrievalModule, ours: Mapping[str, Tensor], found: Mapping[str, Any], source: str) -> None:
    """Compare the features that the checkpoint reads with those that are configured.

    Raises:
        UserError: another model, other experts or captions, with their dimensions.
    """
    if not isinstance(model, CollaborativeExperts | ConcatExperts):
        raise UserError(f"{source} is of Collaborative Experts; choose model=ce, moee, concat or concat_mix")
    names = [spec.store or spec.name for spec in model.pooling.specs]
    published = _modalities(found)
    read = [size for size, _ in expert_sizes(ours)]
    experts = len(ours["mixture.bias"])
    if len(names) != experts or (read and read != model.pooling.output_dims):
        wanted = ", ".join(published) if published else f"{experts} experts, alphabetical by their stores' names"
        dims = f" with {', '.join(map(str, read))} dimensions after pooling" if read else ""
        mine = ", ".join(f"{n} {d}" for n, d in zip(names, model.pooling.output_dims, strict=True))
        raise UserError(
            f"{source} reads {wanted}{dims}; found {mine}; choose experts=… with these stores and dimensions, and "
            "model.vlad_clusters.… as they were trained"
        )
    vlad = ours.get("text_pooling.vlad.clusters")
    spec = model.text_pooling.spec
    dim = None if vlad is None else len(vlad)
    if dim not in (None, spec.dim):
        told = found.get("config", {}).get("experts", {}).get("text_feat")
        raise UserError(
            f"{source} reads captions of {dim} dimensions{f' ({told})' if told else ''}, found text={spec.name} of "
            f"{spec.dim}; choose text=… as they were trained"
        )


def _modalities(found: Mapping[str, Any]) -> list[str]:
    return sorted(str(name) for name in found.get("config", {}).get("experts", {}).get("modalities", ()))


def _rename(name: str, starts: tuple[tuple[str, str], ...], parts: tuple[tuple[str, str], ...]) -> str | None:
    for old, new in starts:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            for inner, replacement in parts:
                name = name.replace(inner, replacement)
            return name
    return None
