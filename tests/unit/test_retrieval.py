"""Evaluation of embeddings and matrices: metrics, ids, ties, NaN."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gmean, rankdata
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.metrics.legacy import multi_sentence, single_sentence
from src.metrics.retrieval import RetrievalResult, evaluate, evaluate_matrix

KEYS = {"R1", "R5", "R10", "R50", "MdR", "MnR", "mAP", "GeoMean"}


def dot(text: TextEmbedding, video: VideoEmbedding) -> Tensor:
    return text.parts["x"] @ video.parts["x"].T


def embeddings(captions: int, videos: int, seed: int = 0) -> tuple[TextEmbedding, VideoEmbedding]:
    """Small integers, so that every kernel gives the same scores; ids are not positions."""
    rng = np.random.default_rng(seed)
    owner = torch.from_numpy(rng.integers(0, videos, captions)) * 3 + 5
    text = torch.from_numpy(rng.integers(-3, 4, (captions, 6))).float()
    video = torch.from_numpy(rng.integers(-3, 4, (videos, 6))).float()
    return (
        TextEmbedding(torch.arange(captions) * 2 + 100, {"x": text}, video_ids=owner),
        VideoEmbedding(torch.arange(videos) * 3 + 5, {"x": video}),
    )


def same(one: RetrievalResult, other: RetrievalResult) -> None:
    assert one.t2v == other.t2v
    assert one.v2t == other.v2t
    for name in ("caption_ids", "video_ids", "v2t_ids", "t2v_ranks", "v2t_ranks", "own_scores", "t2v_tied"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Textbook definition over a really sorted list without ties."""
    hits = relevant[np.argsort(-scores)]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def test_metrics_of_a_matrix_checked_by_hand() -> None:
    matrix = np.array(
        [
            [0.9, 0.1, 0.2, 0.3],  # own 0: rank 1
            [0.8, 0.7, 0.1, 0.2],  # own 0: rank 1
            [0.5, 0.4, 0.6, 0.1],  # own 1: rank 3
            [0.1, 0.2, 0.3, 0.4],  # own 3: rank 1; video 2 has no caption
        ]
    )
    result = evaluate_matrix(matrix, torch.tensor([0, 0, 1, 3]), 4)
    assert result.t2v_ranks.tolist() == [1, 1, 3, 1]
    assert result.t2v["R1"] == 75.0
    assert result.t2v["R5"] == 100.0
    assert result.t2v["MdR"] == 1.0
    assert result.t2v["MnR"] == 1.5
    assert result.t2v["mAP"] == pytest.approx(100 * (3 + 1 / 3) / 4)
    assert result.t2v["GeoMean"] == pytest.approx((75 * 100 * 100) ** (1 / 3))
    assert result.v2t_ids.tolist() == [0, 1, 3]
    # video 0: captions 0 and 1 lead. video 1: 0.7 (caption 1) beats 0.4. video 3: 0.4 leads.
    assert result.v2t_ranks.tolist() == [1, 2, 1]
    assert result.v2t["mAP"] == pytest.approx(100 * (1 + 1 / 2 + 1) / 3)
    assert result.sum_r == pytest.approx(75 + 100 + 100 + 100 * 2 / 3 + 200)
    assert set(result.t2v) == set(result.v2t) == KEYS


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 11), st.integers(0, 10_000), st.integers(1, 9))
def test_both_directions_against_sorted_lists(captions: int, videos: int, seed: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.permutation(captions * videos).reshape(captions, videos).astype(np.float64)
    owner = rng.integers(0, videos, captions)
    result = evaluate_matrix(matrix, torch.from_numpy(owner), videos, block=block)
    t2v = [1 + int((matrix[q] > matrix[q, v]).sum()) for q, v in enumerate(owner)]
    assert result.t2v_ranks.tolist() == t2v
    assert result.t2v["mAP"] == pytest.approx(100 * np.mean([1 / rank for rank in t2v]))
    queries = np.unique(owner)
    ranks = [1 + int(np.flatnonzero((owner == v)[np.argsort(-matrix[:, v])])[0]) for v in queries]
    assert result.v2t_ids.tolist() == queries.tolist()
    assert result.v2t_ranks.tolist() == ranks
    assert result.v2t["mAP"] == pytest.approx(
        100 * np.mean([average_precision(matrix[:, v], owner == v) for v in queries])
    )
    assert result.v2t["MdR"] == np.median(ranks)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 10_000))
