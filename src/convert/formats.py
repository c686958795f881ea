"""The published families of checkpoints, and how to tell them apart by their tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from src.convert import clip4clip, dual_encoding

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """Models whose checkpoints share names and layout.

    Attributes:
        name: for messages.
        is_ours: whether a state dict has our names.
        is_published: whether it has published ones.
        from_upstream: published tensors under our names.
        exports: value of `task.format` -> our tensors under those published names.
        options_of: the model options that our tensors tell.
        content: what a published file holds, from published names and the model's options; None where it is a state
            dict as it is, which goes into a safetensors file.
    """

    name: str
    is_ours: Callable[[State], bool]
    is_published: Callable[[State], bool]
    from_upstream: Callable[[State], dict[str, Tensor]]
    exports: Mapping[str, Callable[[State], dict[str, Tensor]]]
    options_of: Callable[[State], dict[str, Any]] = field(default=lambda state: {})
    content: Callable[[State, Mapping[str, Any]], dict[str, Any]] | None = None


FAMILIES = (
    Family(
        "Dual Encoding",
        is_ours=dual_encoding.is_ours,
        is_published=dual_encoding.is_published,
        from_upstream=dual_encoding.from_upstream,
        exports={
            "upstream": dual_encoding.to_upstream,
            "conference": lambda state: dual_encoding.to_upstream(state, conference=True),
        },
        options_of=dual_encoding.options_of,
        content=dual_encoding.file_content,
    ),
    # The last one takes whatever nobody else knows, and says which tensors it does not know either.
    Family(
        "CLIP4Clip and CLIP2Video",
        is_ours=lambda state: any(name.startswith("tower.") for name in state),
        is_published=lambda state: True,
        from_upstream=clip4clip.from_upstream,
        exports={"upstream": clip4clip.to_upstream},
    ),
)
FORMATS = ("ours", *dict.fromkeys(name for family in FAMILIES for name in family.exports))


def family_of(state: State) -> Family:
    """The family that a state dict belongs to."""
    return next(family for family in FAMILIES if family.is_ours(state) or family.is_published(state))
