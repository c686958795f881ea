"""AdamW as transformers had it until version 5, which Frozen-in-Time and TextVR train with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from src.optim.by_step import AdamByStep


class HFAdamW(AdamByStep):
    """Adam whose ε is added before the bias is corrected, with a decay that comes after the update.

    m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²;  p ← p − lr·(√(1−β₂ᵗ)/(1−β₁ᵗ))·m/(√v + ε);  p ← p − lr·decay·p.
    `torch.optim.AdamW` decays first, and its ε is added after the correction: that of step t equals ε/√(1−β₂ᵗ) there,
    32 times as much in the first step.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: β₁, β₂.
        eps: ε, outside the root.
        weight_decay: multiplied by the learning rate.

    Source: transformers optimization.py AdamW @ v4.6.0 with its correct_bias=True.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _update(self, parameters: list[Tensor], step: int, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]  # all have one
        m, v = ([self.state[parameter][name] for parameter in parameters] for name in ("exp_avg", "exp_avg_sq"))
        # All tensors of a group at once: on GPUs a few kernels in place of several per tensor.
        torch._foreach_mul_(m, beta1)
        torch._foreach_add_(m, gradients, alpha=1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, gradients, gradients, value=1 - beta2)
        roots = torch._foreach_sqrt(v)
        torch._foreach_add_(roots, group["eps"])
        size = group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        torch._foreach_addcdiv_(parameters, m, roots, value=-size)
        if group["weight_decay"] > 0:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
