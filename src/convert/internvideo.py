"""Checkpoints of InternVideo's retrieval models: their tensor names and ours, both ways.

A fine-tuned `pytorch_model.bin` is a bare state dict of the tower (`clip.`) and of the similarity header, if it has
weights. The pre-trained `InternVideo-MM-L-14.ckpt` is a Lightning file with the same tower and heads of other
tasks, which have no place here. The tower keeps its names in ours, the headers are those of CLIP4Clip.

Source: OpenGVLab/InternVideo @ 3965eef, InternVideo1/Downstream/Video-Text-Retrieval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from src.convert import clip4clip
from src.models.evl_weights import OURS, PUBLISHED, knows_video, listing, tower_tensors

_HEADERS = tuple((published, ours) for published, ours in clip4clip.NAMES if not published.startswith(PUBLISHED))


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a published checkpoint, of either layout."""
    return knows_video(state)


def is_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of an `InternVideo`."""
    return any(name.startswith(OURS) for name in state) and knows_video(state)


def from_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under our names, in float32; what belongs to neither tower nor header is left out."""
    found = tower_tensors(state)
    ours = {OURS + name: value for name, value in found.tower.items()}
    for name, value in found.others.items():
        if (header := _header(name)) is not None:
            ours[header] = value.float() if value.is_floating_point() else value
    return ours


def left_out(state: Mapping[str, Tensor], rest: Mapping[str, Any]) -> list[str]:
    """What of a published file is not converted, for the log: every name."""
    names = [name for name in tower_tensors(state).others if _header(name) is None]
    notes = [f"not converted: {len(names)} tensors outside the tower: {listing(names)}"] if names else []
    return notes + ([f"not converted: what the file says of its training: {', '.join(sorted(rest))}"] if rest else [])


def to_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the names of a fine-tuned `pytorch_model.bin`."""
    tower = {PUBLISHED + name.removeprefix(OURS): value for name, value in state.items() if name.startswith(OURS)}
    return tower | clip4clip.to_upstream({name: value for name, value in state.items() if not name.startswith(OURS)})


def options_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The model options that our tensors tell."""
    layers = sum(name.startswith(f"{OURS}visual.transformer.dec.") and name.endswith(".ln_3.weight") for name in state)
    return {
        "tower": "fusion" if any(".lmhra" in name for name in state) else "global",
        "decoder_layers": (layers, None),  # null: as many as published
    }


def _header(name: str) -> str | None:
    return next((ours + name.removeprefix(old) for old, ours in _HEADERS if name.startswith(old)), None)
