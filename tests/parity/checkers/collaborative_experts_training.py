"""How Collaborative Experts is trained: the ranking loss, the optimisers and the schedules by epochs."""

from __future__ import annotations

import torch
from torch import nn

from src.batch import TextEmbedding, VideoEmbedding
from src.losses.max_margin import MaxMarginLoss
from src.optim.epoch_schedules import CosineRestarts, StepDecay
from src.optim.factories import RAdamFactory, RangerFactory
from tests.parity.cases import GRADIENT_RTOL, Case, assert_close

OPTIMISERS = {"opt_radam": RAdamFactory, "opt_ranger": RangerFactory}


def check_loss(case: Case) -> None:
    """Value and gradient, with and without the entries of the pairs themselves."""
    sims_TV = case.tensors["in/sims"]
    ids = torch.arange(len(sims_TV))
    for fix_norm in (True, False):
        leaf_TV = sims_TV.clone().requires_grad_()
        loss = MaxMarginLoss(case.meta["hyper"]["margin"], fix_norm)
        value = loss(lambda text, video: leaf_TV, TextEmbedding(ids, {}, video_ids=ids), VideoEmbedding(ids, {}))  # noqa: B023
        value.backward()
        assert_close(value, case.tensors[f"out/loss_fix_norm_{fix_norm}"], name=f"loss, fix_norm={fix_norm}")
        gradient_TV = case.tensors[f"grad/sims_fix_norm_{fix_norm}"]
        assert_close(leaf_TV.grad, gradient_TV, GRADIENT_RTOL, f"gradient, fix_norm={fix_norm}")


def check_optimizer(case: Case) -> None:
    """Weights after every step of a regression, and the rates of the epochs."""
    hyper, expected = case.meta["hyper"], case.group("out")
    x, y = case.tensors["in/x"], case.tensors["in/y"]
    parameters = {name: nn.Parameter(case.tensors[f"in/{name}"].clone()) for name in ("w", "b")}
    factory = OPTIMISERS[case.name](lr=hyper["lr"], weight_decay=hyper["weight_decay"])
    optimizer = factory.build(parameters.items(), hyper["steps"])
    scheduler = StepDecay(gamma=hyper["steplr_gamma"]).build(optimizer, hyper["steps"])
    for step in range(hyper["steps"]):
        assert optimizer.param_groups[0]["lr"] == expected["lr"][step].item(), f"rate of step {step}"
        optimizer.zero_grad()
        loss = (x @ parameters["w"].T + parameters["b"] - y).square().mean()
        loss.backward()
        optimizer.step()
        assert_close(loss, expected["loss"][step], GRADIENT_RTOL, f"loss at step {step}")
        for name, parameter in parameters.items():
            assert_close(parameter, expected[name][step], name=f"{name} after step {step}")
        if (step + 1) % hyper["scheduler_every"] == 0:
            scheduler.step()


def check_cosine_restarts(case: Case) -> None:
    """The rate of every epoch, to the last bit."""
    hyper = case.meta["hyper"]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=hyper["lr"])
    scheduler = CosineRestarts(hyper["T_max"], hyper["T_mult"], hyper["eta_min"]).build(optimizer, 0)
    rates = []
    for _ in range(hyper["epochs"]):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == case.tensors["out/lr"].tolist()


CHECKERS = {
    "collaborative_experts": {
        "max_margin_loss": check_loss,
        "opt_*": check_optimizer,
        "cos_restart": check_cosine_restarts,
    }
}
