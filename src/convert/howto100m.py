"""Checkpoints of HowTo100M's text tower and of `MNNet`, which has one number: their tensors' names and ours.

`s3d_howto100m.pth` is a bare state dict of both towers; here only the text tower exists, and videos are features. The
names are those of the published program; the file itself could not be fetched to check them.

Source: antoine77340/S3D_HowTo100M s3dg.py @ 1ee55d1, albanie/collaborative-experts model/model.py MNNet @ 7eb3b9d.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from src.errors import UserError
from src.models.base import RetrievalModule
from src.models.howto100m import PREFIX, HowTo100M

NUMBER = "dummy_param"
OURS = "text_side."


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a published checkpoint, of either publication."""
    return any(_bare(name) == NUMBER or _bare(name).startswith(PREFIX) for name in state)


def is_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a `HowTo100M`."""
    return "dummy" in state and all(name == "dummy" or name.startswith(OURS) for name in state)


def from_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under our names, those of the video tower left out."""
    bare = {_bare(name): value for name, value in state.items()}
    tower = {OURS + name.removeprefix(PREFIX): value for name, value in bare.items() if name.startswith(PREFIX)}
    return {"dummy": bare.get(NUMBER, torch.tensor([1e-5])).reshape(1), **tower}


def left_out(state: Mapping[str, Tensor], rest: Mapping[str, Any]) -> list[str]:
    """What of a published file is not converted, for the log."""
    video = [name for name in state if _bare(name) != NUMBER and not _bare(name).startswith(PREFIX)]
    notes = [f"not converted: {len(video)} tensors of the video tower, such as {video[0]}"] if video else []
    return notes + (["not converted: the state of the optimizer"] if "optimizer" in rest else [])


def to_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under published names: the text tower's where there is one, else the one number."""
    tower = {PREFIX + name.removeprefix(OURS): value for name, value in state.items() if name.startswith(OURS)}
    return tower or {NUMBER: state["dummy"]}


def check_inputs(model: RetrievalModule, ours: Mapping[str, Tensor], found: Mapping[str, Any], source: str) -> None:
    """Compare what the checkpoint reads with what is configured.

    Raises:
        UserError: another model, or a text tower without or with other words.
    """
    if not isinstance(model, HowTo100M):
        raise UserError(f"{source} is of HowTo100M; choose model=mnnet")
    table = ours.get(f"{OURS}word_embd.weight")
    words = 0 if table is None else len(table) - 1
    known = 0 if model.tokenizer is None else len(model.tokenizer.ids)
    if words != known:
        raise UserError(
            f"{source} has a text tower of {words:,} words, found {known:,} in model.vocabulary; give "
            "model.vocabulary=s3d_dict.npy with it, or leave it out for features of captions"
        )


def _bare(name: str) -> str:
    return name.removeprefix("module.")
