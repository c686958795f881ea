"""The choice of a layer over frames, for heads that compare word by word and frame by frame.

Shape suffixes: B items, T frames, D joint dimension.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from src.models.heads.base import HeadHost
from src.models.heads.seq_lstm import LstmOrder
from src.models.heads.seq_transf import TransformerOrder

Order = Literal["none", "seqLSTM", "seqTransf"]


class NoOrder(nn.Module):
    """Frames as they are."""

    def forward(self, frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        return frames_BTD


def frame_order(order: Order, host: HeadHost, layers: int = 4) -> nn.Module:
    """A module (frames_BTD, mask_BT) -> frames (B, T, D) that know of each other.

    Args:
        order: "none" leaves them alone; the others as the heads of the same name.
        host: the model.
        layers: blocks of the transformer, for "seqTransf".
    """
    if order == "none":
        return NoOrder()
    return LstmOrder(host) if order == "seqLSTM" else TransformerOrder(host, layers)