def test_tie_rules_are_ordered_and_average_is_between(captions: int, videos: int, seed: int) -> None:
    text, video = embeddings(captions, videos, seed)
    best, middle, worst = (evaluate(text, video, dot, ties=t) for t in ("optimistic", "average", "pessimistic"))
    own = own_ties(text, video)
    for name, shared in (("t2v_ranks", torch.zeros(captions)), ("v2t_ranks", own)):
        low, mean, high = (getattr(r, name).double() for r in (best, middle, worst))
        assert torch.equal(mean, (low + high + shared) / 2)
        tied = getattr(best, name.replace("ranks", "tied"))
        assert torch.equal(tied, high > low)


def own_ties(text: TextEmbedding, video: VideoEmbedding) -> Tensor:
    """Of each video with captions: own captions that score as the best one does, without that one."""
    scores = dot(text, video)
    columns = [scores[text.video_ids == v, n] for n, v in enumerate(video.ids) if (text.video_ids == v).any()]
    return torch.tensor([int((column == column.max()).sum()) - 1 for column in columns]).double()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([1, 3, 50]))
def test_averaged_ties_and_masked_captions_against_ranked_lists(
    per_video: int, videos: int, seed: int, block: int, levels: int
) -> None:
    """The published protocol, one query at a time, from `scipy.stats.rankdata` of whole rows and columns."""
    rng = np.random.default_rng(seed)
    matrix = rng.integers(-levels, levels, (videos * per_video, videos)).astype(np.float32)
    owner = np.arange(videos).repeat(per_video)
    mask = rng.random(len(owner)) < 0.8
    mask[rng.integers(len(owner))] = True
    matrix[~mask] = rng.choice([np.nan, np.inf, 0], (int((~mask).sum()), 1))  # padding may hold anything
    result = evaluate_matrix(
        matrix, torch.from_numpy(owner), videos, mask=torch.from_numpy(mask), ties="average", block=block
    )
    rows = np.flatnonzero(mask)
    t2v = [rankdata(-matrix[row])[owner[row]] - 1 for row in rows]
    lists = [rankdata(-matrix[rows, v])[owner[rows] == v] - 1 for v in range(videos)]
    v2t = [places.min() for places in lists if len(places)]
    assert result.caption_ids.tolist() == rows.tolist()
    assert (result.t2v_ranks - 1).tolist() == t2v
    assert (result.v2t_ranks - 1).tolist() == v2t
    for found, places in ((result.t2v, np.array(t2v)), (result.v2t, np.array(v2t))):
        assert found["R1"] == pytest.approx(100 * np.mean(places == 0))
        for k in (5, 10, 50):
            assert found[f"R{k}"] == pytest.approx(100 * np.mean(places < k))
        assert found["MdR"] == np.median(places) + 1
        assert found["MnR"] == pytest.approx(places.mean() + 1)
        recalls = [found[f"R{k}"] for k in (1, 5, 10)]
        assert found["GeoMean"] == pytest.approx(gmean(recalls) if all(recalls) else 0)


def test_a_matrix_without_captions_is_refused() -> None:
    with pytest.raises(UserError, match="found no caption"):
        evaluate_matrix(np.eye(2), torch.arange(2), 2, mask=torch.zeros(2, dtype=torch.bool))


