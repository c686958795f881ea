"""Extended inferred average precision (xinfAP) of ad-hoc searches whose pools were judged by stratified sampling.

The pool of a topic is divided into strata c; of the N_c pooled shots of a stratum J_c were judged, and R_c of those are
relevant. What was not judged is estimated from its stratum.

Source: Yilmaz, Kanoulas, Aslam, "A simple and efficient sampling method for estimating AP and NDCG", SIGIR 2008, with
    the constants and limits of NIST's sample_eval.pl (danieljf24/hybrid_space@b934eff); equal to it in 4 decimals.
Deviates: a shot that occurs twice is an error there and here, but said; a topic of the run that has no judgements is
    named in the result.

Shapes: K ranks, C strata.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from src.errors import UserError

MAX_RESULTS = 1000  # shots of a topic that count
CUTOFFS = (10, 100, 1000)
RECALL_LEVELS = 11
# Smoothing of the judged share of a stratum of which little has been seen; part of the definition.
RELEVANT_EPSILON, JUDGED_EPSILON = 0.00001, 0.00003

Run = Mapping[str, Sequence[tuple[str, float]]]
"""Topic -> (shot, score); the order does not matter, the scores do."""


class JudgementLine(Protocol):
    """One line of a qrels file; relevance 1 relevant, 0 not, -1 pooled but not judged."""

    @property
    def topic(self) -> str: ...
    @property
    def shot(self) -> str: ...
    @property
    def stratum(self) -> int: ...
    @property
    def relevance(self) -> int: ...


@dataclass(frozen=True)
class SearchResult:
    """Metrics of a run; all are fractions or (inferred) numbers of shots.

    Attributes:
        topics: topic -> infAP, infNDCG, iP10, iP100, iP1000, inum_rel_ret, inum_rel, num_ret; in numeric order.
        all: means over `topics`, and sums of the last three; inum_rel also counts the topics in `not_searched`.
            `iprec@rec0.00` … `iprec@rec1.00` are interpolated precisions at levels of recall.
        not_searched: judged topics that the run lacks; they are left out of the means.
        not_judged: topics of the run without judgements.
    """

    topics: dict[str, dict[str, float]]
    all: dict[str, float]
    not_searched: tuple[str, ...] = ()
    not_judged: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """What metrics.json holds of an edition."""
        return {
            "all": self.all,
            "per_topic": self.topics,
            "not_searched": list(self.not_searched),
            "not_judged": list(self.not_judged),
        }


def evaluate_run(run: Run, judgements: Iterable[JudgementLine], max_results: int = MAX_RESULTS) -> SearchResult:
    """Score a run.

    Args:
        run: the best shots of each topic count, at most `max_results`; equal scores are ordered by shot id, descending.
        judgements: lines of the qrels file.
        max_results: most results of a topic.

    Raises:
        UserError: no topic is both searched and judged, or a shot occurs twice in a topic.
    """
    pools = _pools(judgements)
    common = sorted((topic for topic in run if topic in pools), key=topic_order)
    if not common:
        raise UserError(
            f"found no topic that is both in the run ({_some(run)}) and in the judgements ({_some(pools)}), "
            "expected the same topic numbers; give the judgements of the run's edition"
        )
    searched = {topic: _Search(pools[topic], run[topic], topic, max_results) for topic in common}
    topics = {topic: search.metrics() for topic, search in searched.items()}
    curves = np.array([search.precision_at_recall() for search in searched.values()]).mean(axis=0)
    mean = {key: float(np.mean([row[key] for row in topics.values()])) for key in ("infAP", "infNDCG")}
    mean |= {f"iprec@rec{level / 10:.2f}": float(value) for level, value in enumerate(curves)}
    mean |= {f"iP{k}": float(np.mean([row[f"iP{k}"] for row in topics.values()])) for k in CUTOFFS}
    mean["inum_rel_ret"] = sum(row["inum_rel_ret"] for row in topics.values())
    mean["inum_rel"] = float(sum(pool.num_relevant for pool in pools.values()))
    mean["num_ret"] = sum(min(row["num_ret"], max_results) for row in topics.values())
    return SearchResult(
        topics,
        mean,
        not_searched=tuple(sorted((topic for topic in pools if topic not in run), key=topic_order)),
        not_judged=tuple(sorted((topic for topic in run if topic not in pools), key=topic_order)),
    )


def topic_order(topic: str) -> tuple[int, str]:
    """Key that sorts topics by their number."""
    return (int(topic), topic) if topic.isdecimal() else (0, topic)


class _Pool:
    """The judgements of one topic.

    Attributes:
        place: shot -> (index of its stratum, relevance).
        relevant_C: judged relevant shots R_c.
        estimated_C: inferred relevant shots, R_c * N_c / J_c; 0 where nothing was judged.
    """

    def __init__(self, topic: str, lines: Sequence[JudgementLine]) -> None:
        strata = {stratum: index for index, stratum in enumerate(sorted({line.stratum for line in lines}))}
        self.place = {line.shot: (strata[line.stratum], line.relevance) for line in lines}
        if len(self.place) < len(lines):
            raise UserError(
                f"the judgements name {len(lines) - len(self.place)} shots of topic {topic} twice; once each"
            )
        stratum_N, relevance_N = np.array(list(self.place.values()), dtype=np.int64).T
        pooled_C, judged_C, self.relevant_C = (
            np.bincount(stratum_N[chosen], minlength=len(strata))
            for chosen in (slice(None), relevance_N >= 0, relevance_N > 0)
        )
        self.estimated_C = np.where(judged_C > 0, self.relevant_C * pooled_C / np.maximum(judged_C, 1), 0.0)

    @property
    def num_relevant(self) -> float:
        """Inferred number of relevant shots."""
        return float(self.estimated_C.sum())


class _Search:
    """One topic of a run against its pool: what is known after each rank."""

    def __init__(self, pool: _Pool, results: Sequence[tuple[str, float]], topic: str, max_results: int) -> None:
        if len({shot for shot, _ in results}) < len(results):
            raise UserError(f"the run names a shot of topic {topic} more than once, expected each at most once")
        # Two stable sorts: by shot id and then by score, both descending.
        ranked = sorted(sorted(results, reverse=True), key=lambda result: -result[1])[:max_results]
        found = [pool.place.get(shot, (-1, -1)) for shot, _ in ranked]
        self.pool = pool
        self.num_ret = len(results)
        self.max_results = max_results
        self.stratum_K, relevance_K = np.array(found, dtype=np.int64).reshape(-1, 2).T
        self.rank_K = np.arange(1, len(found) + 1)
        self.is_relevant_K = relevance_K > 0
        pooled_KC = self.stratum_K[:, None] == np.arange(len(pool.relevant_C))
        # Up to and including each rank.
        self.pooled_KC = pooled_KC.cumsum(axis=0)
        self.judged_KC = (pooled_KC & (relevance_K >= 0)[:, None]).cumsum(axis=0)
        relevant_KC = (pooled_KC & self.is_relevant_K[:, None]).cumsum(axis=0)
        share_KC = (relevant_KC + RELEVANT_EPSILON) / (self.judged_KC + JUDGED_EPSILON)
        self.inferred_K = (self.pooled_KC * share_KC).sum(axis=1)

    def metrics(self) -> dict[str, float]:
        """The measures of the topic."""
        inferred = {k: self.inferred_K[: min(k, self.max_results)] for k in CUTOFFS}
        return {
            "infAP": self._average_precision(),
            "infNDCG": self._ndcg(),
            **{f"iP{k}": float(values[-1]) / k if len(values) else 0.0 for k, values in inferred.items()},
            "inum_rel_ret": float(self.inferred_K[-1]) if len(self.inferred_K) else 0.0,
            "inum_rel": self.pool.num_relevant,
            "num_ret": self.num_ret,
        }

    def precision_at_recall(self) -> list[float]:
        """Best precision at this or a later rank, at recall 0, 0.1, …, 1.

        A level is met where the inferred number of relevant shots falls below it, from the last rank upwards; as that
        number may rise and fall, at most one level is met per rank, as in the official script.
        """
        levels = [level / (RECALL_LEVELS - 1) * self.pool.num_relevant for level in range(RECALL_LEVELS)]
        reached = sum(level <= (self.inferred_K[-1] if len(self.inferred_K) else 0.0) for level in levels)
        curve, best, current = [0.0] * RECALL_LEVELS, 0.0, reached - 1
        for rank, inferred in zip(self.rank_K[::-1], self.inferred_K[::-1], strict=True):
            best = max(best, float(inferred / rank))
            if current >= 0 and levels[current] > inferred:
                curve[current] = best
                current -= 1
        curve[: current + 1] = [best] * (current + 1)
        return curve

    def _average_precision(self) -> float:
        """Precision at each relevant shot from what stands above it; strata count by their inferred relevant shots."""
        if not self.pool.num_relevant:
            return 0.0
        above_K = np.concatenate([[0.0], self.inferred_K[:-1]])  # pooled above * their inferred share of relevant ones
        precision_K = (1 + above_K[: len(self.rank_K)]) / self.rank_K
        sums_C = np.bincount(
            self.stratum_K[self.is_relevant_K],
            weights=precision_K[self.is_relevant_K],
            minlength=len(self.pool.relevant_C),
        )
        per_stratum_C = sums_C / np.maximum(self.pool.relevant_C, 1)
        precision = float((self.pool.estimated_C * per_stratum_C).sum()) / self.pool.num_relevant
        # A topic with more relevant shots than results could never reach 1.
        return precision * max(1.0, self.pool.num_relevant / self.max_results)

    def _ndcg(self) -> float:
        """Gain 1 per relevant shot, discounted by log2(rank + 1); strata are weighted by their judged share."""
        ideal = (1 / np.log2(np.arange(1, min(int(self.pool.num_relevant), self.max_results) + 1) + 1)).sum()
        if not ideal or not len(self.rank_K):
            return 0.0
        gains_C = np.bincount(
            self.stratum_K[self.is_relevant_K],
            weights=1 / np.log2(self.rank_K[self.is_relevant_K] + 1),
            minlength=len(self.pool.relevant_C),
        )
        return float((gains_C * self.pooled_KC[-1] / np.maximum(self.judged_KC[-1], 1)).sum() / ideal)


def _pools(judgements: Iterable[JudgementLine]) -> dict[str, _Pool]:
    lines: dict[str, list[JudgementLine]] = {}
    for judgement in judgements:
        lines.setdefault(judgement.topic, []).append(judgement)
    return {topic: _Pool(topic, of_topic) for topic, of_topic in lines.items()}


def _some(topics: Iterable[str]) -> str:
    names = sorted(topics, key=topic_order)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "") or "none"
