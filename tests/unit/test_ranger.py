"""RAdam and Ranger against torch and by hand, their state in checkpoints; the golden cases prove the trajectories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from src.errors import UserError
from src.optim.factories import RAdamFactory, RangerFactory
from src.optim.ranger import RAdam, Ranger

CONF = Path(__file__).resolve().parents[2] / "conf" / "optimizer"
STEPS = 15
OPTIMISERS: dict[str, type[RAdam]] = {"radam": RAdam, "ranger": Ranger}


def start() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 3), (3,), ())]


def gradients(step: int, parameters: list[nn.Parameter]) -> None:
    """Random gradients that depend on the step alone; the second parameter has none in every third step."""
    generator = torch.Generator().manual_seed(100 + step)
    for index, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = None if index == 1 and step % 3 == 1 else gradient


def groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.01, "weight_decay": 0.0}]


def test_radam_is_that_of_torch_with_decoupled_decay() -> None:
    ours, theirs = start(), start()
    options: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1}
    optimizer = RAdam(groups(ours), **options)
    reference = torch.optim.RAdam(groups(theirs), **options, decoupled_weight_decay=True)
    for step in range(50):
        gradients(step, ours)
        gradients(step, theirs)
        optimizer.step()
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=f"step {step}")


def test_parameters_without_gradient_are_left_alone() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Ranger([used, unused], 0.1, weight_decay=0.5)
    used.grad = torch.ones(2)
    for _ in range(7):
        optimizer.step()
    assert torch.equal(unused, torch.ones(2)), "not even decay"
    assert unused not in optimizer.state
    assert not torch.equal(used, torch.ones(2))


def test_slow_weights_start_where_the_run_starts() -> None:
    fast, ranger = start(), start()
    plain = RAdam(fast, 0.1, betas=(0.95, 0.999), eps=1e-5)
    optimizer = Ranger(ranger, 0.1, k=4, alpha=0.25)
    before = [parameter.detach().clone() for parameter in fast]
    for step in (0, 2, 3, 5):  # all with gradients
        torch.testing.assert_close(ranger, fast, rtol=0, atol=0)
        gradients(step, fast)
        gradients(step, ranger)
        plain.step()
        optimizer.step()
    for found, end, first in zip(ranger, fast, before, strict=True):
        torch.testing.assert_close(found.detach(), 0.75 * first + 0.25 * end.detach())
        assert torch.equal(found, optimizer.state[found]["slow"])


def test_a_closure_is_evaluated_with_gradients() -> None:
    parameter = nn.Parameter(torch.tensor([3.0]))
    optimizer = RAdam([parameter], 0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert parameter.item() == pytest.approx(3.0 - 0.1 * 6.0)  # first step: m/(1−β₁) = g, no denominator


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("cut", [2, 5, 6, 8, 12])
def test_resumed_is_bit_equal(name: str, cut: int, tmp_path: Path) -> None:
    """Before and after the first rectified step, at an update of the slow weights, and between two."""

    def run(cut: int | None) -> list[nn.Parameter]:
        parameters = start()
        optimizer = OPTIMISERS[name](groups(parameters), 0.1, weight_decay=1e-3)
        for step in range(STEPS):
            if step == cut:
                torch.save((optimizer.state_dict(), [p.detach() for p in parameters]), tmp_path / "saved")
                state, values = torch.load(tmp_path / "saved", weights_only=True)  # as checkpoints are loaded
                parameters = [nn.Parameter(value) for value in values]
                optimizer = OPTIMISERS[name](groups(parameters), 0.7)
                optimizer.load_state_dict(state)
            gradients(step, parameters)
            optimizer.step()
        return parameters

    for whole, resumed in zip(run(None), run(cut), strict=True):
        assert torch.equal(whole, resumed)


@pytest.mark.parametrize(
    ("name", "factory", "betas", "eps"),
    [("ranger", RangerFactory, (0.95, 0.999), 1e-5), ("radam", RAdamFactory, (0.9, 0.999), 1e-8)],
)
def test_the_yaml_holds_what_the_publication_used(name: str, factory: Any, betas: tuple, eps: float) -> None:
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    options |= {"lr": 0.1} | {key: float(options[key]) for key in ("eps", "weight_decay")}
    assert options.pop("_target_") == f"src.optim.factories.{factory.__name__}"
    optimizer = factory(**options).build([("w", nn.Parameter(torch.zeros(2))), ("b", nn.Parameter(torch.zeros(1)))], 0)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"], group["names"]) == (0.1, betas, eps, ["w", "b"])
    assert type(optimizer) is OPTIMISERS[name]
    if isinstance(optimizer, Ranger):
        assert (optimizer.k, optimizer.alpha) == (6, 0.5)


def test_rules_reach_the_groups() -> None:
    rules = [{"pattern": "b", "lr_multiplier": 0.1, "weight_decay": 0.0}]
    parameters = [("w", nn.Parameter(torch.zeros(2))), ("b", nn.Parameter(torch.zeros(1)))]
    found = RangerFactory(lr=1.0, weight_decay=0.5, rules=rules).build(parameters, 0).param_groups
    assert [(group["names"], group["lr"], group["weight_decay"]) for group in found] == [
        (["w"], 1.0, 0.5),
        (["b"], 0.1, 0.0),
    ]


@pytest.mark.parametrize("wrong", [{"k": 0}, {"alpha": 0.0}, {"alpha": 1.5}])
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"optimizer.{next(iter(wrong))}=.*expected"):
        RangerFactory(lr=0.1, **wrong)
