"""BertAdam trajectories, learning-rate schedules, the tokeniser."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from src.models.tokenizer import ClipTokenizer
from src.optim import schedules
from src.optim.factories import BertAdamFactory
from tests.parity.cases import GRADIENT_RTOL, Case, assert_close

SCHEDULES = {
    "warmup_cosine": schedules.WarmupCosine,
    "warmup_constant": schedules.WarmupConstant,
    "warmup_linear": schedules.WarmupLinear,
}


def check_bert_adam(case: Case) -> None:
    """Parameters after every step, groups and schedule from the case."""
    config, gradients, expected = case.meta["config"], case.group("in/grads"), case.group("out")
    parameters = {name: nn.Parameter(value.clone()) for name, value in case.group("param").items()}
    optimizer = BertAdamFactory(
        lr=config["lr"],
        weight_decay=config["weight_decay"],
        betas=(config["b1"], config["b2"]),
        eps=config["eps"],
        max_grad_norm=config["max_grad_norm"],
        rules=[
            {"pattern": r"^clip\.", "lr_multiplier": config["coef"]},
            {"pattern": "bias", "weight_decay": 0.0},
        ],
    ).build(parameters.items(), config["steps"])
    groups = {name: group for group in optimizer.param_groups for name in group["names"]}
    for name, rate, decay in case.meta["groups"]:
        assert groups[name]["lr"] == pytest.approx(config["lr"] * (config["coef"] if rate == "lr*coef" else 1))
        assert groups[name]["weight_decay"] == pytest.approx(float(decay.removeprefix("wd ")))
    scheduler = SCHEDULES[config["schedule"]](warmup=config["warm"]).build(optimizer, config["t_total"])
    for step in range(config["steps"]):
        for name, parameter in parameters.items():
            parameter.grad = gradients[name][step].clone()
        norm = nn.utils.clip_grad_norm_(parameters.values(), config["global_clip"])
        assert_close(norm, expected["total_grad_norm_before_clip"][step], name=f"norm at step {step}")
        optimizer.step()
        scheduler.step()
        for name, parameter in parameters.items():
            assert_close(parameter, expected[name][step], GRADIENT_RTOL, f"{name} after step {step}")


def check_schedules(case: Case) -> None:
    """The factors themselves, and as learning rates of an optimiser."""
    xs = case.meta["x"]
    for name, schedule in SCHEDULES.items():
        expected = torch.tensor(case.meta[name], dtype=torch.float64)
        function = getattr(schedules, name)
        got = torch.tensor([function(x, case.meta["warmup"]) for x in xs], dtype=torch.float64)
        assert_close(got, expected, name=name)
        steps = 1000
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = schedule(warmup=case.meta["warmup"]).build(optimizer, steps)
        for step in (round(x * steps) for x in xs):
            assert scheduler.lr_lambdas[0](step) == function(step / steps, case.meta["warmup"])


def check_tokenizer(case: Case) -> None:
    for row in case.meta["rows"]:
        tokenizer = ClipTokenizer(row["max_words"])
        tokens, mask = tokenizer([row["caption"]])
        assert tokens[0].tolist() == row["ids"], row["caption"]
        assert mask[0].int().tolist() == row["mask"], row["caption"]
        assert tokenizer.pieces(row["caption"]) == row["bpe"], row["caption"]


CHECKERS = {
    "clip2video": {
        "bertadam_*": check_bert_adam,
        "lr_schedules": check_schedules,
        "tokenizer": check_tokenizer,
    }
}
