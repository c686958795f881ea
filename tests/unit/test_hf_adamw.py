"""AdamW of transformers 4 by hand and against torch's; the golden case proves its trajectory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from src.optim.factories import HFAdamWFactory
from src.optim.hf_adamw import HFAdamW


def gradient(step: int, shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def by_hand(start: Tensor, steps: int, lr: float, eps: float, decay: float) -> Tensor:
    p, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t in range(1, steps + 1):
        g = gradient(t, start.shape)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p = p - lr * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * m / (v.sqrt() + eps)
        p = p - lr * decay * p
    return p


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_by_hand(decay: float) -> None:
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    parameter = nn.Parameter(start.clone())
    optimizer = HFAdamW([parameter], 0.1, eps=1e-2, weight_decay=decay)
    for step in range(1, 8):
        parameter.grad = gradient(step, start.shape)
        optimizer.step()
    torch.testing.assert_close(parameter.data, by_hand(start, 7, 0.1, 1e-2, decay), rtol=1e-12, atol=0)


def test_without_epsilon_and_decay_it_is_that_of_torch() -> None:
    ours, theirs = nn.Parameter(torch.ones(3, dtype=torch.float64)), nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizers = HFAdamW([ours], 0.1, eps=0.0), torch.optim.AdamW([theirs], 0.1, eps=0.0, weight_decay=0.0)
    for step in range(5):
        ours.grad, theirs.grad = gradient(step, ours.shape), gradient(step, ours.shape)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_parameters_without_gradient_are_left_alone_and_start_late() -> None:
    always, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = HFAdamW([always, late], 0.1, weight_decay=0.5)
    for step in range(3):
        always.grad = torch.ones(2)
        late.grad = torch.ones(2) if step == 2 else None
        if step == 2:
            assert torch.equal(late, torch.ones(2)), "not even decay"
        optimizer.step()
    assert (optimizer.state[always]["step"], optimizer.state[late]["step"]) == (3, 1)
    # Its first step is a first step: size lr in the direction of the sign, then the decay.
    torch.testing.assert_close(late.data, torch.full((2,), (1 - 0.1) * (1 - 0.05)), rtol=1e-4, atol=0)


def test_the_state_survives_a_checkpoint(tmp_path: Path) -> None:
    whole, cut = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizers = [HFAdamW([parameter], 0.1) for parameter in (whole, cut)]
    for step in range(6):
        if step == 3:
            torch.save(optimizers[1].state_dict(), tmp_path / "state")
            optimizers[1] = HFAdamW([cut], 0.7)
            optimizers[1].load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        for parameter, optimizer in zip((whole, cut), optimizers, strict=True):
            parameter.grad = gradient(step, parameter.shape).float()
            optimizer.step()
    assert torch.equal(whole, cut)


def test_groups_have_rates_of_their_own() -> None:
    named = [("tower.weight", nn.Parameter(torch.ones(2))), ("head.weight", nn.Parameter(torch.ones(2)))]
    optimizer = HFAdamWFactory(lr=0.1, rules=[{"pattern": r"^tower\.", "lr_multiplier": 0.0}]).build(named, 0)
    for _, parameter in named:
        parameter.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(named[0][1], torch.ones(2))
    torch.testing.assert_close(named[1][1].data, torch.full((2,), 0.9), rtol=1e-4, atol=0)
