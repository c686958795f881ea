"""Re-scoring against each method's formula, written out densely in float64."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax
from scipy.stats import rankdata

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.metrics import score_blocks
from src.metrics.dual_softmax import DualSoftmax
from src.metrics.kept import KeptBlocks, Recorder
from src.metrics.log_sums import LogSums
from src.metrics.qb_norm import InvertedSoftmax, QbNorm, QueryBank
from src.metrics.rescoring import Banks, Rescored, Rescoring, rescore
from src.metrics.retrieval import MatrixScore, evaluate, evaluate_matrix
from src.metrics.score_blocks import Scores
from src.metrics.sinkhorn import Sinkhorn, potentials

SHARED = Path(__file__).resolve().parents[2] / os.environ.get("VIDEOTEXT_SHARED", "../shared")
METHODS = (DualSoftmax(), InvertedSoftmax(bank="test"), QbNorm(bank="test"), Sinkhorn())


def problem(seed: int, captions: int, videos: int, scale: float = 1.0) -> np.ndarray:
    """Some videos and some captions are near to everything."""
    rng = np.random.default_rng(seed)
    hubs = 0.3 * rng.standard_normal(videos) + 0.1 * rng.standard_normal((captions, 1))
    return (scale * np.clip(0.2 * rng.standard_normal((captions, videos)) + hubs, -1, 1)).astype(np.float32)


def rescored(
    method: Rescoring,
    matrix: np.ndarray,
    owner: np.ndarray,
    banks: Banks | None = None,
    mask: np.ndarray | None = None,
    block: int = 7,
    **options: Any,
) -> Rescored:
    """In small blocks."""
    chosen = None if mask is None else torch.from_numpy(mask)
    scores = Scores(MatrixScore(matrix), torch.from_numpy(owner), matrix.shape[1], chosen)
    plain = evaluate_matrix(matrix, torch.from_numpy(owner), matrix.shape[1], mask=chosen, **options)
    return rescore(method, scores, plain, banks, block=block)


def ranks_to_video(new: np.ndarray, owner: np.ndarray, ties: str = "average") -> list[float]:
    return [rankdata(-row, ties)[own] for row, own in zip(new, owner, strict=True)]


def ranks_to_text(new: np.ndarray, owner: np.ndarray) -> list[float]:
    """Of each video with captions: 1 + the captions of others that score higher than its best one."""
    found = []
    for video in np.unique(owner):
        best = new[owner == video, video].max()
        found.append(1.0 + np.count_nonzero(new[owner != video, video] > best))
    return found


def check(found: Rescored, t2v: np.ndarray, v2t: np.ndarray | None, owner: np.ndarray, ties: str = "average") -> None:
    assert found.result.t2v_ranks.tolist() == ranks_to_video(t2v, owner, ties)
    assert found.result.t2v["MnR"] == pytest.approx(np.mean(ranks_to_video(t2v, owner, ties)))
    assert found.sides == (("t2v",) if v2t is None else ("t2v", "v2t"))
    if v2t is not None:
        assert found.result.v2t_ranks.tolist() == ranks_to_text(v2t, owner)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_blocks, "BLOCK", 40)


SIZES = (st.integers(0, 10_000), st.integers(2, 30), st.integers(2, 15))
ANY_SCALE = st.sampled_from([1.0, 30.0])  # cosines, logits


@settings(max_examples=25, deadline=None)
@given(*SIZES, ANY_SCALE, st.sampled_from([None, 0.7, 12.0]))
def test_dual_softmax_follows_the_formula(
    seed: int, captions: int, videos: int, scale: float, temperature: float | None
) -> None:
    scores = problem(seed, captions, videos, scale)
    owner = np.random.default_rng(seed + 1).integers(0, videos, captions)
    found = rescored(DualSoftmax(temperature), scores, owner, ties="average")
    assert found.transductive
    factor = temperature or (100.0 if np.abs(scores).max() <= 1 else 1.0)
    assert found.settings == {"temperature": factor}
    exact = scores.astype(np.float64)
    check(found, exact * softmax(factor * exact, 0), exact * softmax(factor * exact, 1), owner)


def test_dual_softmax_of_a_published_matrix(real_scores: np.ndarray) -> None:
    """The numbers of `task=score rescoring=dsl`, computed independently: one caption for each of 1,000 videos."""
    exact = real_scores.astype(np.float64)
    owner = np.arange(len(exact))
    found = rescored(DualSoftmax(), real_scores, owner, block=96)  # by sevens it takes half a minute
    for side, new in (("t2v", exact * softmax(100 * exact, 0)), ("v2t", exact.T * softmax(100 * exact.T, 0))):
        above = (new > new.diagonal()[:, None]).sum(1)
        assert getattr(found.result, f"{side}_ranks").tolist() == (above + 1).tolist()
        assert getattr(found.result, side)["R1"] == pytest.approx(100 * np.mean(above == 0))
    assert found.result.t2v["R1"] > evaluate_matrix(real_scores, torch.from_numpy(owner), len(owner)).t2v["R1"] + 1


@pytest.fixture
def real_scores(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The matrix of scores that stands beside the repository, where there is one; else a made-up one of its kind."""
    monkeypatch.setattr(score_blocks, "BLOCK", 1 << 17)
    path = SHARED / "data" / "scores" / "msrvtt_titles_matrix.npy"
    if path.is_file():
        return np.load(path)
    rng = np.random.default_rng(0)
    made = 0.15 + 0.04 * rng.standard_normal((300, 300)) + 0.03 * rng.standard_normal(300) + 0.13 * np.eye(300)
    return made.astype(np.float32)


