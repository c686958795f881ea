"""QB-Norm against its formula, written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import rankdata

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.metrics.qb_norm import QueryBank, evaluate_matrix_with_bank, evaluate_with_bank
from src.metrics.retrieval import MatrixScore, evaluate_matrix


def normalised(bank: np.ndarray, scores: np.ndarray, beta: float, k: int) -> np.ndarray:
    """The published formula; the logarithm of it where exp would overflow."""
    hubs = np.unique(np.argsort(-bank, axis=1, kind="stable")[:, :k])
    out = scores.astype(np.float64).copy()
    for row in np.flatnonzero(np.isin(scores.argmax(1), hubs)):
        out[row] = beta * scores[row].astype(np.float64) - logsumexp(beta * bank.astype(np.float64), axis=0)
    return out


def problem(seed: int, captions: int, videos: int, queries: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    hubness = rng.standard_normal(videos) * 0.5
    return tuple(
        (scale * (rng.standard_normal((n, videos)) * 0.3 + hubness)).astype(np.float32) for n in (queries, captions)
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 30),
    st.integers(2, 15),
    st.integers(1, 40),
    st.sampled_from([0.5, 1 / 1.99, 20.0, 100.0]),
    st.integers(1, 2),
    st.integers(1, 9),
)
def test_ranks_follow_the_formula(
    seed: int, captions: int, videos: int, queries: int, beta: float, k: int, block: int
) -> None:
    bank, scores = problem(seed, captions, videos, queries)
    owner = np.random.default_rng(seed + 1).integers(0, videos, captions)
    tally = QueryBank.of(torch.from_numpy(bank).split(block), videos, beta, k)
    found = evaluate_matrix_with_bank(
        MatrixScore(scores), torch.from_numpy(owner), videos, tally, ties="average", block=block
    )
    expected = normalised(bank, scores, beta, k)
    ranks = [rankdata(-row)[own] for row, own in zip(expected, owner, strict=True)]
    assert found.result.t2v_ranks.tolist() == ranks
    assert found.result.t2v["MnR"] == pytest.approx(np.mean(ranks))
    assert found.result.v2t == found.raw.v2t
    assert found.raw.t2v == evaluate_matrix(scores, torch.from_numpy(owner), videos, ties="average").t2v
    assert tally.size == queries
    assert tally.log_sum_V.numpy() == pytest.approx(
        logsumexp(beta * bank.astype(np.float64), axis=0), rel=1e-6, abs=1e-5
    )
    best = expected.argmax(1)
    assert found.result.t2v_topk[0][:, 0].tolist() == best.tolist()
    assert found.result.t2v_topk[1][:, 0].numpy() == pytest.approx(scores[np.arange(captions), best], abs=1e-5)


@pytest.mark.parametrize("scale", [100.0, 1000.0])
def test_large_exponents_do_not_overflow(scale: float) -> None:
    """beta times the score reaches 1e5, where exp is infinite in float32 and in float64."""
    bank, scores = problem(3, 200, 20, 300, scale)
    tally = QueryBank.of([torch.from_numpy(bank)], 20, 100.0)
    found = evaluate_matrix_with_bank(MatrixScore(scores), torch.arange(200) % 20, 20, tally, ties="average")
    expected = normalised(bank, scores, 100.0, 1)
    assert tally.log_sum_V.isfinite().all()
    assert found.changed > 0
    assert found.result.t2v_ranks.tolist() == [rankdata(-row)[n % 20] for n, row in enumerate(expected)]


def test_a_hub_loses_the_queries_that_are_not_its_own() -> None:
    """Video 0 is the best of every query; without it each query finds its own video."""
    scores = 0.5 * np.eye(6, dtype=np.float32)
    scores[:, 0] = 0.6
    found = evaluate_matrix_with_bank(
        MatrixScore(scores), torch.arange(6), 6, QueryBank.of([torch.from_numpy(scores)], 6, 20.0)
    )
    assert found.raw.t2v["R1"] == pytest.approx(100 / 6)
    assert found.result.t2v["R1"] == 100.0
    assert found.details("x")["hub_videos"] == 1
    assert found.details("x")["rescored_captions"] == 6
    assert found.words("captions of train") == "QB-Norm t2v only (beta 20, k 1, bank 6 captions of train)"


def test_parts_of_a_bank_merge_to_the_whole() -> None:
    bank, _ = problem(5, 1, 12, 90)
    whole = QueryBank.of([torch.from_numpy(bank)], 12, 20.0, k=2)
    pieces = [
        QueryBank.of([torch.from_numpy(part)], 12, 20.0, k=2) for part in (bank[:1], bank[1:60], bank[60:], bank[:0])
    ]
    merged = QueryBank(12, 20.0, k=2)
    for piece in pieces:
        merged.merge(piece)
    assert merged.size == whole.size == 90
    assert torch.equal(merged.hubs_V, whole.hubs_V)
    assert torch.allclose(merged.log_sum_V, whole.log_sum_V, rtol=1e-7)


def test_embeddings_give_what_their_matrix_gives() -> None:
    """Ids are neither positions nor in order; rows repeat, as a padded sampler has it."""
    rng = np.random.default_rng(0)
    text = TextEmbedding(
        torch.from_numpy(rng.permutation(30) * 2 + 100),
        {"x": torch.from_numpy(rng.integers(-3, 4, (30, 6))).float()},
        video_ids=torch.from_numpy(rng.integers(0, 8, 30)) * 3 + 5,
    )
    video = VideoEmbedding(torch.arange(8) * 3 + 5, {"x": torch.from_numpy(rng.integers(-3, 4, (8, 6))).float()})
    queries = torch.from_numpy(rng.integers(-3, 4, (50, 6))).float()
    bank = QueryBank.of([queries @ video.parts["x"].T], 8, 0.3)
    order = text.ids.argsort()
    matrix = text.parts["x"][order] @ video.parts["x"].T
    owner = (text.video_ids[order] - 5) // 3
    expected = evaluate_matrix_with_bank(MatrixScore(matrix), owner, 8, bank)
    rows = torch.cat([torch.arange(30), torch.tensor([4, 4])])
    found = evaluate_with_bank(text[rows], video, lambda t, v: t.parts["x"] @ v.parts["x"].T, bank, block=4)
    assert found.result.t2v == expected.result.t2v != expected.raw.t2v
    assert torch.equal(found.result.t2v_ranks, expected.result.t2v_ranks)
    assert found.changed == expected.changed


def test_masked_rows_are_no_queries() -> None:
    bank, scores = problem(9, 40, 10, 60)
    owner, mask = torch.arange(40) // 4, torch.arange(40) % 7 != 3
    tally = QueryBank.of([torch.from_numpy(bank)], 10, 20.0)
    kept = evaluate_matrix_with_bank(MatrixScore(scores[mask.numpy()]), owner[mask], 10, tally)
    found = evaluate_matrix_with_bank(MatrixScore(scores), owner, 10, tally, mask=mask)
    assert found.result.t2v == kept.result.t2v
    assert found.result.v2t == kept.result.v2t
    assert found.changed == kept.changed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 0.0), "found 0.0, expected a positive number"),
        ((5, float("inf")), "found inf"),
        ((5, 20.0, 0), "found 0, expected 1 to 5"),
        ((5, 20.0, 6), "found 6, expected 1 to 5"),
    ],
)
def test_settings_that_mean_nothing(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        QueryBank(*arguments)


def test_banks_that_mean_nothing() -> None:
    bank = QueryBank(3, 20.0)
    bank.add(torch.empty(0, 3))
    with pytest.raises(UserError, match="empty query bank"):
        _ = bank.log_sum_V
    with pytest.raises(UserError, match="NaN or infinite"):
        bank.add(torch.tensor([[0.0, float("nan"), 1.0]]))
