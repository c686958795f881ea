"""Less memory or less time for a tower, with the same numbers under the same parameter names.

What repeats in a tower (the residual blocks of a transformer, the stages of a convolutional network) is compiled, or
computed again in the backward pass, one by one: blocks of one kind share one compiled program.

Attention needs nothing: open_clip's blocks ask `nn.MultiheadAttention` for no weights, and so it calls
`scaled_dot_product_attention` for frames and, with the causal mask, for captions, in training as in evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from src.errors import UserError

# A block is compiled anew where there is a mask or none, a gradient or none, trained or frozen weights; for every
# tower of a sweep. Torch's own limit of 8 would leave the later ones uncompiled, without a word.
MOST_VARIANTS = 128


class Recomputed:
    """A block's `forward` that keeps its input only: the backward pass computes the activations again.

    Dropout draws the same numbers again. An object rather than a closure, so that a copied block calls itself.

    Args:
        forward: the block's own method.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)


def speed_up(tower: nn.Module, activation_checkpointing: bool, compile: bool) -> None:
    """Change how the blocks of `tower` run, in place; nothing happens with both options off.

    Args:
        tower: any network with blocks that repeat; their number and names stay.
        activation_checkpointing: keep only the input of each block for the backward pass; a third more arithmetic.
        compile: the blocks by torch.compile, for batches and captions of any length. The first step is slow;
            numbers agree up to rounding.

    Raises:
        UserError: nothing repeats in the tower; or a block would update batch statistics twice.
    """
    if not (activation_checkpointing or compile):
        return
    blocks = list(repeated_blocks(tower))
    if not blocks:
        raise UserError(
            "model.activation_checkpointing and model.compile work on towers made of equal blocks, found none in "
            f"{type(tower).__name__}; set both to false"
        )
    for block in blocks:
        if activation_checkpointing:
            _refuse_batch_statistics(block)
            block.forward = Recomputed(block.forward)
        if compile:
            block.compile(dynamic=True, recompile_limit=MOST_VARIANTS)


def repeated_blocks(tower: nn.Module) -> Iterator[nn.Module]:
    """Items of module lists, and of sequences where a class repeats, that consist of layers; the outermost ones."""
    for child in tower.children():
        items = list(child.children())
        repeats = len({type(item) for item in items}) < len(items)
        is_row = isinstance(child, nn.ModuleList) or (isinstance(child, nn.Sequential) and repeats)
        if is_row and items and all(any(item.children()) for item in items):
            yield from items
        else:
            yield from repeated_blocks(child)


def _refuse_batch_statistics(block: nn.Module) -> None:
    if any(isinstance(module, _BatchNorm) for module in block.modules()):
        raise UserError(
            "model.activation_checkpointing=true would update the batch statistics of this tower twice a step "
            f"({type(block).__name__} has batch normalisation); choose an architecture without, such as a ViT, "
            "or set it to false"
        )
