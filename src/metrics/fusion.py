"""Late fusion: one score from the scores of several models, with weights that are learnt.

Scores of different models have different scales, so each model's are standardised first: minus the mean of its matrix,
over the standard deviation. Both numbers and the weights come from one part of the data (validation) and are applied
to another (test) as they are.

Shapes: R runs, Q captions, V videos.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from src.errors import UserError
from src.metrics.ranks import Index, ScoreFn
from src.metrics.retrieval import MatrixScore

BLOCK = 1024  # rows of a matrix at a time
GRID = 100  # two runs: weights in steps of a hundredth
STEPS = (0.2, 0.1, 0.05, 0.02, 0.01)  # more runs: sizes of the moves


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of the scores of a run."""

    mean: float
    std: float

    @classmethod
    def of(cls, matrix: np.ndarray, name: str) -> Scale:
        """Of a whole matrix (Q, V), read in blocks.

        Raises:
            UserError: values are not finite, or all are equal.
        """
        count, total, squares = 0, 0.0, 0.0
        shift = float(matrix.flat[0]) if matrix.size else 0.0
        for start in range(0, len(matrix), BLOCK):
            rows = np.asarray(matrix[start : start + BLOCK], dtype=np.float64) - shift
            count, total, squares = count + rows.size, total + rows.sum(), squares + np.square(rows).sum()
        if not np.isfinite(squares):
            raise UserError(f"{name} holds scores that are not finite, expected numbers only; evaluate the run again")
        mean = total / max(count, 1)
        variance = squares / max(count, 1) - mean**2
        if variance <= 1e-12 * max(mean**2, 1e-30):
            raise UserError(f"{name} holds {count} equal scores, expected some that differ; leave this run out")
        return cls(float(mean + shift), float(np.sqrt(variance)))


def fused_score(matrices: Sequence[np.ndarray], scales: Sequence[Scale], weights: Sequence[float]) -> ScoreFn:
    """The weighted sum of the standardised scores, computed for the blocks that are asked for."""
    parts = [
        (MatrixScore(matrix), scale, weight)
        for matrix, scale, weight in zip(matrices, scales, weights, strict=True)
        if weight
    ]

    def score(rows: Index, columns: Index) -> Tensor:
        blocks = [(read(rows, columns).double() - its.mean) * (weight / its.std) for read, its, weight in parts]
        return sum(blocks[1:], start=blocks[0])

    return score


def learn_weights(value: Callable[[tuple[float, ...]], float], count: int) -> tuple[tuple[float, ...], float]:
    """Weights that are at least 0 and sum to 1, with the highest value, and that value.

    Two runs: all weights in steps of 0.01. More: from equal weights or the best single run, a share is moved from one
    run to another as long as that helps, in steps down to 0.01; this finds a local optimum. Of weights with the same
    value, those nearest to equal weights are taken: recalls do not change between two ranks, and there is no other
    reason to prefer one of them.

    Args:
        value: what is maximised.
        count: R.
    """
    seen: dict[tuple[float, ...], tuple[float, float]] = {}

    def rated(weights: tuple[float, ...]) -> tuple[float, float]:
        if weights not in seen:
            spread = float(np.square(np.array(weights) - 1 / count).sum())
            seen[weights] = (value(weights), -round(spread, 9))
        return seen[weights]

    if count == 2:
        pairs: list[tuple[float, ...]] = [(round(1 - n / GRID, 2), round(n / GRID, 2)) for n in range(GRID + 1)]
        best = max(pairs, key=rated)
        return best, rated(best)[0]
    single = [tuple(float(r == i) for r in range(count)) for i in range(count)]
    best = max([(1 / count,) * count, *single], key=rated)
    for step in STEPS:
        while (candidate := max(_moves(best, step), key=rated, default=best)) and rated(candidate) > rated(best):
            best = candidate
    return best, rated(best)[0]


def _moves(weights: tuple[float, ...], step: float) -> list[tuple[float, ...]]:
    """Weights of which a share went from one run to another."""
    found = []
    for giver, share in enumerate(weights):
        moved = min(step, share)
        for taker in range(len(weights)):
            if taker != giver and moved > 1e-9:
                change = {giver: -moved, taker: moved}
                found.append(tuple(round(w + change.get(r, 0.0), 9) for r, w in enumerate(weights)))
    return found
