"""Labels as queries, against lists that are really ranked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gmean, rankdata

from src.errors import UserError
from src.metrics.classification import average_precision, classify


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 10_000), st.sampled_from([2, 1000]))
def test_published_order_against_ranked_lists(labels: int, videos: int, seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (labels, videos)).astype(np.float32)
    positive = rng.random((labels, videos)) < 0.4
    positive[0, 0] = True
    result = classify(scores, positive, upstream_order=True)
    expected = []
    for video in range(videos):
        ranks = rankdata(-scores[:, video]) - 1
        expected += [ranks[label] - n for n, label in enumerate(np.flatnonzero(positive[:, video]))]
    places = np.array(expected)
    assert (result.ranks_P - 1).tolist() == expected
    assert result.metrics["R1"] == pytest.approx(100 * np.mean(places == 0))
    for k in (5, 10, 50):
        assert result.metrics[f"R{k}"] == pytest.approx(100 * np.mean(places < k))
    assert result.metrics["MdR"] == np.median(places) + 1
    assert result.metrics["MnR"] == pytest.approx(places.mean() + 1)
    recalls = [result.metrics[f"R{k}"] for k in (1, 5, 10)]
    assert result.metrics["GeoMean"] == pytest.approx(gmean(recalls) if all(recalls) else 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 10_000))
def test_positives_do_not_compete(labels: int, videos: int, seed: int) -> None:
    """A label's rank is that in the list from which the video's other labels were taken out."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (labels, videos)).astype(np.float64)
    positive = rng.random((labels, videos)) < 0.4
    positive[-1, -1] = True
    result = classify(scores, positive)
    for video, label, rank in zip(result.videos_P, result.labels_P, result.ranks_P, strict=True):
        assert positive[label, video]
        rivals = scores[~positive[:, video], video]
        assert rank == rankdata(-np.append(rivals, scores[label, video]))[-1]
    assert (result.ranks_P >= 1).all()
    assert result.without_label == videos - len(np.unique(result.videos_P))
    assert result.unused_labels == labels - len(result.labels_M)


def test_by_hand() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.7], [0.2, 0.3], [0.1, 0.0]])
    positive = np.array([[True, False], [True, True], [False, False], [True, True]])
    result = classify(scores, positive)
    # Video 0: labels 0 and 1 lead, 3 is behind label 2. Video 1: label 1 leads, 3 is behind 0 and 2.
    assert result.ranks_P.tolist() == [1, 1, 2, 1, 3]
    assert result.metrics["R1"] == 60.0
    # Label 0: its only video is the better one. Label 1: both. Label 3: both.
    assert result.metrics["mAP"] == 100.0
    assert result.unused_labels == 1
    published = classify(scores, positive, upstream_order=True)
    assert published.ranks_P.tolist() == [1, 1, 2, 1, 3]
    turned = classify(scores[::-1], positive[::-1], upstream_order=True)
    assert turned.ranks_P.tolist() == [4, 1, -1, 4, 0], "the list's order matters in the published form"
    assert sorted(classify(scores[::-1], positive[::-1]).ranks_P) == [1, 1, 1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10_000))
def test_average_precision_is_the_area_under_the_list(videos: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, positive = rng.permutation(videos).astype(np.float64), rng.random(videos) < 0.5
    positive[0] = True
    hits = [float(np.mean(positive[scores >= scores[v]])) for v in np.flatnonzero(positive)]
    assert average_precision(scores, positive) == pytest.approx(np.mean(hits))


@pytest.mark.parametrize(
    ("scores", "positive", "message"),
    [
        (np.ones((2, 3)), np.ones((3, 2), bool), "expected two equal matrices"),
        (np.full((2, 2), np.nan), np.ones((2, 2), bool), "found 4 NaN"),
        (np.ones((2, 2)), np.zeros((2, 2), bool), "found no video with a label"),
    ],
)
def test_mistakes(scores: np.ndarray, positive: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        classify(scores, positive)
