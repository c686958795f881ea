"""The groups in which InternVideo is trained, against the published rule applied to the published names."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from src.config import compose
from src.convert import internvideo
from src.models.base import RetrievalModule
from src.tasks import build

TABLE = json.loads(
    (Path(__file__).resolve().parents[1] / "golden" / "internvideo" / "state_dict_and_freeze.json").read_text()
)
UNREAD = "text_mask_embedding"  # never gets a gradient, so upstream does not train it either
RECIPES = {  # rate of everything that is called clip.: lr·coef_lr of the six scripts
    "msrvtt": 4e-6,
    "msvd": 2.5e-6,
    "lsmdc": 2e-6,
    "activitynet": 2e-6,
    "didemo": 2e-6,
    "vatex": 5e-6,
}
# Heads whose weights have published names; the others cannot be compared.
HEADS = ("seqLSTM", "seqTransf", "tightTransf", "wti")


def published_rule(name: str, lr: float, coef_lr: float) -> tuple[float, float]:
    """Rate and decay. Source: CLIP4Clip main_task_retrieval.py prep_optimizer @ 508ffa3."""
    exempt = any(part in name for part in ("bias", "LayerNorm.bias", "LayerNorm.weight"))
    return lr * coef_lr if "clip." in name else lr, 0.0 if exempt else 0.2


@cache
def composed(*words: str) -> DictConfig:
    (values,) = compose.preflight(compose.parse(list(words)))
    cfg = OmegaConf.create(values)
    assert isinstance(cfg, DictConfig)
    return cfg


def groups_of(cfg: DictConfig) -> dict[str, tuple[float, float]]:
    """Rate and decay of every trained parameter, by its published name."""
    model = build.empty_model(cfg)
    factory, _ = build.build_optimization(cfg)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    optimizer = factory.build(trained, 100)
    assert {type(optimizer).__name__} == {"BertAdam"}
    found: dict[str, tuple[float, float]] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            found[published_name(model, name, parameter)] = (group["lr"], group["weight_decay"])
    return found


def published_name(model: RetrievalModule, name: str, parameter: torch.Tensor) -> str:
    (published,) = internvideo.to_upstream({name: parameter})
    return published


def assert_equal(found: dict[str, tuple[float, float]], expected: dict[str, tuple[float, float]]) -> None:
    assert found.keys() == expected.keys()
    for index in (0, 1):
        assert {name: both[index] for name, both in found.items()} == pytest.approx(
            {name: both[index] for name, both in expected.items()}
        )


@pytest.mark.parametrize("frozen", [key for key in TABLE["frozen"] if "linear_patch" not in key])
def test_full_size_groups_are_the_published_ones(frozen: str) -> None:
    layers = frozen.partition("=")[2]
    cfg = composed("experiment=internvideo_msrvtt", f"model.freeze_layers={layers}", "selection=last")
    trained = TABLE["keys"].keys() - set(TABLE["frozen"][frozen]) - {UNREAD}
    names = [TABLE["prefix_in_finetuned_checkpoint"] + name for name in trained]
    lr, coef_lr = cfg.dataset.recipe.lr, cfg.dataset.recipe.coef_lr
    assert_equal(groups_of(cfg), {name: published_rule(name, lr, coef_lr) for name in names})


@pytest.mark.parametrize("dataset", RECIPES)
def test_every_data_set_has_its_rate(dataset: str) -> None:
    cfg = composed(f"experiment=internvideo_{dataset}", "selection=last")
    groups = groups_of(cfg)
    (rate,) = {rate for rate, _ in groups.values()}
    assert rate == pytest.approx(RECIPES[dataset])
    assert {decay for _, decay in groups.values()} == {0.0, 0.2}
    assert cfg.scheduler._target_.endswith("WarmupCosine")
    assert cfg.scheduler.warmup == 0.1
    # Both limits on the gradient: of all tensors together, and of each.
    assert (cfg.trainer.gradient_clip_val, cfg.trainer.gradient_clip_algorithm) == (1.0, "norm")
    assert cfg.optimizer.max_grad_norm == 1.0
    assert list(cfg.optimizer.betas) == [0.9, 0.98]
    assert cfg.optimizer.eps == 1e-6


@pytest.mark.parametrize("head", HEADS)
def test_heads_have_their_own_rate(head: str) -> None:
    words = ("model=internvideo", "dataset=toy", "optimizer=bert_adam", f"model/head={head}")
    cfg = composed(*words, "dataset.recipe.lr=1e-3", "dataset.recipe.coef_lr=1e-2")
    groups = groups_of(cfg)
    assert any("clip." not in name for name in groups)
    assert_equal(groups, {name: published_rule(name, 1e-3, 1e-2) for name in groups})
