"""Optimisers as configured: built once the parameters and the length of the run are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from src.errors import UserError
from src.optim.bert_adam import BertAdam
from src.optim.groups import parameter_groups, read_rules
from src.optim.hf_adamw import HFAdamW
from src.optim.ranger import RAdam, Ranger


@dataclass(frozen=True)
class AdamWFactory:
    """AdamW (arXiv 1711.05101).

    Attributes:
        lr: base learning rate.
        weight_decay: base weight decay.
        betas: β₁, β₂.
        eps: ε.
        rules: parameter groups; see `GroupRule`.
        fused: one kernel for all tensors (CUDA); null lets torch choose.
    """

    lr: float
    weight_decay: float = 0.01
    betas: Sequence[float] = (0.9, 0.98)
    eps: float = 1e-6
    rules: Sequence[Mapping[str, Any]] = ()
    fused: bool | None = None

    def build(self, named_parameters: Iterable[tuple[str, Tensor]], total_steps: int) -> Optimizer:
        """`total_steps` is not used: the schedule is the scheduler's."""
        groups = parameter_groups(named_parameters, self.lr, self.weight_decay, read_rules(self.rules))
        beta1, beta2 = self.betas
        return torch.optim.AdamW(groups, lr=self.lr, betas=(beta1, beta2), eps=self.eps, fused=self.fused)


@dataclass(frozen=True)
class BertAdamFactory:
    """The optimiser of CLIP4Clip; see `BertAdam`.

    Attributes:
        lr: base learning rate.
        weight_decay: base weight decay.
        betas: β₁, β₂.
        eps: ε.
        max_grad_norm: limit on the gradient norm of each tensor.
        rules: parameter groups; see `GroupRule`.
    """

    lr: float
    weight_decay: float = 0.2
    betas: Sequence[float] = (0.9, 0.98)
    eps: float = 1e-6
    max_grad_norm: float = 1.0
    rules: Sequence[Mapping[str, Any]] = ()

    def build(self, named_parameters: Iterable[tuple[str, Tensor]], total_steps: int) -> Optimizer:
        """`total_steps` is not used: the schedule is the scheduler's."""
        groups = parameter_groups(named_parameters, self.lr, self.weight_decay, read_rules(self.rules))
        beta1, beta2 = self.betas
        return BertAdam(groups, self.lr, betas=(beta1, beta2), eps=self.eps, max_grad_norm=self.max_grad_norm)


