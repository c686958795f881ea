"""QB-Norm: text to video re-scored by a bank of other queries, so that videos that many queries like lose rank.

A video's scores with the bank are only needed as one sum per video and as each bank query's best videos, so the bank
comes in blocks and its matrix never exists. For a test query whose best video is a hub (among the best k of some
bank query), softmax over the bank replaces its scores:

    s'(q, v) = exp(beta s(q, v)) / sum_b exp(beta s(b, v)),    log s'(q, v) / beta = s(q, v) - log_sum_v / beta

The right-hand side ranks a row in the same order, cannot overflow and has the scale of the scores; it is what is
ranked here. Other queries keep their scores, so numbers of different rows cannot be compared: video to text stays raw.

Source: Bogolin et al., "Cross Modal Retrieval with Querybank Normalisation" (CVPR 2022), eqs. 3 and 6.

Shapes: Q captions, V videos, N bank queries of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.metrics.ranks import Index, ScoreFn
from src.metrics.result import RetrievalResult
from src.metrics.retrieval import evaluate, evaluate_matrix

Similarity = Callable[[TextEmbedding, VideoEmbedding], Tensor]


class QueryBank:
    """What QB-Norm has to know of a bank of queries.

    Args:
        num_videos: V.
        beta: inverse temperature; 20 for cosine scores.
        k: the best k videos of each bank query are hubs.

    Attributes:
        size: bank queries seen.
        hubs_V: bool, videos among the best k of a bank query.

    Raises:
        UserError: beta or k cannot be used.
    """

    def __init__(self, num_videos: int, beta: float, k: int = 1) -> None:
        if not (math.isfinite(beta) and beta > 0):
            raise UserError(f"qb_norm.beta: found {beta}, expected a positive number; 20 suits cosine similarities")
        if not 1 <= k <= num_videos:
            raise UserError(f"qb_norm.k: found {k}, expected 1 to {num_videos}, the number of videos")
        self.beta, self.k, self.size = beta, k, 0
        self.hubs_V = torch.zeros(num_videos, dtype=torch.bool)
        self._most_V = torch.full((num_videos,), -torch.inf, dtype=torch.float64)
        self._sum_V = torch.zeros(num_videos, dtype=torch.float64)

    def add(self, scores_NV: Tensor) -> None:
        """Take in the scores of some bank queries with all videos, in the order of the videos.

        Raises:
            UserError: a score is NaN, or all of a video are infinite.
        """
        scores_NV = scores_NV.detach() if scores_NV.dtype == torch.float64 else scores_NV.detach().float()
        if not len(scores_NV):
            return
        most_V = scores_NV.amax(0)
        if not most_V.isfinite().all():  # NaN is the largest
            raise UserError(
                "QB-Norm: found NaN or infinite scores of the query bank, expected finite ones; "
                "look for a diverged checkpoint (NaN weights) or empty features"
            )
        best_NK = scores_NV.argmax(1, keepdim=True) if self.k == 1 else scores_NV.topk(self.k, dim=1).indices
        self.hubs_V[best_NK.flatten().cpu()] = True
        # Subtracting first keeps the exponent exact to the scores' own rounding, whatever beta is.
        sum_V = scores_NV.sub(most_V).mul_(self.beta).exp_().sum(0, dtype=torch.float64)
        self._include(self.beta * most_V.double().cpu(), sum_V.cpu())
        self.size += len(scores_NV)

    def merge(self, other: QueryBank) -> None:
        """Take in what another process saw of the bank."""
        if other.size:
            self.hubs_V |= other.hubs_V
            self._include(other._most_V, other._sum_V)
            self.size += other.size

    def _include(self, most_V: Tensor, sum_V: Tensor) -> None:
        common_V = torch.maximum(self._most_V, most_V)
        self._sum_V = self._sum_V * (self._most_V - common_V).exp() + sum_V * (most_V - common_V).exp()
        self._most_V = common_V

    @classmethod
    def of(cls, blocks: Iterable[Tensor], num_videos: int, beta: float, k: int = 1) -> QueryBank:
        """A bank from blocks of its scores, each (N, V)."""
        bank = cls(num_videos, beta, k)
        for scores_NV in blocks:
            bank.add(scores_NV)
        return bank

    @property
    def log_sum_V(self) -> Tensor:
        """float64 log of the sum over the bank of exp(beta score).

        Raises:
            UserError: the bank is empty.
        """
        if not self.size:
            raise UserError("QB-Norm: found an empty query bank, expected at least one query; choose another bank")
        return self._most_V + self._sum_V.log()


@dataclass(frozen=True)
class Rescored:
    """What QB-Norm made of a result.

    Attributes:
        result: text to video re-scored, video to text raw; the scores it holds are the raw ones, in the new order.
        raw: the result without QB-Norm.
        bank: the query bank.
        changed: number of captions whose scores were replaced.
    """

    result: RetrievalResult
    raw: RetrievalResult
    bank: QueryBank
    changed: int

    def words(self, source: str) -> str:
        """For the line of the protocol; `source` says where the bank comes from."""
        return f"QB-Norm t2v only (beta {self.bank.beta:g}, k {self.bank.k}, bank {self.bank.size} {source})"

    def details(self, source: str) -> dict[str, object]:
        """For metrics.json."""
        return {
            "beta": self.bank.beta,
            "k": self.bank.k,
            "bank": source,
            "bank_queries": self.bank.size,
            "hub_videos": int(self.bank.hubs_V.sum()),
            "rescored_captions": self.changed,
            "raw_t2v": dict(self.raw.t2v),
        }


def evaluate_matrix_with_bank(
    score: ScoreFn, caption_video: Tensor, num_videos: int, bank: QueryBank, **options: Any
) -> Rescored:
    """Rank from scores that exist already, see `src.metrics.retrieval.evaluate_matrix`."""
    raw = evaluate_matrix(score, caption_video, num_videos, **options)
    changed_W, shift_V = _correction(raw, bank)
    changed_Q = torch.zeros(len(caption_video), dtype=torch.bool)
    changed_Q[raw.caption_ids] = changed_W

    def corrected(rows: Index, columns: Index) -> Tensor:
        return corrected_tile(score(rows, columns), changed_Q[rows], shift_V[columns])

    new = evaluate_matrix(corrected, caption_video, num_videos, **options)
    return Rescored(_with_text_to_video(raw, new, changed_W, shift_V), raw, bank, int(changed_W.sum()))


def evaluate_with_bank(
    text: TextEmbedding, video: VideoEmbedding, similarity: Similarity, bank: QueryBank, **options: Any
) -> Rescored:
    """Rank embeddings, see `src.metrics.retrieval.evaluate`; the bank's videos are those of `video`, by id."""
    raw = evaluate(text, video, similarity, **options)
    changed_Q, shift_V = _correction(raw, bank)

    def corrected(some: TextEmbedding, videos: VideoEmbedding) -> Tensor:
        rows = torch.searchsorted(raw.caption_ids, some.ids.cpu())
        columns = torch.searchsorted(raw.video_ids, videos.ids.cpu())
        return corrected_tile(similarity(some, videos), changed_Q[rows], shift_V[columns])

    new = evaluate(text, video, corrected, **options)
    return Rescored(_with_text_to_video(raw, new, changed_Q, shift_V), raw, bank, int(changed_Q.sum()))