def test_the_published_dual_softmax_of_several_captions_leaves_video_to_text_as_it_is() -> None:
    scores, owner = problem(3, 60, 12) + 2, np.arange(60) // 5
    plain = evaluate_matrix(scores, torch.from_numpy(owner), 12)
    upstream = rescored(DualSoftmax(v2t="upstream"), scores, owner)
    assert upstream.settings == {"temperature": 1.0, "v2t": "upstream"}
    assert upstream.result.v2t == plain.v2t
    own = rescored(DualSoftmax(), scores, owner)
    assert own.result.v2t != plain.v2t
    assert own.result.t2v == upstream.result.t2v
    # With one caption per video both rules are the same.
    square = problem(4, 12, 12)
    both = [rescored(DualSoftmax(v2t=v2t), square, np.arange(12)) for v2t in ("own", "upstream")]
    assert both[0].to_json() == both[1].to_json()


@pytest.mark.parametrize("temperature", [2000.0, 1e6])
def test_high_temperatures_leave_no_ties(temperature: float) -> None:
    """Where exp would be zero in float64 the order is still the formula's."""
    scores, owner = problem(5, 40, 20), np.arange(40) % 20
    found = rescored(DualSoftmax(temperature), scores, owner, ties="pessimistic")
    exact = scores.astype(np.float64)
    log = np.log(np.abs(exact)) + temperature * exact - logsumexp(temperature * exact, 0)
    keys = np.where(exact > 0, 1e9 + log, -1e9 - log)  # positive scores first, negative ones nearest to zero first
    assert found.result.t2v_ranks.tolist() == ranks_to_video(keys, owner)
    assert not found.result.t2v_tied.any()


def inverted(matrix: np.ndarray, bank: np.ndarray, beta: float, k: int) -> np.ndarray:
    """Rows are queries. The published formula, as its logarithm so that exp does not overflow."""
    exact = matrix.astype(np.float64)
    new = exact.copy()
    hubs = np.unique(np.argsort(-bank, axis=1, kind="stable")[:, :k]) if k else np.arange(matrix.shape[1])
    for row in range(len(new)):
        if matrix[row].argmax() in hubs:
            new[row] = beta * exact[row] - logsumexp(beta * bank.astype(np.float64), axis=0)
    return new


