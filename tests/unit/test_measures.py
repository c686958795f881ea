"""Similarities of one space; golden `losses` and `similarities` have the published values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from src.errors import UserError
from src.models import measures
from src.models.measures import evaluation_measure, jaccard_tiled, training_measure

NAMES = ("cosine", "order", "euclidean", "l1", "l2", "l1_norm", "l2_norm", "jaccard")


def direct(text_TD: Tensor, video_VD: Tensor) -> Tensor:
    s, v = text_TD.double()[:, None], video_VD.double()[None]
    return torch.minimum(s, v).sum(2) / torch.maximum(s, v).sum(2)


@settings(max_examples=40, deadline=None)
@given(
    texts=st.integers(1, 40),
    videos=st.integers(1, 80),
    dim=st.integers(1, 700),
    spread=st.sampled_from([0.1, 1.0, 8.0]),
    seed=st.integers(0, 1000),
)
def test_jaccard_equals_the_direct_formula(texts: int, videos: int, dim: int, spread: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    s = (spread * torch.randn(texts, dim, generator=generator)).sigmoid()
    v = (spread * torch.randn(videos, dim, generator=generator)).sigmoid()
    v[: min(texts, videos)] = s[: min(texts, videos)]  # pairs that are equal
    expected = direct(s, v)
    for found in (jaccard_tiled(s, v), training_measure("jaccard")(s, v)):
        assert found.dtype == torch.float32
        assert (found.double() - expected).abs().max() <= 1e-6
    assert (jaccard_tiled(s.double(), v.double()) - expected).abs().max() <= 1e-12


def test_tiles_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    s, v = torch.rand(50, 16, generator=generator), torch.rand(70, 16, generator=generator)
    expected = jaccard_tiled(s, v)
    monkeypatch.setattr(measures, "STRIP", 7)
    for size in (1, 64 * 5, 64 * 100):  # less than a pair; five pairs; three rows of a tile
        monkeypatch.setattr(measures, "TILE_BYTES", {"cpu": size, "cuda": size})
        torch.testing.assert_close(jaccard_tiled(s, v), expected, rtol=1e-6, atol=0)
    assert jaccard_tiled(s.T.contiguous().T, v).equal(jaccard_tiled(s, v))
    assert jaccard_tiled(s[:0], v).shape == (0, 70)
    assert jaccard_tiled(s, v[:0]).shape == (50, 0)


def test_nothing_predicted_on_either_side_is_alike_to_nothing() -> None:
    zero, some = torch.zeros(1, 3), torch.rand(2, 3)
    for measure in (training_measure("jaccard"), evaluation_measure("jaccard")):
        assert measure(zero, zero).tolist() == [[0]]
        assert measure(zero, some).tolist() == [[0, 0]]


def test_jaccard_gradient_is_that_of_the_direct_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(1, 5, (5, 6), generator=generator).double()  # coarse: many equal coordinates
    other = torch.randint(1, 5, (4, 6), generator=generator).double()
    weights = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    gradients = []
    for similarity in (training_measure("jaccard"), direct):
        s, v = values.clone().requires_grad_(), other.clone().requires_grad_()
        (weights * similarity(s, v)).sum().backward()
        gradients.append((s.grad, v.grad))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_nearest_scores_best(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    v = torch.nn.functional.normalize(torch.rand(6, 8, generator=generator), dim=1)
    s = v + 0.001 * torch.rand(6, 8, generator=generator)
    for measure in (training_measure(name), evaluation_measure(name)):  # type: ignore[arg-type]
        assert measure(s, v).argmax(1).tolist() == list(range(6))


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_equal_vectors_is_finite(name: str) -> None:
    s = torch.rand(3, 4, requires_grad=True)
    training_measure(name)(s, s.detach().clone()).sum().backward()  # type: ignore[arg-type]
    assert s.grad is not None
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_keeps_no_gradient(name: str) -> None:
    s = torch.rand(3, 4, requires_grad=True)
    assert not evaluation_measure(name)(s, s).requires_grad  # type: ignore[arg-type]


def test_an_unknown_measure_is_not_read_as_cosine() -> None:
    with pytest.raises(UserError, match="found 'cosinus', expected one of cosine, order"):
        training_measure("cosinus")  # type: ignore[arg-type]
