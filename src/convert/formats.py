"""The published families of checkpoints, and how to tell them apart by their tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from src.convert import clip4clip, collaborative_experts, dual_encoding, frozen, howto100m, internvideo, xpool
from src.models.base import RetrievalModule

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
        options_of: the model options that our tensors tell, a dot between levels; a tuple where several have the same
            tensors.
        extras: what a published file says beside its tensors, as plain values, from the file's tensors and the rest
            of its content; converted files carry it.
        options_told: the model options among the extras that change what the model computes.
        content: what a published file holds, from published names, the model's options and the extras with which the
            tensors came; None where it is a state dict as it is, which goes into a safetensors file.
        left_out: what of a published file is not converted, for the log.
        check_inputs: raises UserError where the model reads other things than the checkpoint.
        resolved: the model's options, with defaults that others imply spelled out.
        fitted: our tensors with what the model's options may change about them, and what was changed, for the log.
    """

    name: str
    is_ours: Callable[[State], bool]
    is_published: Callable[[State], bool]
    from_upstream: Callable[[State], dict[str, Tensor]]
    exports: Mapping[str, Callable[[State], dict[str, Tensor]]]
    options_of: Callable[[State], dict[str, Any]] = field(default=lambda state: {})
    extras: Callable[[State, Mapping[str, Any]], dict[str, Any]] = field(default=lambda state, rest: {})
    options_told: Callable[[Mapping[str, Any]], dict[str, Any]] = field(default=lambda extras: {})
    content: Callable[[State, Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] | None = None
    left_out: Callable[[State, Mapping[str, Any]], list[str]] = field(default=lambda state, rest: [])
    check_inputs: Callable[[RetrievalModule, State, Mapping[str, Any], str], None] = field(
        default=lambda model, state, extras, source: None
    )
    resolved: Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default=lambda options: options)
    fitted: Callable[[RetrievalModule, State, Mapping[str, Any]], tuple[State, list[str]]] = field(
        default=lambda model, state, options: (state, [])
    )


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
        extras=dual_encoding.extras,
        options_told=dual_encoding.options_told,
        content=dual_encoding.file_content,
    ),
    Family(
        "Collaborative Experts",
        is_ours=collaborative_experts.is_ours,
        is_published=collaborative_experts.is_published,
        from_upstream=collaborative_experts.from_upstream,
        exports={"upstream": collaborative_experts.to_upstream, "moee": collaborative_experts.to_moee},
        options_of=collaborative_experts.options_of,
        extras=collaborative_experts.extras,
        options_told=collaborative_experts.options_told,
        content=collaborative_experts.file_content,
        left_out=collaborative_experts.left_out,
        check_inputs=collaborative_experts.check_inputs,
        resolved=collaborative_experts.resolved,
    ),
    Family(
        "HowTo100M",
        is_ours=howto100m.is_ours,
        is_published=howto100m.is_published,
        from_upstream=howto100m.from_upstream,
        exports={"upstream": howto100m.to_upstream},
        left_out=howto100m.left_out,
        check_inputs=howto100m.check_inputs,
    ),
    Family(
        "Frozen in Time and TextVR",
        is_ours=frozen.is_ours,
        is_published=frozen.is_published,
        from_upstream=frozen.from_upstream,
        exports={"upstream": frozen.to_upstream},
        options_of=frozen.options_of,
        extras=frozen.extras,
        content=frozen.file_content,
        left_out=frozen.left_out,
        check_inputs=frozen.check_inputs,
        resolved=frozen.resolved,
        fitted=frozen.fitted,
    ),
    Family(  # before those of CLIP: its similarity headers have their names
        "InternVideo",
        is_ours=internvideo.is_ours,
        is_published=internvideo.is_published,
        from_upstream=internvideo.from_upstream,
        exports={"upstream": internvideo.to_upstream},
        options_of=internvideo.options_of,
        left_out=internvideo.left_out,
    ),
    Family(
        "X-Pool",
        is_ours=xpool.is_ours,
        is_published=xpool.is_published,
        from_upstream=xpool.from_upstream,
        exports={"upstream": xpool.to_upstream},
    ),
    # The last one takes whatever nobody else knows, and says which tensors it does not know either.
    Family(
        "CLIP4Clip, CLIP2Video, DRL and X-CLIP",
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
