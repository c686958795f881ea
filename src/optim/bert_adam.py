"""Adam as BERT's first code had it, which CLIP4Clip trains with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class BertAdam(Optimizer):
    """Adam without bias correction, with decoupled decay and a norm limit on each tensor.

    m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²;  p ← p − lr·(m/(√v + ε) + decay·p), where g is first scaled to
    norm `max_grad_norm` at most, tensor by tensor, in addition to any limit on the whole gradient.
    The schedule is a learning-rate scheduler's job: with the warm-ups of `src.optim.schedules` the first
    step has rate 0, as upstream.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: β₁, β₂.
        eps: ε, outside the root.
        weight_decay: multiplied by the learning rate.
        max_grad_norm: limit per tensor; 0 or less for none.

    Source: CLIP4Clip modules/optimization.py BertAdam @ 508ffa3.
    Deviates: gradients are not changed in place.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.2,
        max_grad_norm: float = 1.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "max_grad_norm": max_grad_norm}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["m"] = torch.zeros_like(parameter)
            state["v"] = torch.zeros_like(parameter)
        limit, (beta1, beta2) = group["max_grad_norm"], group["betas"]
        if limit > 0:
            gradient = gradient * (limit / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp(max=1.0)
        state["m"].lerp_(gradient, 1 - beta1)
        state["v"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = state["m"] / (state["v"].sqrt() + group["eps"])
        if group["weight_decay"] > 0:
            update.add_(parameter, alpha=group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"])