def test_a_collapsed_model_is_noticed(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.metrics.result._warned", set())
    with caplog.at_level(logging.WARNING, logger="src.metrics"):
        result = evaluate_matrix(np.ones((20, 10)), torch.arange(20) // 2, 10)
    assert result.t2v["R1"] == 100.0
    assert result.tie_fraction == {"t2v": 1.0, "v2t": 1.0}
    evaluate_matrix(np.ones((20, 10)), torch.arange(20) // 2, 10)
    assert caplog.text.count("t2v: 100.0 % of the queries tie") == 1
    assert caplog.text.count("v2t: 100.0 % of the queries tie") == 1
    worst = evaluate_matrix(np.ones((20, 10)), torch.arange(20) // 2, 10, ties="pessimistic")
    assert worst.t2v_ranks.tolist() == [10] * 20
    assert worst.v2t_ranks.tolist() == [19] * 10  # the other 18 captions; its own two never compete


@pytest.mark.parametrize(("captions", "videos"), [(11, 7), (13, 11), (40, 19)])
def test_duplicates_of_a_padded_sampler_and_row_order_do_not_matter(captions: int, videos: int) -> None:
    text, video = embeddings(captions, videos)
    plain = evaluate(text, video, dot)
    generator = torch.Generator().manual_seed(1)
    rows = torch.cat([torch.randperm(captions, generator=generator), torch.tensor([0, 1, 1])])
    columns = torch.cat([torch.randperm(videos, generator=generator), torch.tensor([2, 2])])
    padded = evaluate(text[rows], video[columns], dot, block=4)
    same(plain, padded)
    assert len(padded.caption_ids) == captions
    assert len(padded.video_ids) == videos


def test_captions_of_unreadable_videos_are_left_out_and_listed() -> None:
    text, video = embeddings(30, 10)
    missing = int(text.video_ids[0])
    result = evaluate(text, video[video.ids != missing], dot)
    lost = [int(i) for i, v in zip(text.ids, text.video_ids, strict=True) if v == missing]
    assert list(result.excluded_captions) == lost
    assert len(lost) > 0
    kept = text.video_ids != missing
    same(result, evaluate(text[kept], video[video.ids != missing], dot))


def test_nothing_to_rank_is_the_users_error() -> None:
    text, video = embeddings(3, 4)
    with pytest.raises(UserError, match="found 3 captions and 0 videos"):
        evaluate(text, video[:0], dot)


def test_nan_names_the_culprits() -> None:
    text, video = embeddings(12, 5)
    text.parts["x"][3] = torch.nan
    with pytest.raises(UserError, match=r"1 captions \(ids 106\)") as error:
        evaluate(text, video, dot, block=4)
    assert "videos" not in str(error.value)
    text, video = embeddings(12, 5)
    video.parts["x"][1] = torch.nan
    with pytest.raises(UserError, match=r"1 videos \(ids 8\)"):
        evaluate(text, video, dot)
    matrix = np.zeros((4, 4))
    matrix[1, 2] = np.nan
    with pytest.raises(UserError, match=r"1 captions \(ids 1\) and 1 videos \(ids 2\)"):
        evaluate_matrix(matrix, torch.arange(4), 4)


def test_every_pair_is_scored_exactly_once() -> None:
    """Late-interaction heads are expensive: no tile may be computed twice."""
    text, video = embeddings(50, 17)
    seen = torch.zeros(50, 17)

    def counting(t: TextEmbedding, v: VideoEmbedding) -> Tensor:
        seen[(t.ids[:, None] - 100) // 2, (v.ids[None] - 5) // 3] += 1
        return dot(t, v)

    evaluate(text, video, counting, block=8)
    assert (seen == 1).all()


def test_bf16_scores_are_ranked_and_half_matrices_too() -> None:
    text, video = embeddings(12, 5)
    result = evaluate(text, video, lambda t, v: dot(t, v).bfloat16())
    same(result, evaluate(text, video, dot))  # small integers are exact in bf16
    matrix = dot(text, video).numpy()
    owner = (text.video_ids - 5) // 3
    assert evaluate_matrix(matrix.astype(np.float16), owner, 5).t2v == result.t2v


def test_groups_equal_the_published_multi_sentence_protocol() -> None:
    rng = np.random.default_rng(5)
    counts = rng.integers(1, 5, 13)
    owner = np.repeat(np.arange(13), counts)
    matrix = rng.standard_normal((len(owner), 13))
    t2v, v2t = multi_sentence(matrix, counts)
    ours = evaluate_matrix(matrix, torch.from_numpy(owner), 13, v2t="groups", block=4)
    for key, old in (("R1", "R1"), ("R5", "R5"), ("R10", "R10"), ("MnR", "MeanR"), ("MdR", "MedianR")):
        assert ours.v2t[key] == pytest.approx(v2t[old])
        if key != "MdR":  # upstream takes the lower middle rank here
            assert ours.t2v[key] == pytest.approx(t2v[old], rel=1e-6)
    captions = evaluate_matrix(matrix, torch.from_numpy(owner), 13)
    assert captions.v2t["MnR"] > ours.v2t["MnR"], "groups are the easier protocol"


def test_published_single_sentence_protocol_counts_ties_several_times() -> None:
    matrix = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 3.0], [0.0, 0.0, -np.inf]])
    found = single_sentence(matrix)
    assert found["cols"] == [0, 1, 1]  # the tie twice, the -inf diagonal never
    assert found["R1"] == pytest.approx(100 / 3)


def test_logged_names() -> None:
    text, video = embeddings(12, 5)
    logged = evaluate(text, video, dot).scalars("val")
    assert {"val/t2v/R1", "val/v2t/MdR", "val/SumR", "val/SumAP"} <= set(logged)
    assert len(logged) == 2 * len(KEYS) + 2


@pytest.mark.real
def test_real_scores(shared_data: Path) -> None:
    matrix = np.load(shared_data / "scores" / "msrvtt_titles_matrix.npy", mmap_mode="r")
    result = evaluate_matrix(matrix, torch.arange(1000), 1000)
    assert [result.t2v[key] for key in ("R1", "R5", "R10")] == [29.7, 55.8, 66.6]
    assert [result.v2t[key] for key in ("R1", "R5", "R10")] == [28.4, 54.9, 66.8]