@settings(max_examples=30, deadline=None)
@given(*SIZES, st.integers(1, 40), st.sampled_from([0.5, 20.0, 100.0]), st.integers(0, 2), st.integers(1, 9))
def test_banks_follow_the_formula(
    seed: int, captions: int, videos: int, queries: int, beta: float, k: int, block: int
) -> None:
    whole = problem(seed, captions + queries, videos + queries)
    scores, bank = whole[:captions, :videos].copy(), whole[captions:, :videos].copy()
    other = whole[:captions, videos:].copy()  # the same captions with videos of the bank
    owner = np.random.default_rng(seed + 1).integers(0, videos, captions)
    method = QbNorm(beta, min(k, captions)) if k else InvertedSoftmax(beta)
    new_t2v = inverted(scores, bank, beta, k and method.k)  # type: ignore[attr-defined]
    one = rescored(method, scores, owner, Banks("x", torch.from_numpy(bank).split(block)), ties="average")
    assert not one.transductive
    assert one.settings["bank_queries"] == queries
    check(one, new_t2v, None, owner)
    assert one.result.v2t == evaluate_matrix(scores, torch.from_numpy(owner), videos, ties="average").v2t
    shown = torch.from_numpy(other.T.copy()).split(block)
    both = rescored(method, scores, owner, Banks("x", torch.from_numpy(bank).split(block), shown))
    new_v2t = inverted(scores.T, other.T, beta, k and method.k).T  # type: ignore[attr-defined]
    check(both, new_t2v, new_v2t, owner, ties="min")  # the default, optimistic; scores of 1 and -1 tie


@settings(max_examples=30, deadline=None)
@given(*SIZES, st.sampled_from([0.5, 20.0]))
def test_the_tests_own_queries_are_a_bank(seed: int, captions: int, videos: int, beta: float) -> None:
    """Every query's best item is a hub then, so both methods are one."""
    scores = problem(seed, captions, videos)
    owner = np.random.default_rng(seed + 1).integers(0, videos, captions)
    for method, k in ((InvertedSoftmax(beta, bank="test"), 0), (QbNorm(beta, bank="test"), 1)):
        found = rescored(method, scores, owner, ties="average")
        assert found.transductive
        check(found, inverted(scores, scores, beta, k), inverted(scores.T, scores.T, beta, k).T, owner)


@pytest.mark.parametrize("scale", [100.0, 1000.0])
def test_large_exponents_do_not_overflow(scale: float) -> None:
    """beta times the score reaches 1e5, where exp is infinite in float32 and in float64."""
    bank, scores, owner = problem(3, 300, 20, scale), problem(4, 200, 20, scale), np.arange(200) % 20
    found = rescored(QbNorm(100.0), scores, owner, Banks("x", [torch.from_numpy(bank)]), ties="average")
    assert found.settings["changed_captions"] > 0  # type: ignore[operator]
    check(found, inverted(scores, bank, 100.0, 1), None, owner)


def test_a_hub_loses_the_queries_that_are_not_its_own() -> None:
    """Video 0 is the best of every query; without it each query finds its own video."""
    scores, owner = 0.5 * np.eye(6, dtype=np.float32), np.arange(6)
    scores[:, 0] = 0.6
    assert evaluate_matrix(scores, torch.from_numpy(owner), 6).t2v["R1"] == pytest.approx(100 / 6)
    found = rescored(QbNorm(), scores, owner, Banks("captions of train", [torch.from_numpy(scores)]))
    assert found.result.t2v["R1"] == 100.0
    assert found.settings["hub_videos"] == 1
    assert found.words == (
        "QB-Norm t2v only: beta 20, k 1, bank captions of train, bank queries 6, hub videos 1, changed captions 6"
    )
    for method in METHODS:
        assert rescored(method, scores, owner).result.t2v["R1"] > 99


