"""How Frozen-in-Time and TextVR are trained: both losses on matrices of cosines, and AdamW of transformers 4."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from src.batch import TextEmbedding, VideoEmbedding
from src.losses.max_margin import MaxMarginLoss
from src.losses.norm_softmax import NormSoftmaxLoss
from src.losses.pairs import PairLoss
from src.optim.factories import HFAdamWFactory
from tests.parity.cases import GRADIENT_RTOL, ROOT, Case, assert_close

OUTCOME = re.compile(r"(?P<input>sim\d)_(?P<loss>normsoftmax|maxmargin)_[Tm](?P<number>[\d.]+)(_fix(?P<fix>[01]))?")


def check_losses(case: Case) -> None:
    """Values and gradients with respect to the cosines; and cosines themselves, one row being zero."""
    outcomes = case.group("out")
    cosines_TV = outcomes.pop("sim_matrix_ab")
    a_TD, b_VD = (F.normalize(case.tensors[f"in/{name}"], dim=-1, eps=1e-8) for name in "ab")
    assert_close(a_TD @ b_VD.T, cosines_TV, name="cosines")
    assert (case.tensors["in/a"] == 0).all(1).any() or (case.tensors["in/b"] == 0).all(1).any()
    for name, expected in outcomes.items():
        found = OUTCOME.fullmatch(name)
        assert found is not None, name
        leaf_TV = case.tensors[f"in/{found['input']}"].clone().requires_grad_()
        value = _value(_loss(found), leaf_TV)
        value.backward()
        assert_close(value, expected, name=name)
        assert_close(leaf_TV.grad, case.tensors[f"grad/{name}"], GRADIENT_RTOL, f"gradient of {name}")


def _loss(found: re.Match[str]) -> PairLoss:
    number = float(found["number"])
    return NormSoftmaxLoss(number) if found["loss"] == "normsoftmax" else MaxMarginLoss(number, found["fix"] == "1")


def _value(loss: PairLoss, s_TV: Tensor) -> Tensor:
    """Of a batch of pairs by the public way; of a matrix that is not square the queries that have an item."""
    pairs = min(s_TV.shape)
    ids = torch.arange(pairs)
    if s_TV.shape[0] == s_TV.shape[1]:
        return loss(lambda text, video: s_TV, TextEmbedding(ids, {}, video_ids=ids), VideoEmbedding(ids, {}))
    total = loss._cost(s_TV[:pairs], ids, "loss") + loss._cost(s_TV.T[:pairs], ids, "loss")
    return loss._mean(total, pairs)


def check_hf_adamw(case: Case) -> None:
    """The weights after every step, with what `optimizer=hf_adamw` says."""
    file = OmegaConf.load(ROOT / "conf" / "optimizer" / "hf_adamw.yaml")
    chosen = {"optimizer": file, "dataset": {"recipe": {"lr": 1e-2}}}
    options: Any = OmegaConf.to_container(OmegaConf.create(chosen).optimizer, resolve=True)
    assert options.pop("_target_") == "src.optim.factories.HFAdamWFactory"
    assert options["weight_decay"] == case.meta["default_weight_decay_in_reference"]
    options["weight_decay"] = case.meta["weight_decay"]
    given, expected = case.group("in"), case.group("out")
    parameter = nn.Parameter(given["p0"].clone())
    optimizer = HFAdamWFactory(**options).build([("p", parameter)], 0)
    for step in range(len(given) - 1):
        parameter.grad = given[f"grad{step}"].clone()
        optimizer.step()
        assert_close(parameter, expected[f"p{step + 1}"], name=f"weights after step {step}")
    assert len(expected) == len(given) - 1


CHECKERS = {"textvr": {"losses": check_losses, "hf_adamw": check_hf_adamw}}