@dataclass(frozen=True)
class AdamFactory:
    """Adam (arXiv 1412.6980).

    Attributes:
        lr: base learning rate.
        betas: β₁, β₂.
        eps: ε.
        weight_decay: base L2 penalty, added to the gradient.
        rules: parameter groups; see `GroupRule`.
        fused: one kernel for all tensors; null: on the CPU, where it is twice as fast, and elsewhere as torch chooses.
    """

    lr: float
    betas: Sequence[float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    rules: Sequence[Mapping[str, Any]] = ()
    fused: bool | None = None

    def build(self, named_parameters: Iterable[tuple[str, Tensor]], total_steps: int) -> Optimizer:
        """`total_steps` is not used: the schedule is the scheduler's."""
        groups = parameter_groups(named_parameters, self.lr, self.weight_decay, read_rules(self.rules))
        beta1, beta2 = self.betas
        on_cpu = all(parameter.device.type == "cpu" for group in groups for parameter in group["params"])
        fused = True if self.fused is None and on_cpu else self.fused
        optimizer = torch.optim.Adam(groups, lr=self.lr, betas=(beta1, beta2), eps=self.eps, fused=fused)
        if on_cpu:  # Lightning takes the attribute for a reason not to clip gradients; there is no scaling on the CPU
            optimizer._step_supports_amp_scaling = False
        return optimizer


@dataclass(frozen=True)
class HFAdamWFactory:
    """AdamW of transformers 4; see `HFAdamW`.

    Attributes:
        lr: base learning rate.
        weight_decay: base weight decay.
        betas: β₁, β₂.
        eps: ε, added before the bias is corrected.
        rules: parameter groups; see `GroupRule`.
    """

    lr: float
    weight_decay: float = 0.0
    betas: Sequence[float] = (0.9, 0.999)
    eps: float = 1e-6
    rules: Sequence[Mapping[str, Any]] = ()

    def build(self, named_parameters: Iterable[tuple[str, Tensor]], total_steps: int) -> Optimizer:
        """`total_steps` is not used: the schedule is the scheduler's."""
        groups = parameter_groups(named_parameters, self.lr, self.weight_decay, read_rules(self.rules))
        beta1, beta2 = self.betas
        return HFAdamW(groups, self.lr, betas=(beta1, beta2), eps=self.eps)


@dataclass(frozen=True)
class RMSpropFactory:
    """RMSprop, uncentred.

    Attributes:
        lr: base learning rate.
        alpha: smoothing of the squared gradients.
        eps: ε, outside the root.
        momentum: 0 for none.
        weight_decay: base L2 penalty, added to the gradient.
        rules: parameter groups; see `GroupRule`.
    """

    lr: float
    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.0
    rules: Sequence[Mapping[str, Any]] = ()

    def build(self, named_parameters: Iterable[tuple[str, Tensor]], total_steps: int) -> Optimizer:
        """`total_steps` is not used: the schedule is the scheduler's."""
        groups = parameter_groups(named_parameters, self.lr, self.weight_decay, read_rules(self.rules))
        return torch.optim.RMSprop(groups, lr=self.lr, alpha=self.alpha, eps=self.eps, momentum=self.momentum)


@dataclass(frozen=True)
class RAdamFactory:
    """RAdam with decoupled decay; see `RAdam`.

    Attributes:
        lr: base learning rate.
        weight_decay: base weight decay.
        betas: β₁, β₂.
        eps: ε, outside the root.
        rules: parameter groups; see `GroupRule`.
    """

    lr: float
    weight_decay: float = 0.0
    betas: Sequence[float] = (0.9, 0.999)
    eps: float = 1e-8
    rules: Sequence[Mapping[str, Any]] = ()

    def build(self, named_parameters: Iterable[tuple[str, Tensor]], total_steps: int) -> Optimizer:
        """`total_steps` is not used: the schedule is the scheduler's."""
        groups = parameter_groups(named_parameters, self.lr, self.weight_decay, read_rules(self.rules))
        beta1, beta2 = self.betas
        return RAdam(groups, self.lr, betas=(beta1, beta2), eps=self.eps)


@dataclass(frozen=True)
class RangerFactory:
    """RAdam with Lookahead; see `Ranger`.

    Attributes:
        lr: base learning rate.
        weight_decay: base weight decay.
        betas: β₁, β₂.
        eps: ε, outside the root.
        k: steps between two updates of the slow weights, at least 1.
        alpha: how far these follow, above 0 and at most 1; 1 is RAdam.
        rules: parameter groups; see `GroupRule`.
    """

    lr: float
    weight_decay: float = 0.0
    betas: Sequence[float] = (0.95, 0.999)
    eps: float = 1e-5
    k: int = 6
    alpha: float = 0.5
    rules: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"optimizer.k={self.k}, expected a number of steps, 1 or more")
        if not 0 < self.alpha <= 1:
            raise UserError(f"optimizer.alpha={self.alpha}, expected a fraction above 0 and at most 1")

    def build(self, named_parameters: Iterable[tuple[str, Tensor]], total_steps: int) -> Optimizer:
        """`total_steps` is not used: the schedule is the scheduler's."""
        groups = parameter_groups(named_parameters, self.lr, self.weight_decay, read_rules(self.rules))
        beta1, beta2 = self.betas
        return Ranger(groups, self.lr, betas=(beta1, beta2), eps=self.eps, k=self.k, alpha=self.alpha)
