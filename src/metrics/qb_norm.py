"""Inverted softmax and QB-Norm: scores are divided by what a bank of queries gives the item, so that hubs lose rank.

    s'(q, g) = exp(β s(q, g)) / Σ_b exp(β s(b, g)),    log s'(q, g) / β = s(q, g) − log_sum_g / β

The right-hand side ranks the items of a query in the same order, cannot overflow and has the scale of the scores; it is
what is ranked here. A bank's scores are only needed as one sum per item and as each bank query's best items, so the
bank comes in blocks and its matrix never exists.

QB-Norm (dynamic inverted softmax) changes only the queries whose best item is a hub, that is among the best k of some
bank query; the others keep their scores, so scores of different queries cannot be compared. With the test's own queries
as the bank every query's best item is a hub, and QB-Norm is the inverted softmax.

Source: Smith et al., "Offline bilingual word vectors" (2017), inverted softmax; Bogolin et al., "Cross Modal Retrieval
with Querybank Normalisation" (CVPR 2022), eqs. 3 and 6.

Shapes: Q captions, V videos, N bank queries of a block, G items of a gallery.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from src.errors import UserError
from src.metrics.log_sums import LogSums
from src.metrics.ranks import Index
from src.metrics.rescoring import Banks, NewScores, Rescoring
from src.metrics.score_blocks import Scores

COSINES, LOGITS = 20.0, 1 / 1.99  # published: most models, CLIP2Video


class QueryBank:
    """What QB-Norm has to know of a bank of queries.

    Args:
        size: G.
        beta: inverse temperature.
        k: the best k items of each bank query are hubs; 0 = nobody asks.

    Attributes:
        sums: of exp(beta score).
        hubs_G: bool, items among the best k of a bank query.
    """

    def __init__(self, size: int, beta: float, k: int = 1) -> None:
        self.beta, self.k = beta, k
        self.sums = LogSums(size)
        self.hubs_G = torch.zeros(size, dtype=torch.bool)

    def add(self, scores_NG: Tensor) -> None:
        """Take in the scores of some bank queries with the whole gallery.

        Raises:
            UserError: a score is NaN, or all of an item are infinite.
        """
        scores_NG = scores_NG.detach().to("cpu", torch.float64)
        if not len(scores_NG):
            return
        self.sums.add(scores_NG, self.beta)
        if self.k:
            best_NK = scores_NG.argmax(1, keepdim=True) if self.k == 1 else scores_NG.topk(self.k, dim=1).indices
            self.hubs_G[best_NK.flatten().cpu()] = True

    def merge(self, other: QueryBank) -> None:
        """Take in what another process saw of the bank."""
        self.hubs_G |= other.hubs_G
        self.sums.merge(other.sums)

    @classmethod
    def of(cls, blocks: Iterable[Tensor], size: int, beta: float, k: int = 1) -> QueryBank:
        """A bank from blocks of its scores, each (N, G)."""
        bank = cls(size, beta, k)
        for scores_NG in blocks:
            bank.add(scores_NG)
        return bank

    @classmethod
    def read(cls, banks: Banks, blocks: Iterable[Tensor], size: int, settings: tuple[float, int]) -> QueryBank:
        """The bank of all processes; `settings` are beta and k."""
        whole = cls(size, *settings)
        for part in banks.everyone(cls.of(blocks, size, *settings)):
            whole.merge(part)
        return whole

    @property
    def shift_G(self) -> Tensor:
        """float64 log_sum / beta: what an item's scores lose."""
        return self.sums.value_G / self.beta


@dataclass(frozen=True)
class InvertedSoftmax(Rescoring):
    """Inverted softmax.

    Args:
        beta: inverse temperature; None = 20 for cosines, 1/1.99 for logits.
        bank: train, val or test (transductive); None = train, or of a matrix the file of its bank, if it has one.
        video_bank: also re-score video to text by the videos of the bank, which are encoded for it; with the test as
            the bank both directions are always re-scored.
    """

    beta: float | None = None
    bank: Literal["train", "val", "test"] | None = None
    video_bank: bool = False

    name = "inverted_softmax"
    title = "inverted softmax"
    default_bank = "train"

    def check(self, num_videos: int) -> None:
        _check_beta(self.beta)

    def new_scores(self, scores: Scores, banks: Banks | None) -> NewScores:
        return _normalised(scores, banks, scores.chosen(self.beta, COSINES, LOGITS), 0)


