"""Parameter groups, factories and schedules; the golden cases prove BertAdam's steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from src.errors import UserError
from src.models.clip2video import Clip2Video
from src.optim.bert_adam import BertAdam
from src.optim.factories import AdamWFactory, BertAdamFactory
from src.optim.groups import GroupRule, parameter_groups, read_rules
from src.optim.schedules import Constant, WarmupConstant, WarmupCosine, WarmupLinear
from tests.tiny_clip import tiny_arch

CONF = Path(__file__).resolve().parents[2] / "conf" / "optimizer"


def conf(name: str, **recipe: Any) -> dict[str, Any]:
    text = (CONF / f"{name}.yaml").read_text()
    for key, value in recipe.items():
        text = text.replace(f"'${{dataset.recipe.{key}}}'", str(value)).replace(
            f"${{dataset.recipe.{key}}}", str(value)
        )
    node = yaml.safe_load(text)
    return {key: float(value) if isinstance(value, str) else value for key, value in node.items() if key != "_target_"}


def groups_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    return {name: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for name in g["names"]}


@pytest.fixture(scope="module")
def model() -> Clip2Video:
    return Clip2Video(arch=tiny_arch(), num_frames=4, max_words=6)


def test_rules_multiply_rates_and_the_last_decay_counts() -> None:
    parameters = [(name, nn.Parameter(torch.zeros(1))) for name in ("a.w", "a.bias", "b.w", "b.bias")]
    rules = [GroupRule("^a", 0.1), GroupRule("^a", 0.5, 0.3), GroupRule("bias", weight_decay=0.0)]
    found = {n: (g["lr"], g["weight_decay"]) for g in parameter_groups(parameters, 1.0, 0.2, rules) for n in g["names"]}
    expected = {"a.w": (0.05, 0.3), "a.bias": (0.05, 0.0), "b.w": (1.0, 0.2), "b.bias": (1.0, 0.0)}
    assert found == expected


def test_default_groups_decay_matrices_only(model: Clip2Video) -> None:
    optimizer = AdamWFactory(**conf("adamw", lr=1.0, coef_lr=0.001)).build(model.named_parameters(), 10)
    groups = groups_of(model, optimizer)
    assert groups.keys() == {name for name, _ in model.named_parameters()}
    decayed = {name for name, (_, decay) in groups.items() if decay}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            assert name not in decayed
        is_table = any(word in name for word in ("embedding", "position", "kind", "assignment", "residual"))
        assert (name in decayed) == (parameter.ndim >= 2 and not is_table), name
        assert groups[name][0] == pytest.approx(0.001 if name.startswith("tower.") else 1.0)


def test_upstream_groups(model: Clip2Video) -> None:
    optimizer = BertAdamFactory(**conf("bert_adam", lr=1e-4, coef_lr=1e-3)).build(model.named_parameters(), 10)
    assert isinstance(optimizer, BertAdam)
    assert len(optimizer.param_groups) == 4
    groups = groups_of(model, optimizer)
    # Layer-norm weights, tables and the logit scale decay, as released.
    assert groups["tower.clip.logit_scale"] == pytest.approx((1e-7, 0.2))
    assert groups["tower.clip.ln_final.weight"] == pytest.approx((1e-7, 0.2))
    assert groups["temporal.resblocks.0.ln_1.bias"] == pytest.approx((1e-4, 0.0))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"pattern": "a", "lr_mult": 2}], "lr_mult"),
        ([{"lr_multiplier": 2}], "expected pattern"),
        ([{"pattern": "("}], "no regular expression"),
    ],
)
def test_wrong_rules(rules: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_rules(rules)


def test_frozen_model_is_refused() -> None:
    with pytest.raises(UserError, match="no trained parameter"):
        AdamWFactory(lr=1.0).build([], 10)


def test_bert_adam_step_by_hand() -> None:
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = BertAdam([parameter], lr=0.1, betas=(0.9, 0.99), eps=1.0, weight_decay=0.5, max_grad_norm=1.0)
    parameter.grad = torch.tensor([4.0])  # clipped to 1
    optimizer.step()
    expected = 2.0 - 0.1 * (0.1 / (0.1 + 1.0) + 0.5 * 2.0)
    assert parameter.item() == pytest.approx(expected, rel=1e-5)
    assert parameter.grad.item() == 4.0


def test_bert_adam_resumes_where_it_stopped() -> None:
    def run(stop: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(3))
        optimizer = BertAdam([parameter], lr=0.1)
        for step in range(6):
            if step == stop:
                saved = optimizer.state_dict()
                optimizer = BertAdam([parameter], lr=0.7)
                optimizer.load_state_dict(saved)
            parameter.grad = torch.randn(3)
            optimizer.step()
        return parameter.detach()

    assert torch.equal(run(None), run(3))


@pytest.mark.parametrize("schedule", [WarmupCosine, WarmupConstant, WarmupLinear])
def test_schedules_start_at_zero_and_end_as_named(schedule: type) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = schedule(warmup=0.1).build(optimizer, 20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == 0
    assert rates[1] == 1.0
    assert rates[2] == pytest.approx(2.0, rel=0.03)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2.0 if schedule is WarmupConstant else 0.0)


def test_no_warmup_and_no_schedule() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    WarmupLinear(warmup=0.0).build(optimizer, 10)
    assert optimizer.param_groups[0]["lr"] == 2.0
    Constant().build(optimizer, 10)
    with pytest.raises(UserError, match="fraction of the run"):
        WarmupCosine(warmup=1.0)
