"""What optimisers of the Adam family that torch lacks have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class AdamByStep(Optimizer):
    """Calls `_update` with all parameters of a group that are at the same step; those without a gradient wait.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: β₁, β₂.
        eps: ε.
        weight_decay: as the subclass applies it.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, *, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_step: dict[int, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter not in self.state:
                    self.state[parameter] = self._start(parameter)
                self.state[parameter]["step"] += 1
                by_step.setdefault(self.state[parameter]["step"], []).append(parameter)
            for step, parameters in by_step.items():
                self._update(parameters, step, group)
        return loss

    def _start(self, parameter: Tensor) -> dict[str, Any]:
        """State of a parameter before its first step."""
        return {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}

    @abstractmethod
    def _update(self, parameters: list[Tensor], step: int, group: dict[str, Any]) -> None:
        """Move parameters that are at the same step, counted from 1; all have a gradient."""
