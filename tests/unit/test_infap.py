"""xinfAP and its kin: small cases by hand, and against a slow second version written from the definition."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.annotation import Judgement
from src.errors import UserError
from src.metrics.infap import SearchResult, evaluate_run

RELEVANT, JUDGED = 0.00001, 0.00003


def ranked(*shots: str) -> list[tuple[str, float]]:
    return [(shot, -float(place)) for place, shot in enumerate(shots)]


def judged(topic: str, **shots: tuple[int, int]) -> list[Judgement]:
    return [Judgement(topic, shot, stratum, relevance) for shot, (stratum, relevance) in shots.items()]


def topic_row(result: SearchResult, topic: str = "1") -> dict[str, float]:
    return result.topics[topic]


def test_fully_judged_pool_is_average_precision() -> None:
    pool = judged("1", a=(1, 1), b=(1, 0), c=(1, 1), d=(1, 0), e=(1, 1))
    row = topic_row(evaluate_run({"1": ranked("a", "b", "c", "d")}, pool))
    assert row["infAP"] == pytest.approx((1 / 1 + 2 / 3) / 3, abs=1e-4)
    assert row["infNDCG"] == pytest.approx((1 + 1 / 2) / (1 + 1 / math.log2(3) + 1 / 2))
    assert row["iP10"] == pytest.approx(2 / 10, abs=1e-5)
    assert row["inum_rel"] == 3
    assert row["num_ret"] == 4


def test_unjudged_shots_of_a_stratum_count_by_its_judged_ones() -> None:
    # Stratum 2: 4 pooled, 2 judged, 1 relevant -> 2 inferred. Above c: a (relevant), b (pooled, not judged).
    pool = judged("1", a=(1, 1), b=(2, -1), c=(2, 1), d=(2, 0), e=(2, -1))
    row = topic_row(evaluate_run({"1": ranked("a", "b", "c")}, pool))
    assert row["inum_rel"] == 3
    above_c = 1 + RELEVANT / JUDGED  # a counts 1; of b only the constants are known: a third
    precision_c = (1 + above_c) / 3
    assert row["infAP"] == pytest.approx((1 * 1 + 2 * precision_c) / 3, abs=1e-4)
    assert row["inum_rel_ret"] == pytest.approx(1 + 2, abs=1e-3)


def test_shots_outside_the_pool_count_as_ranks_only() -> None:
    pool = judged("1", a=(1, 1), b=(1, 0))
    row = topic_row(evaluate_run({"1": ranked("stranger", "another", "a")}, pool))
    assert row["infAP"] == pytest.approx(1 / 3)
    assert row["infNDCG"] == pytest.approx(1 / 2)


def test_equal_scores_are_ordered_by_shot_descending() -> None:
    pool = judged("1", a=(1, 0), b=(1, 1))
    tied = evaluate_run({"1": [("a", 1.0), ("b", 1.0)]}, pool)
    assert topic_row(tied)["infAP"] == 1
    assert topic_row(evaluate_run({"1": [("b", 1.0), ("a", 2.0)]}, pool))["infAP"] == pytest.approx(1 / 2, abs=1e-4)


def test_only_the_first_results_count() -> None:
    pool = judged("1", a=(1, 0), b=(1, 0), c=(1, 1))
    result = evaluate_run({"1": ranked("a", "b", "c")}, pool, max_results=2)
    assert topic_row(result)["infAP"] == 0
    assert topic_row(result)["num_ret"] == 3
    assert result.all["num_ret"] == 2


def test_more_relevant_shots_than_results_can_reach_one() -> None:
    pool = judged("1", a=(1, 1), b=(1, 1), c=(1, 1), d=(1, 1))
    result = evaluate_run({"1": ranked("a", "b", "c", "d")}, pool, max_results=2)
    assert topic_row(result)["infAP"] == pytest.approx(1, abs=1e-4)
    assert topic_row(result)["infNDCG"] == 1


def test_topics_without_relevant_shots_or_results_score_nothing() -> None:
    pool = judged("1", a=(1, 0)) + judged("2", a=(1, 1)) + judged("3", a=(1, -1))
    result = evaluate_run({"1": ranked("a"), "2": [], "3": ranked("a")}, pool)
    for row in result.topics.values():
        assert row["infAP"] == row["infNDCG"] == 0
    assert result.topics["2"]["inum_rel_ret"] == 0


def test_topics_of_one_side_only_are_named_and_left_out() -> None:
    pool = judged("9", a=(1, 1)) + judged("10", a=(1, 1))
    result = evaluate_run({"9": ranked("a"), "8": ranked("a")}, pool)
    assert list(result.topics) == ["9"]
    assert (result.not_searched, result.not_judged) == (("10",), ("8",))
    assert result.all["infAP"] == 1
    assert result.all["inum_rel"] == 2  # of all judged topics
    assert list(evaluate_run({"10": ranked("a"), "9": ranked("a")}, pool).topics) == ["9", "10"]


def test_mistakes_are_named() -> None:
    pool = judged("1", a=(1, 1))
    with pytest.raises(UserError, match=r"both in the run \(561\) and in the judgements \(1\)"):
        evaluate_run({"561": ranked("a")}, pool)
    with pytest.raises(UserError, match="a shot of topic 1 more than once"):
        evaluate_run({"1": ranked("a", "a")}, pool)
    with pytest.raises(UserError, match="name 1 shots of topic 1 twice"):
        evaluate_run({"1": ranked("a")}, pool + pool)


SHOTS = [f"s{n}" for n in range(12)]
POOLS = st.dictionaries(
    st.sampled_from(SHOTS), st.tuples(st.integers(1, 3), st.sampled_from([-1, 0, 1])), min_size=1, max_size=12
)
RUNS = st.lists(st.tuples(st.sampled_from(SHOTS), st.integers(0, 3)), max_size=12, unique_by=lambda pair: pair[0])


@settings(max_examples=300, deadline=None)
@given(pool=POOLS, run=RUNS, max_results=st.integers(1, 12))
def test_equals_the_definition(pool: dict[str, tuple[int, int]], run: list[tuple[str, int]], max_results: int) -> None:
    lines = [Judgement("7", shot, *place) for shot, place in pool.items()]
    result = evaluate_run({"7": [(shot, float(score)) for shot, score in run]}, lines, max_results)
    for key, value in slowly(pool, run, max_results).items():
        assert result.topics["7"][key] == pytest.approx(value, abs=1e-9), key


def slowly(pool: dict[str, tuple[int, int]], run: list[tuple[str, int]], max_results: int) -> dict[str, float]:
    """The definition, one shot and one stratum at a time."""
    strata = sorted({stratum for stratum, _ in pool.values()})

    def count(shots: Iterable[str], stratum: int, least: int) -> int:
        return sum(shot in pool and pool[shot][0] == stratum and pool[shot][1] >= least for shot in shots)

    def inferred(shots: list[str]) -> float:
        return sum(
            count(shots, c, -1) * (count(shots, c, 1) + RELEVANT) / (count(shots, c, 0) + JUDGED) for c in strata
        )

    total = {c: count(pool, c, 1) * count(pool, c, -1) / count(pool, c, 0) if count(pool, c, 0) else 0 for c in strata}
    relevant = sum(total.values())
    order = [shot for shot, _ in sorted(sorted(run, reverse=True), key=lambda pair: -pair[1])][:max_results]
    precisions: dict[int, float] = dict.fromkeys(strata, 0.0)
    gains: dict[int, float] = dict.fromkeys(strata, 0.0)
    for rank, shot in enumerate(order, start=1):
        if shot in pool and pool[shot][1] == 1:
            above = order[: rank - 1]
            precisions[pool[shot][0]] += 1 / rank + inferred(above) / rank
            gains[pool[shot][0]] += 1 / math.log2(rank + 1)
    ap = sum(total[c] / relevant * precisions[c] / count(pool, c, 1) for c in strata if total[c])
    dcg = sum(gains[c] * count(order, c, -1) / count(order, c, 0) for c in strata if count(order, c, 0))
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(math.floor(relevant), max_results) + 1))
    return {
        "infAP": ap * relevant / max_results if relevant > max_results else ap,
        "infNDCG": dcg / ideal if ideal else 0.0,
        "iP10": inferred(order[:10]) / 10,
        "iP100": inferred(order) / 100,
        "inum_rel_ret": inferred(order),
        "inum_rel": relevant,
        "num_ret": len(run),
    }
