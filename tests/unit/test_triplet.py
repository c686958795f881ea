"""The margin ranking loss on one process; tests/ddp/test_triplet.py has the rest, golden `losses` published values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.losses.triplet import TripletLoss, concept_loss


def embeddings(count: int = 4) -> tuple[TextEmbedding, VideoEmbedding]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(count)
    text = TextEmbedding(ids, {"x": torch.randn(count, 5, generator=generator)}, video_ids=ids)
    return text, VideoEmbedding(ids, {"x": torch.randn(count, 5, generator=generator)})


def dot(text: TextEmbedding, video: VideoEmbedding) -> Tensor:
    return text.parts["x"] @ video.parts["x"].T


def by_hand(s_TV: Tensor, margin: float, hardest: bool, mean: bool, direction: str) -> float:
    total = 0.0
    for queries in {"all": (s_TV, s_TV.T), "t2v": (s_TV,), "v2t": (s_TV.T,)}[direction]:
        costs = [
            [max(0.0, margin + float(row[j] - row[i])) for j in range(len(row)) if j != i]
            for i, row in enumerate(queries)
        ]
        values = [max(row) for row in costs] if hardest else [sum(row) for row in costs]
        total += sum(values) / ((len(s_TV) if hardest else len(s_TV) ** 2) if mean else 1)
    return total


@pytest.mark.parametrize("direction", ["all", "t2v", "v2t"])
@pytest.mark.parametrize("style", ["sum", "mean"])
@pytest.mark.parametrize("hardest", [True, False])
def test_equals_the_sum_over_pairs(hardest: bool, style: Any, direction: Any) -> None:
    text, video = embeddings()
    found = TripletLoss(0.3, hardest, style, direction)(dot, text, video)
    assert float(found) == pytest.approx(by_hand(dot(text, video), 0.3, hardest, style == "mean", direction), rel=1e-5)


def test_each_similarity_has_its_margin() -> None:
    text, video = embeddings()
    loss = TripletLoss({"a": 0.1, "b": 0.5})
    losses = loss.each({"a": dot, "b": dot}, text, video)
    for name, margin in (("a", 0.1), ("b", 0.5)):
        torch.testing.assert_close(losses[name], TripletLoss(margin)(dot, text, video))


def test_hardest_negative_takes_the_whole_gradient_even_among_equals() -> None:
    s_TV = torch.zeros(3, 3, requires_grad=True)
    text, video = embeddings(3)
    TripletLoss(0.2, direction="t2v")(lambda t, v: s_TV, text, video).backward()
    assert s_TV.grad is not None
    assert sorted(s_TV.grad.flatten().tolist()) == [-1, -1, -1, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_without_negatives_costs_nothing(count: int) -> None:
    text, video = embeddings(count)
    for style in ("sum", "mean"):
        assert TripletLoss(cost_style=style)(dot, text, video) == 0  # type: ignore[arg-type]


def test_pairs_are_insisted_on() -> None:
    text, video = embeddings()
    with pytest.raises(UserError, match="3 captions and 4 videos"):
        TripletLoss()(dot, text[:3], video)


def test_concept_loss_is_the_batch_size_times_the_mean() -> None:
    p_BK, y_BK = torch.rand(6, 5), torch.rand(6, 5)
    expected = -6 * (y_BK * p_BK.log() + (1 - y_BK) * (1 - p_BK).log()).mean()
    torch.testing.assert_close(concept_loss(p_BK, y_BK), expected)
    assert concept_loss(torch.tensor([[0.0]]), torch.tensor([[1.0]])) == 100