@dataclass(frozen=True)
class QbNorm(Rescoring):
    """QB-Norm.

    Args:
        beta: inverse temperature; None = 20 for cosines, 1/1.99 for logits.
        k: the best k items of each bank query are hubs.
        bank: as in `InvertedSoftmax`.
        video_bank: as in `InvertedSoftmax`.
    """

    beta: float | None = None
    k: int = 1
    bank: Literal["train", "val", "test"] | None = None
    video_bank: bool = False

    name = "qb_norm"
    title = "QB-Norm"
    default_bank = "train"

    def check(self, num_videos: int) -> None:
        _check_beta(self.beta)
        if not 1 <= self.k <= num_videos:
            raise UserError(f"rescoring.k: found {self.k}, expected 1 to {num_videos}, the number of videos")

    def new_scores(self, scores: Scores, banks: Banks | None) -> NewScores:
        return _normalised(scores, banks, scores.chosen(self.beta, COSINES, LOGITS), self.k)


def _check_beta(beta: float | None) -> None:
    if beta is not None and not (math.isfinite(beta) and beta > 0):
        raise UserError(
            f"rescoring.beta: found {beta}, expected a positive number, or null: 20 for cosine similarities, "
            "1/1.99 for logits"
        )


def _normalised(scores: Scores, banks: Banks | None, beta: float, k: int) -> NewScores:
    """The inverted softmax, for k > 0 only of queries whose best item is a hub."""
    captions, videos = len(scores.video_of_caption), scores.num_videos
    settings: dict[str, object] = {"beta": beta, **({"k": k} if k else {})}
    if banks is None:
        over_videos_Q, over_captions_V = scores.log_sums(beta)
        every = torch.ones(1, dtype=torch.bool)
        t2v = _Columns(over_captions_V / beta, every.expand(captions))
        return NewScores(t2v, _Rows(over_videos_Q / beta, every.expand(videos)), settings | {"bank": "test"})
    queries = QueryBank.read(banks, banks.captions, videos, (beta, k))
    video_Q, caption_V = scores.best() if k else (torch.zeros(captions).long(), torch.zeros(videos).long())
    changed_Q = queries.hubs_G[video_Q] if k else torch.ones(captions, dtype=torch.bool)
    settings |= {"bank": banks.source, "bank_queries": queries.sums.count}
    if k:
        settings |= {"hub_videos": int(queries.hubs_G.sum()), "changed_captions": int(changed_Q[scores.rows_Q].sum())}
    v2t = None
    if banks.videos is not None:
        other = QueryBank.read(banks, banks.videos, len(scores.rows_Q), (beta, k))
        changed_V = scores.spread(other.hubs_G)[caption_V] if k else torch.ones(videos, dtype=torch.bool)
        v2t = _Rows(scores.spread(other.shift_G), changed_V)
        settings |= {"bank_videos": other.sums.count}
    return NewScores(_Columns(queries.shift_G, changed_Q), v2t, settings)


@dataclass(frozen=True)
class _Columns:
    """Scores less the shift of their video, in the rows that change."""

    shift_V: Tensor
    changed_Q: Tensor

    def __call__(self, s_RC: Tensor, rows: Index, columns: Index) -> Tensor:
        return s_RC - self.shift_V[columns][None].where(self.changed_Q[rows][:, None], 0.0)


@dataclass(frozen=True)
class _Rows:
    """Scores less the shift of their caption, in the columns that change."""

    shift_Q: Tensor
    changed_V: Tensor

    def __call__(self, s_RC: Tensor, rows: Index, columns: Index) -> Tensor:
        return s_RC - self.shift_Q[rows][:, None].where(self.changed_V[columns][None], 0.0)