def dense_sinkhorn(scores: np.ndarray, epsilon: float, turns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The plan, and the factors of its rows and columns."""
    kernel = np.exp(scores.astype(np.float64) / epsilon)
    rows, columns = np.ones(len(kernel)), np.ones(kernel.shape[1])
    for _ in range(turns):
        rows = 1 / (kernel @ columns)
        columns = len(kernel) / kernel.shape[1] / (kernel.T @ rows)
    return rows[:, None] * kernel * columns, rows, columns


@settings(max_examples=25, deadline=None)
@given(*SIZES, st.sampled_from([0.05, 0.3]), st.integers(1, 6))
def test_sinkhorn_follows_the_formula(seed: int, captions: int, videos: int, epsilon: float, turns: int) -> None:
    scores = problem(seed, captions, videos)
    owner = np.random.default_rng(seed + 1).integers(0, videos, captions)
    plan, rows, columns = dense_sinkhorn(scores, epsilon, turns)
    found = rescored(Sinkhorn(epsilon, turns), scores, owner, ties="average")
    assert found.transductive
    check(found, plan, plan, owner)
    blocks = torch.from_numpy(scores).split(7)
    kept = potentials(lambda: blocks, videos, epsilon, turns)
    assert np.exp(kept.columns_G.numpy()) == pytest.approx(columns, rel=1e-9)
    assert np.exp(kept.rows_N.numpy()) == pytest.approx(rows, rel=1e-9)
    if turns > 1:
        before, _, _ = dense_sinkhorn(scores, epsilon, turns - 1)
        assert found.settings["row_error"] == pytest.approx(np.abs(before.sum(1) - 1).max(), rel=1e-6, abs=1e-12)


def test_many_turns_give_everyone_a_fair_share() -> None:
    plan, _, columns = dense_sinkhorn(problem(1, 40, 10), 0.1, 500)
    assert plan.sum(1) == pytest.approx(np.ones(40))
    assert plan.sum(0) == pytest.approx(np.full(10, 4.0))
    blocks = torch.from_numpy(problem(1, 40, 10)).split(9)
    found = potentials(lambda: blocks, 10, 0.1, 500)
    assert found.error is not None
    assert found.error < 1e-9
    assert np.exp(found.columns_G.numpy()) == pytest.approx(columns)


def test_sinkhorn_of_single_queries() -> None:
    """The bank's potentials: a caption's ranks do not depend on the other captions of the test."""
    whole = problem(2, 90, 25)
    scores, bank, other = whole[:30, :15].copy(), whole[30:, :15].copy(), whole[:30, 15:].copy()
    owner = np.arange(30) // 2
    banks = Banks("x", torch.from_numpy(bank).split(11), torch.from_numpy(other.T.copy()).split(3))
    found = rescored(Sinkhorn(0.1, 5), scores, owner, banks, ties="average")
    _, _, columns = dense_sinkhorn(bank, 0.1, 5)
    _, _, rows = dense_sinkhorn(other.T, 0.1, 5)
    exact = scores.astype(np.float64)
    check(found, exact + 0.1 * np.log(columns), exact + 0.1 * np.log(rows)[:, None], owner)
    assert not found.transductive
    alone = rescored(Sinkhorn(0.1, 5), scores[:7], owner[:7], Banks("x", torch.from_numpy(bank).split(60)))
    assert alone.result.t2v_ranks.tolist() == found.result.t2v_ranks[:7].tolist()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_masked_rows_are_nobody(method: Rescoring) -> None:
    """Neither queries, nor competitors, nor part of any sum."""
    scores, owner = problem(9, 40, 10), np.arange(40) // 4
    mask = np.arange(40) % 7 != 3
    kept = rescored(method, scores[mask], owner[mask])
    scores[~mask] = np.nan
    found = rescored(method, scores, owner, mask=mask)
    assert found.to_json() == kept.to_json()
    assert found.result.caption_ids.tolist() == np.flatnonzero(mask).tolist()
    names = dict(enumerate(np.flatnonzero(mask).tolist()))
    assert found.result.v2t_topk[0].tolist() == [[names[i] for i in row] for row in kept.result.v2t_topk[0].tolist()]
    assert found.result.t2v_topk[0].tolist() == kept.result.t2v_topk[0].tolist()


def test_masked_rows_of_a_bank_of_videos_are_nobody() -> None:
    whole, owner, mask = problem(9, 40, 22), np.arange(40) // 4, np.arange(40) % 7 != 3
    scores, other = whole[:, :10].copy(), torch.from_numpy(whole[mask, 10:].T.copy())
    bank = torch.from_numpy(problem(8, 30, 10))
    for method in (InvertedSoftmax(), QbNorm(k=2), Sinkhorn()):
        kept = rescored(method, scores[mask], owner[mask], Banks("x", [bank], [other]))
        assert rescored(method, scores, owner, Banks("x", [bank], [other]), mask=mask).to_json() == kept.to_json()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_rules_of_the_plain_result_hold(method: Rescoring) -> None:
    """Equal captions stay equal: the tie rule decides, and both rules of video to text apply."""
    scores = np.repeat(problem(6, 12, 12), 2, axis=0)
    owner = np.arange(24) // 2
    scores = np.concatenate([scores, scores[:4]])  # captions of other videos, equal to those of the first two
    owner = np.concatenate([owner, [5, 6, 7, 8]])
    most, least = (rescored(method, scores, owner, ties=ties) for ties in ("optimistic", "pessimistic"))
    assert most.result.ties == "optimistic"
    assert least.result.v2t_tied.sum() >= 2
    assert least.result.v2t["MnR"] > most.result.v2t["MnR"]
    grouped = rescored(method, scores, owner, v2t="groups")
    assert grouped.result.v2t_protocol == "groups"
    assert grouped.result.v2t["MnR"] <= most.result.v2t["MnR"]
    assert grouped.result.t2v == most.result.t2v


def test_embeddings_give_what_their_matrix_gives() -> None:
    """Ids are neither positions nor in order, rows repeat, and a caption's video could not be read."""
    rng = np.random.default_rng(0)
    text = TextEmbedding(
        torch.arange(30) * 2 + 100,
        {"x": torch.from_numpy(rng.standard_normal((30, 6))).float()},
        video_ids=torch.from_numpy(rng.integers(0, 8, 30)) * 3 + 5,
    )
    text.video_ids[[3, 17]] = torch.tensor([6, 1000])
    video = VideoEmbedding(torch.arange(8) * 3 + 5, {"x": torch.from_numpy(rng.standard_normal((8, 6))).float()})
    recorder = Recorder(lambda t, v: t.parts["x"] @ v.parts["x"].T, text, video)
    plain = evaluate(text, video, recorder, block=4)
    known = torch.isin(text.ids, plain.caption_ids)
    assert known.sum() == 28
    expected = (text.parts["x"] @ video.parts["x"].T).numpy()
    assert recorder.matrix[known.numpy()] == pytest.approx(expected[known.numpy()], rel=1e-5)
    owner = torch.searchsorted(video.ids, text.video_ids).clamp(max=7)
    found = rescore(DualSoftmax(), Scores(MatrixScore(recorder.matrix), owner, 8, known), plain)
    alone = rescored(DualSoftmax(), recorder.matrix[known.numpy()], owner[known].numpy())
    assert found.to_json() == alone.to_json()
    assert torch.equal(found.result.v2t_topk[0], text.ids[known][alone.result.v2t_topk[0]])
    assert torch.equal(found.result.t2v_topk[0], video.ids[alone.result.t2v_topk[0]])
    assert torch.equal(found.result.caption_ids, plain.caption_ids)


def test_parts_of_a_bank_merge_to_the_whole() -> None:
    bank = torch.from_numpy(problem(5, 90, 12))
    whole = QueryBank.of([bank], 12, 20.0, k=2)
    pieces = [QueryBank.of([part], 12, 20.0, k=2) for part in (bank[:1], bank[1:60], bank[60:], bank[:0])]
    merged = QueryBank.read(Banks("x", [], everyone=lambda _: pieces), [], 12, (20.0, 2))
    assert merged.sums.count == whole.sums.count == 90
    assert torch.equal(merged.hubs_G, whole.hubs_G)
    assert torch.allclose(merged.shift_G, whole.shift_G, rtol=1e-7)


def test_only_blocks_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the matrix, a small part of it."""
    monkeypatch.setattr(score_blocks, "BLOCK", 1 << 16)
    scores, owner = problem(0, 4000, 1000), np.arange(4000) // 4
    plain = evaluate_matrix(scores, torch.from_numpy(owner), 1000)
    tracemalloc.start()  # sees numpy's memory only: of the tiles' sorting, and copies of the matrix if there were any
    rescore(DualSoftmax(), Scores(MatrixScore(scores), torch.from_numpy(owner), 1000), plain, block=256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < scores.nbytes / 3


def test_blocks_are_kept_in_a_file_and_read_again() -> None:
    blocks = [torch.randn(3, 5), torch.randn(1, 5), torch.randn(0, 5), torch.randn(2, 5, dtype=torch.float64)]
    kept = KeptBlocks(iter(blocks))
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(kept(), blocks, strict=True))
    kept.close()


def test_large_matrices_are_recorded_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.metrics.kept.IN_MEMORY", 10)
    text = TextEmbedding(torch.arange(3), {"x": torch.eye(3)}, video_ids=torch.arange(3))
    video = VideoEmbedding(torch.arange(3), {"x": torch.eye(3)})
    recorder = Recorder(lambda t, v: t.parts["x"] @ v.parts["x"].T, text, video)
    evaluate(text, video, recorder)
    assert isinstance(recorder.matrix, np.memmap)
    assert np.array_equal(recorder.matrix, np.eye(3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_scores_that_are_no_numbers_are_refused(method: Rescoring, value: float) -> None:
    scores = problem(0, 6, 6)
    scores[2, 4] = value
    with pytest.raises(UserError, match="found NaN or infinite scores"):
        method.new_scores(Scores(MatrixScore(scores), torch.arange(6), 6), None)
    with pytest.raises(UserError, match="found NaN"):
        rescored(QbNorm(), problem(0, 6, 6), np.arange(6), Banks("x", [torch.tensor([[0.0, np.nan, 1, 1, 1, 1]])]))


def test_an_empty_bank_is_refused() -> None:
    for method in (QbNorm(), Sinkhorn(), InvertedSoftmax()):
        with pytest.raises(UserError, match="empty bank"):
            rescored(method, problem(0, 6, 6), np.arange(6), Banks("x", [torch.empty(0, 6)]))
    with pytest.raises(UserError, match="empty bank"):
        _ = LogSums(3).value_G


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (DualSoftmax(0.0), r"rescoring\.temperature: found 0\.0, expected a positive number"),
        (InvertedSoftmax(float("inf")), r"rescoring\.beta: found inf"),
        (QbNorm(beta=-1.0), r"rescoring\.beta: found -1\.0"),
        (QbNorm(k=0), r"rescoring\.k: found 0, expected 1 to 5"),
        (QbNorm(k=6), r"rescoring\.k: found 6, expected 1 to 5"),
        (Sinkhorn(-0.5), r"rescoring\.epsilon: found -0\.5"),
        (Sinkhorn(iterations=0), r"rescoring\.iterations: found 0"),
    ],
)
def test_settings_that_mean_nothing(method: Rescoring, message: str) -> None:
    with pytest.raises(UserError, match=message):
        method.check(5)
