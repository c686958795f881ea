"""The mean margin ranking loss against loops; the golden case and tests/ddp prove values and processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.losses.max_margin import MaxMarginLoss


def value(s_TV: Tensor, margin: float = 0.3, fix_norm: bool = True) -> Tensor:
    ids = torch.arange(len(s_TV))
    pairs = TextEmbedding(ids, {}, video_ids=ids), VideoEmbedding(ids, {})
    return MaxMarginLoss(margin, fix_norm)(lambda text, video: s_TV, *pairs)


def by_hand(s_TV: Tensor, margin: float, fix_norm: bool) -> float:
    n = len(s_TV)
    costs = [
        max(0.0, margin - float(s_TV[i, i]) + float(other))
        for i in range(n)
        for j in range(n)
        if not fix_norm or i != j
        for other in (s_TV[i, j], s_TV[j, i])
    ]
    return sum(costs) / len(costs)


@pytest.mark.parametrize("fix_norm", [True, False])
def test_against_loops(fix_norm: bool) -> None:
    s_TV = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert value(s_TV, 0.3, fix_norm).item() == pytest.approx(by_hand(s_TV, 0.3, fix_norm), rel=1e-12)


def test_the_two_means_are_related_as_stated() -> None:
    s_TV = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    both = value(s_TV, 0.3, True), value(s_TV, 0.3, False)
    assert both[1].item() == pytest.approx(4 / 5 * both[0].item() + 0.3 / 5, rel=1e-12)


def test_one_pair() -> None:
    with pytest.raises(UserError, match=r"holds 1 pair\(s\), expected at least 2"):
        value(torch.ones(1, 1))
    assert value(torch.ones(1, 1), 0.25, fix_norm=False).item() == 0.25


def test_pairs_are_expected() -> None:
    ids = torch.arange(3)
    with pytest.raises(UserError, match="expected pairs"):
        MaxMarginLoss()(
            lambda text, video: torch.zeros(3, 2),
            TextEmbedding(ids, {}, video_ids=ids),
            VideoEmbedding(ids[:2], {}),
        )
