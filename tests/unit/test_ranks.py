"""Blockwise counting against a full sort."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.metrics.ranks import RankCounts, count_ranks
from src.metrics.tiles import column_tiles, deal, row_blocks


def sorted_place(scores: np.ndarray, own: int, rule: str) -> float:
    """Place (from 1) of one item after really sorting all scores downwards."""
    ordered = np.sort(scores)[::-1]
    places = np.flatnonzero(ordered == scores[own]) + 1
    return {"optimistic": places[0], "pessimistic": places[-1], "average": places.mean()}[rule]


def oracle(matrix: np.ndarray, video: np.ndarray) -> dict[str, list[int]]:
    """The counters, one query at a time, from sorted lists."""
    found: dict[str, list[int]] = {"greater": [], "equal": [], "above": [], "level": []}
    for q, v in enumerate(video):
        first, last = (sorted_place(matrix[q], v, rule) for rule in ("optimistic", "pessimistic"))
        found["greater"].append(int(first) - 1)
        found["equal"].append(int(last - first))
        column = np.append(matrix[video != v, v], matrix[q, v])
        first, last = (sorted_place(column, len(column) - 1, rule) for rule in ("optimistic", "pessimistic"))
        found["above"].append(int(first) - 1)
        found["level"].append(int(last - first))
    return found


def counted(matrix: np.ndarray, video: np.ndarray, **options: object) -> RankCounts:
    scores = torch.from_numpy(matrix)
    return count_ranks(lambda rows, cols: scores[rows][:, cols], torch.from_numpy(video), matrix.shape[1], **options)


def check(counts: RankCounts, matrix: np.ndarray, video: np.ndarray) -> None:
    expected = oracle(matrix, video)
    assert counts.greater_Q.tolist() == expected["greater"]
    assert counts.equal_Q.tolist() == expected["equal"]
    assert counts.above_Q.tolist() == expected["above"]
    assert counts.level_Q.tolist() == expected["level"]
    assert counts.own_Q.tolist() == matrix[np.arange(len(video)), video].tolist()


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Few distinct score values (many ties), any number of captions per video, videos without captions."""
    videos, captions = draw(st.integers(1, 9)), draw(st.integers(1, 30))
    seed, levels = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([1, 2, 5, 1000]))
    rng = np.random.default_rng(seed)
    matrix = rng.integers(-levels, levels, (captions, videos)).astype(draw(st.sampled_from([np.float32, np.float64])))
    return matrix, rng.integers(0, videos, captions)


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(1, 12))
def test_counts_equal_a_full_sort(problem: tuple[np.ndarray, np.ndarray], block: int) -> None:
    check(counted(*problem, block=block), *problem)


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, 7, 64])
@pytest.mark.parametrize(("captions", "videos"), [(11, 11), (13, 11), (19, 13), (57, 19), (19, 19)])
def test_blocks_that_do_not_divide_change_nothing(captions: int, videos: int, block: int) -> None:
    rng = np.random.default_rng(captions * videos)
    matrix = rng.standard_normal((captions, videos)).round(1).astype(np.float32)
    video = rng.integers(0, videos, captions)
    whole, cut = counted(matrix, video, block=10_000), counted(matrix, video, block=block)
    check(cut, matrix, video)
    for name in ("videos_QK", "video_scores_QK"):
        assert getattr(whole, name).shape == getattr(cut, name).shape
    assert torch.equal(whole.video_scores_QK, cut.video_scores_QK)
    assert torch.equal(whole.caption_scores_VK, cut.caption_scores_VK)


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(1, 6), st.integers(2, 4))
def test_any_number_of_processes_counts_the_same(
    problem: tuple[np.ndarray, np.ndarray], block: int, world: int
) -> None:
    alone = counted(*problem, block=block, groups=True, topk=4)
    together = in_lockstep(world, lambda rank, reduce: counted(
        *problem, block=block, groups=True, topk=4, share=(rank, world), reduce=reduce
    ))  # fmt: skip
    for each in together:
        for name in ("own_Q", "greater_Q", "equal_Q", "above_Q", "level_Q", "group_greater_V", "group_equal_V"):
            assert torch.equal(getattr(each, name), getattr(alone, name)), name
        assert torch.equal(each.video_scores_QK, alone.video_scores_QK)
        assert torch.equal(each.caption_scores_VK, alone.caption_scores_VK)


def in_lockstep(world: int, work: Callable[..., RankCounts]) -> list[RankCounts]:
    """Play several processes in threads; `reduce` waits for all and sums."""
    import threading

    barrier, slots, results = threading.Barrier(world, timeout=20), [torch.empty(0)] * world, [None] * world

    def run(rank: int) -> None:
        def reduce(tensor: torch.Tensor) -> torch.Tensor:
            slots[rank] = tensor.clone()
            barrier.wait()
            total = torch.stack(slots).sum(0).to(tensor.dtype)
            barrier.wait()
            return total

        results[rank] = work(rank, reduce)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert all(result is not None for result in results)
    return results


