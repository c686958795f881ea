"""Symmetric InfoNCE at a fixed temperature, as Frozen-in-Time sums it.

Shape suffixes: B queries, N items.
"""

from __future__ import annotations

from torch import Tensor

from src.errors import UserError
from src.losses.gather import GatherMode
from src.losses.infonce import SymmetricInfoNCE


class NormSoftmaxLoss(SymmetricInfoNCE):
    """Mean cross-entropy of the captions over all videos plus that of the videos over all captions, of cosines.

    The two directions add up: a batch of N pairs at chance level costs 2 ln N.

    Args:
        temperature: what the cosines are divided by; it is not learned.
        gather: see `PairLoss`.
        same_video_positives: see `SymmetricInfoNCE`.

    Raises:
        UserError: the temperature is not above 0.

    Source: frozen-in-time model/loss.py NormSoftmaxLoss @ e1f13e1. It sees the batch of all GPUs, since DataParallel
        gathers it; so does `gather="exact"`.
    """

    def __init__(
        self, temperature: float = 0.05, gather: GatherMode = "exact", same_video_positives: bool = False
    ) -> None:
        super().__init__(gather, same_video_positives)
        if temperature <= 0:
            raise UserError(f"model.temperature={temperature}, expected more than 0; 0.05 is published")
        self.temperature = temperature

    def _cost(self, s_BN: Tensor, own_B: Tensor, name: str) -> Tensor:
        return super()._cost(s_BN / self.temperature, own_B, name)

    def _mean(self, total: Tensor, num_pairs: int) -> Tensor:
        return total / max(num_pairs, 1)
