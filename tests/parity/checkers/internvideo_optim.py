"""BertAdam as InternVideo trains with it: two limits on the gradient, groups by name, the clamped logit scale."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from src.models.clip_tower import MAX_LOGIT_SCALE
from src.optim.factories import BertAdamFactory
from src.optim.schedules import WarmupCosine
from tests.parity.cases import GRADIENT_RTOL, ROOT, Case, assert_close

# The case's own names tell the groups; under these the configured rules have to find them.
NAMES = {
    "clip_decay": "tower.clip.visual.conv1.weight",
    "clip_nodecay": "tower.clip.ln_final.bias",
    "logit_scale": "tower.clip.logit_scale",
    "noclip_decay": "head.words.weight",
    "noclip_nodecay": "head.words.bias",
}


def settings(lr: float, coef_lr: float) -> dict[str, Any]:
    """`optimizer=bert_adam` at these rates."""
    file = OmegaConf.load(ROOT / "conf" / "optimizer" / "bert_adam.yaml")
    recipe = {"dataset": {"recipe": {"lr": lr, "coef_lr": coef_lr}}}
    options: Any = OmegaConf.to_container(OmegaConf.create({"optimizer": file, **recipe}).optimizer, resolve=True)
    return {key: value for key, value in options.items() if key != "_target_"}


def check_bert_adam(case: Case) -> None:
    meta, given, expected = case.meta, case.group("in"), case.group("out")
    parameters = {NAMES[name]: nn.Parameter(value.clone()) for name, value in given.items() if "grad_" not in name}
    assert parameters.keys() == set(NAMES.values())
    options = settings(meta["base_lr"], meta["coef_lr"])
    options |= {"betas": (meta["b1"], meta["b2"])} | {k: meta[k] for k in ("eps", "weight_decay", "max_grad_norm")}
    optimizer = BertAdamFactory(**options).build(parameters.items(), meta["t_total"])
    scheduler = WarmupCosine(warmup=meta["warmup"]).build(optimizer, meta["t_total"])
    steps = [int(name.split("_")[1]) for name in given if name.startswith("grad_") and name.endswith("logit_scale")]
    assert sorted(steps) == list(range(len(steps)))
    for step in range(len(steps)):
        for name, ours in NAMES.items():
            parameters[ours].grad = given[f"grad_{step}_{name}"].clone()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            parameters[NAMES["logit_scale"]].clamp_(max=MAX_LOGIT_SCALE)
        for name, ours in NAMES.items():
            assert_close(parameters[ours], expected[f"step{step}_{name}"], GRADIENT_RTOL, f"{name} after step {step}")


CHECKERS = {"internvideo": {"bertadam": check_bert_adam}}