def test_rank_is_not_raised_by_the_item_itself() -> None:
    """The positive's own column never counts, although its score equals itself and another kernel may round it up."""
    text = torch.nn.functional.normalize(torch.randn(300, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    counts = count_ranks(lambda rows, cols: text[rows] @ text[cols].T, torch.arange(300), 300, block=64)
    assert counts.greater_Q.sum() == 0
    assert counts.equal_Q.sum() == 0
    assert counts.level_Q.sum() == 0


def test_top_items_come_best_first_and_are_really_the_best() -> None:
    rng = np.random.default_rng(3)
    matrix = rng.permutation(31 * 17).reshape(31, 17).astype(np.float32)
    counts = counted(matrix, rng.integers(0, 17, 31), block=5, topk=4)
    assert counts.videos_QK.tolist() == np.argsort(-matrix, axis=1)[:, :4].tolist()
    assert counts.captions_VK.tolist() == np.argsort(-matrix.T, axis=1)[:, :4].tolist()
    assert counts.video_scores_QK.tolist() == (-np.sort(-matrix, axis=1)[:, :4]).tolist()


def test_more_top_items_wanted_than_there_are() -> None:
    counts = counted(np.array([[0.5, 0.1], [0.2, 0.3], [0.4, 0.9]], dtype=np.float32), np.array([0, 1, 1]), topk=10)
    assert counts.videos_QK.tolist() == [[0, 1], [1, 0], [1, 0]]
    assert counts.captions_VK.tolist() == [[0, 2, 1], [2, 1, 0]]
    assert counted(np.ones((2, 2)), np.array([0, 1]), topk=0).videos_QK.shape == (2, 0)


@pytest.mark.parametrize("block", [2, 100])
def test_nan_is_counted_where_it_is(block: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((9, 7)).astype(np.float32)
    matrix[4, :] = np.nan
    matrix[2, 5] = np.nan
    counts = counted(matrix, np.arange(9) % 7, block=block)
    assert counts.nan_Q.tolist() == [0, 0, 1, 0, 7, 0, 0, 0, 0]
    assert counts.nan_V.tolist() == [1, 1, 1, 1, 1, 2, 1]


def test_infinite_scores_are_ordinary() -> None:
    matrix = np.array([[np.inf, -np.inf, 0.0], [np.inf, -np.inf, 0.0], [0.0, 1.0, -np.inf]])
    check(counted(matrix, np.array([0, 1, 2])), matrix, np.array([0, 1, 2]))


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(1, 12))
def test_groups_compete_by_their_best_caption(problem: tuple[np.ndarray, np.ndarray], block: int) -> None:
    matrix, video = problem
    counts = counted(matrix, video, block=block, groups=True)
    for v in np.unique(video):
        best = {u: matrix[video == u, v].max() for u in np.unique(video)}
        assert counts.group_greater_V[v] == sum(best[u] > best[v] for u in best)
        assert counts.group_equal_V[v] == sum(best[u] == best[v] for u in best) - 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=80), st.integers(1, 40), st.integers(1, 4))
def test_tiles_cover_everything_once(captions_per_video: list[int], block: int, world: int) -> None:
    start = np.concatenate([[0], np.cumsum(captions_per_video)])
    tiles = list(column_tiles(start, block))
    assert [v for cols in tiles for v in range(cols.start, cols.stop)] == list(range(len(captions_per_video)))
    plan = [(cols, row_blocks(start, cols, block)) for cols in tiles]
    assert [q for _, rows in plan for r in rows for q in range(r.start, r.stop)] == list(range(start[-1]))
    assert {int(r.start) for _, rows in plan for r in rows} <= set(start.tolist()), "a video's captions are split"
    shares = [deal(plan, rank, world) for rank in range(world)]
    for number, (_, rows) in enumerate(plan):
        assert sorted(n for share in shares for n in share[number]) == list(range(len(rows)))


def test_large_problems_are_cut_into_blocks() -> None:
    """Bounded memory: no tile of the full MSR-VTT test is larger than a few megabytes."""
    start = np.arange(0, 59_801, 20)
    plan = [(cols, row_blocks(start, cols, 1024)) for cols in column_tiles(start, 1024)]
    largest = max((r.stop - r.start) * (c.stop - c.start) for c, rows in plan for r in rows)
    assert largest * 4 <= 8e6
    assert len(plan) == math.floor(2990 / 512)
