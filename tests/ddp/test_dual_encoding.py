"""Dual Encoding trained by two processes and by one, in float64: losses, gradients, rates, weights.

What holds: all of them are equal, for the statistics of the batch norms and the hardest negatives are those of the
whole batch, and the concept loss is its sum. Without dropout, that is, which differs between processes; and with
`padding=masked`, or if every process holds an item of the greatest length: upstream's padding is that of the local
batch.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from src.batch import TextBatch, VideoBatch
from src.metrics.retrieval import evaluate
from src.models.dual_encoding import DualEncoding
from src.optim.decay_on_plateau import DecayOnPlateauFactory
from src.optim.factories import AdamFactory, RMSpropFactory
from tests.processes import run_processes
from tests.tiny_dual import WORDS, make, texts, videos

PAIRS, EPOCHS, STEPS = 8, 5, 2
SIZES = {"even": (4, 4), "uneven": (3, 5), "single": (1, 7)}
LENGTHS = [5, 2, 4, 5, 1, 3, 5, 2]
CAPTIONS = ["two dogs", "a red car runs", "dog", "two red cars", "dog runs", "red dog runs", "car", "a red dog runs"]
OPTIONS: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "sum_t2v": {"max_violation": False, "cost_style": "mean", "direction": "t2v", "gru_pool": "max"},
    "latent": {"space": "latent", "concate": "reduced", "measure": "l2"},
    "concept": {"space": "concept", "measure_2": "cosine", "direction": "v2t"},
}


class Training(nn.Module):
    """A training step as one forward, for DistributedDataParallel."""

    def __init__(self, model: DualEncoding) -> None:
        super().__init__()
        self.model = model

    def forward(self, text: TextBatch, video: VideoBatch) -> dict[str, Tensor]:
        return self.model.loss(self.model.encode_text(text), self.model.encode_video(video))


def build(padding: str, **options: Any) -> DualEncoding:
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocabulary.json"
        vocabulary.write_text(json.dumps({"words": WORDS}))
        return make(str(vocabulary), padding=padding, dropout=0.0, **options).double()


def batch(model: DualEncoding, step: int, rows: slice) -> tuple[TextBatch, VideoBatch]:
    text, video = texts(model, CAPTIONS), videos(LENGTHS, seed=step)
    video = video.map(lambda x: x.double() if x.is_floating_point() else x)
    return text.map(lambda x: x[rows]), video.map(lambda x: x[rows])


def score(model: DualEncoding, rows: slice) -> float:
    """SumR of a validation whose items are spread over the processes."""
    model.eval()
    with torch.no_grad():
        for part in batch(model, 99, rows):
            model._collect(part)
    text, video = model.collected("val")
    model.train()
    return float(evaluate(text, video, model.scorer(text, video)).scalars("val")["val/SumR"])


def run(rows: slice, parallel: bool, options: dict[str, Any], padding: str, optimizer: Any) -> dict[str, Any]:
    """Some epochs of training with the rule that follows the validation."""
    model = build(padding, **options).train()
    step_of: nn.Module = DistributedDataParallel(Training(model)) if parallel else Training(model)
    adam = optimizer.build(list(model.named_parameters()), 0)
    rule = DecayOnPlateauFactory("val/SumR", decay=0.9, patience=1).build(adam, 0)
    found: dict[str, Any] = {"rates": [], "scores": []}
    for step in range(EPOCHS * STEPS):
        adam.zero_grad()
        losses = step_of(*batch(model, step, rows))
        losses["loss"].backward()
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            found |= {"losses": {name: value.item() for name, value in losses.items()}, "gradients": gradients}
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        adam.step()
        if step % STEPS == STEPS - 1:
            found["scores"].append(score(model, rows))
            rule.step(found["scores"][-1])
            found["rates"].append(adam.param_groups[0]["lr"])
    return found | {"state": model.state_dict()}


def everything(rank: int) -> dict[str, Any]:
    """All distributed results in one go: starting processes is the slow part."""
    found = {}
    for name, sizes in SIZES.items():
        rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        chosen = OPTIONS if name == "uneven" else {"hybrid": OPTIONS["hybrid"]}
        for kind, options in chosen.items():
            found[f"{name}/{kind}/masked"] = run(rows, True, options, "masked", OPTIMIZER)
    found["even/hybrid/upstream"] = run(slice(4 * rank, 4 * rank + 4), True, {}, "upstream", OPTIMIZER)
    return found


# The gradient of a bias before a batch norm is rounding alone, by whose size Adam divides: with a large ε it stays put.
OPTIMIZER = AdamFactory(lr=1e-2, eps=1e-3)
CASES = [
    *(f"uneven/{kind}/masked" for kind in OPTIONS),
    *("even/hybrid/masked", "single/hybrid/masked", "even/hybrid/upstream"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads wait for each other longer than these sizes take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_processes(everything, 2)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(ranks: list[dict[str, Any]], case: str) -> None:
    _, kind, padding = case.split("/")
    expected = run(slice(None), False, OPTIONS[kind], padding, OPTIMIZER)
    found = [rank[case] for rank in ranks]
    for name, value in expected["losses"].items():  # DDP takes the mean of the processes
        assert sum(one["losses"][name] for one in found) / 2 == pytest.approx(value, rel=1e-10), name
    for one in found:
        assert one["gradients"].keys() == expected["gradients"].keys()
        for name, gradient in expected["gradients"].items():
            torch.testing.assert_close(one["gradients"][name], gradient, rtol=1e-8, atol=1e-11, msg=name)
        assert one["scores"] == pytest.approx(expected["scores"])
        assert one["rates"] == pytest.approx(expected["rates"])
        for name, value in expected["state"].items():
            torch.testing.assert_close(one["state"][name], value, rtol=1e-6, atol=1e-8, msg=name)
    halved = [now / before < 0.6 for before, now in zip(expected["rates"], expected["rates"][1:], strict=False)]
    assert any(halved), "the rule has to have something to follow"


def test_statistics_of_one_half_would_be_noticed(ranks: list[dict[str, Any]]) -> None:
    """Training on a half gives other gradients than two processes do, so the test above can fail."""
    alone = run(slice(0, 4), False, {}, "masked", RMSpropFactory(lr=1e-3))
    name = "text_spaces.latent.linear.weight"
    assert not torch.allclose(alone["gradients"][name], ranks[0]["even/hybrid/masked"]["gradients"][name], rtol=1e-2)