def _correction(raw: RetrievalResult, bank: QueryBank) -> tuple[Tensor, Tensor]:
    """changed_Q and shift_V: what to subtract in the rows that change."""
    best_Q = np.searchsorted(raw.video_ids.numpy(), raw.t2v_topk[0][:, 0].numpy())
    return bank.hubs_V[torch.from_numpy(best_Q)], bank.log_sum_V / bank.beta


def corrected_tile(scores_RC: Tensor, changed_R: Tensor, shift_C: Tensor) -> Tensor:
    """Scores of R queries with C videos, less the videos' shift in the rows that change."""
    scores_RC = scores_RC if scores_RC.dtype == torch.float64 else scores_RC.float()
    shift_1C = shift_C.to(scores_RC)[None]
    return scores_RC - shift_1C.where(changed_R.to(scores_RC.device)[:, None], 0.0)


def _with_text_to_video(
    raw: RetrievalResult, new: RetrievalResult, changed_Q: Tensor, shift_V: Tensor
) -> RetrievalResult:
    videos_QK, scores_QK = new.t2v_topk
    at_QK = torch.from_numpy(np.searchsorted(raw.video_ids.numpy(), videos_QK.numpy()))
    raw_QK = scores_QK + shift_V[at_QK].where(changed_Q[:, None], 0.0)
    return replace(raw, t2v=new.t2v, t2v_ranks=new.t2v_ranks, t2v_tied=new.t2v_tied, t2v_topk=(videos_QK, raw_QK))
