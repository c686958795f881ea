"""Sinkhorn: scores become a transport plan in which every caption and every video has its fair share.

    P(q, v) = exp(s(q, v) / ε + a_q + b_v),  Σ_v P(q, v) = 1,  Σ_q P(q, v) = Q / V

Rows and columns are normalised in turn. Within a row a_q is a constant, so text to video ranks s + ε b_v and video to
text s + ε a_q: only these potentials are kept, and each turn is one pass over blocks of the scores, in the log domain.
One half turn is the inverted softmax over the test queries; DSL weighs the scores with it.

With a bank (the single-query variant) the potentials b_v come from the bank's captions alone, so a test caption does
not depend on the others.

Deviates: the single-query variant of the source appends the query to the bank; a bank of thousands gives the same.

Source: Yakovlev et al., "Sinkhorn Transformations for Single-Query Postprocessing in Text-Video Retrieval" (SIGIR 2023,
arXiv 2311.08143).

Shapes: Q captions, V videos, N queries of a block, G items of a gallery.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from src.errors import UserError
from src.metrics.kept import KeptBlocks
from src.metrics.log_sums import LogSums
from src.metrics.ranks import Index
from src.metrics.rescoring import Banks, NewScores, Rescoring
from src.metrics.score_blocks import Scores


@dataclass(frozen=True)
class Sinkhorn(Rescoring):
    """Sinkhorn.

    Args:
        epsilon: temperature ε; None = 0.01 for cosines, 1 for logits.
        iterations: turns, each over rows and columns.
        bank: test (transductive, both directions), train or val; None = test, or of a matrix the file of its bank, if
            it has one.
        video_bank: also re-score video to text by the videos of a bank, which are encoded for it.
    """

    epsilon: float | None = None
    iterations: int = 10
    bank: Literal["train", "val", "test"] | None = None
    video_bank: bool = False

    name = "sinkhorn"
    title = "Sinkhorn"

    def check(self, num_videos: int) -> None:
        if self.epsilon is not None and not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise UserError(
                f"rescoring.epsilon: found {self.epsilon}, expected a positive number, or null: 0.01 for cosine "
                "similarities, 1 for logits"
            )
        if self.iterations < 1:
            raise UserError(f"rescoring.iterations: found {self.iterations}, expected at least 1")

    def new_scores(self, scores: Scores, banks: Banks | None) -> NewScores:
        epsilon = scores.chosen(self.epsilon, cosines=0.01, logits=1.0)
        settings: dict[str, object] = {"epsilon": epsilon, "iterations": self.iterations}
        if banks is None:
            found = potentials(
                lambda: (s_RV for _, s_RV in scores.blocks()), scores.num_videos, epsilon, self.iterations
            )
            settings |= {"bank": "test"} if found.error is None else {"bank": "test", "row_error": found.error}
            rows_Q = scores.spread(found.rows_N)
            return NewScores(_by_column(epsilon * found.columns_G), _by_row(epsilon * rows_Q), settings)
        captions = self._of_bank(banks, banks.captions, scores.num_videos, epsilon)
        settings |= {"bank": banks.source, "bank_queries": captions.count}
        v2t = None
        if banks.videos is not None:
            videos = self._of_bank(banks, banks.videos, len(scores.rows_Q), epsilon)
            v2t, settings["bank_videos"] = _by_row(epsilon * scores.spread(videos.columns_G)), videos.count
        return NewScores(_by_column(epsilon * captions.columns_G), v2t, settings)

    def _of_bank(self, banks: Banks, blocks: Iterable[Tensor], size: int, epsilon: float) -> Potentials:
        kept = KeptBlocks(blocks)
        try:
            return potentials(kept, size, epsilon, self.iterations, banks.everyone)
        finally:
            kept.close()


@dataclass(frozen=True)
class Potentials:
    """Of the queries of this process (N,) and of the gallery (G,), float64.

    Attributes:
        rows_N: a.
        columns_G: b.
        count: queries of all processes.
        error: how far a row of this process was from its share before the last turn; None after a single one.
    """

    rows_N: Tensor
    columns_G: Tensor
    count: int
    error: float | None


def potentials(
    blocks: Callable[[], Iterable[Tensor]],
    size: int,
    epsilon: float,
    iterations: int,
    everyone: Callable[[Any], list[Any]] = lambda own: [own],
) -> Potentials:
    """Normalise rows, then columns, so many times.

    Args:
        blocks: gives all scores of this process in blocks s_NG, again for each turn.
        size: G.
        epsilon: temperature.
        iterations: turns.
        everyone: the objects of all processes.
    """
    columns_G = torch.zeros(size, dtype=torch.float64)
    before_N = torch.zeros(0, dtype=torch.float64)
    error: float | None = None
    whole = LogSums(size)
    for _ in range(iterations):
        sums, rows = LogSums(size), []
        for s_NG in blocks():
            exponent_NG = s_NG.double() / epsilon
            rows.append(-torch.logsumexp(exponent_NG + columns_G, 1))
            sums.add(exponent_NG.add_(rows[-1][:, None]))
        whole = LogSums.merged(everyone(sums), size)
        rows_N = torch.cat(rows) if rows else before_N
        if len(before_N):
            error = float((before_N - rows_N).expm1().abs().max())
        columns_G = math.log(max(whole.count, 1) / size) - whole.value_G
        before_N = rows_N
    return Potentials(before_N, columns_G, whole.count, error)


def _by_column(potential_V: Tensor) -> Callable[[Tensor, Index, Index], Tensor]:
    return lambda s_RC, rows, columns: s_RC + potential_V[columns][None]


def _by_row(potential_Q: Tensor) -> Callable[[Tensor, Index, Index], Tensor]:
    return lambda s_RC, rows, columns: s_RC + potential_Q[rows][:, None]
