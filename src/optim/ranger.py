"""Rectified Adam with decoupled decay, and Ranger: the same with Lookahead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from src.optim.by_step import AdamByStep


class RAdam(AdamByStep):
    """Adam whose steps are shortened while the variance of the squared gradients is uncertain (arXiv 1908.03265).

    m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²;  p ← (1 − lr·decay)·p − lr·r·√(1−β₂ᵗ)/(1−β₁ᵗ) · m/(√v + ε), with the
    rectification r of step t. In the first steps, where r is not defined, p ← (1 − lr·decay)·p − lr/(1−β₁ᵗ) · m.

    The same as `torch.optim.RAdam(decoupled_weight_decay=True)`, whose many passes over memory take several times as
    long on the CPU: a rectified step is one of AdamW with another rate, decay and ε, for which torch has a kernel.

    Args:
        params: parameters or groups. One without gradient is left alone, and its step is not counted.
        lr: learning rate.
        betas: β₁, β₂.
        eps: ε, outside the root of the uncorrected v.
        weight_decay: multiplied by the learning rate.

    Source: collaborative-experts model/radam.py @ 7eb3b9d.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _update(self, parameters: list[Tensor], step: int, group: dict[str, Any]) -> None:
        """Move parameters that are at the same step."""
        beta1, beta2 = group["betas"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        averages = [self.state[parameter]["exp_avg"] for parameter in parameters]
        squares = [self.state[parameter]["exp_avg_sq"] for parameter in parameters]
        rectification = _rectification(step, beta2)
        if rectification is None:
            for parameter, gradient, average, square in zip(parameters, gradients, averages, squares, strict=True):
                average.lerp_(gradient, 1 - beta1)
                square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(average, alpha=-group["lr"] / (1 - beta1**step))
            return
        adamw(
            parameters,
            gradients,
            averages,
            squares,
            [],
            # The kernel counts up itself, and wants to do it on the device.
            [torch.full((), step - 1.0, device=parameter.device) for parameter in parameters],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"] * rectification,
            weight_decay=group["weight_decay"] / rectification,
            eps=group["eps"] / (1 - beta2**step) ** 0.5,  # AdamW adds it to √(v/(1−β₂ᵗ))
            maximize=False,
        )


class Ranger(RAdam):
    """RAdam with Lookahead (arXiv 1907.08610): slow weights, where the run starts, follow every `k` steps.

    slow ← slow + α(p − slow);  p ← slow.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: β₁, β₂.
        eps: ε, outside the root.
        weight_decay: multiplied by the learning rate.
        k: steps between two updates of the slow weights.
        alpha: how far these go, α.

    Source: collaborative-experts model/ranger.py @ 7eb3b9d.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 0.0,
        k: int = 6,
        alpha: float = 0.5,
    ) -> None:
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self.k, self.alpha = k, alpha

    def _start(self, parameter: Tensor) -> dict[str, Any]:
        return super()._start(parameter) | {"slow": parameter.clone()}

    def _update(self, parameters: list[Tensor], step: int, group: dict[str, Any]) -> None:
        super()._update(parameters, step, group)
        if step % self.k == 0:
            for parameter in parameters:
                parameter.copy_(self.state[parameter]["slow"].lerp_(parameter, self.alpha))


def _rectification(step: int, beta2: float) -> float | None:
    """r of step t, from 1; None where the variance is not defined yet (ρ up to 5)."""
    limit = 2 / (1 - beta2) - 1
    length = limit - 2 * step * beta2**step / (1 - beta2**step)
    if length <= 5:
        return None
    return ((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)) ** 0.5
