"""Dual softmax (DSL) at test time: a score counts for more when its item also prefers the query.

    t2v: s'(q, v) = s(q, v) · exp(c s(q, v)) / Σ_q' exp(c s(q', v))
    v2t: s'(q, v) = s(q, v) · exp(c s(q, v)) / Σ_v' exp(c s(q, v'))

All test queries of a direction are needed together, and each is assumed to have an item of its own: repeated or
unanswerable queries break it. It is always transductive. The weight only helps positive scores: of negative ones it
lifts those that nobody prefers, to just below zero.

Source: Cheng et al., "Improving Video-Text Retrieval by Multi-Stream Corpus Alignment and Dual Softmax Loss" (CAMoE,
2021), eq. 5; InternVideo1/Downstream/Video-Text-Retrieval @ 3965eef `main_task_retrieval.py`, c = 1 on logits that
include exp(logit_scale).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from src.errors import UserError
from src.metrics.ranks import Index
from src.metrics.rescoring import Banks, NewScores, Rescoring
from src.metrics.score_blocks import Scores

MOST_EXPONENT = 300.0  # float64 holds exp(-700)


@dataclass(frozen=True)
class DualSoftmax(Rescoring):
    """DSL.

    Args:
        temperature: c; None = 100 for cosines, 1 for logits.
        v2t: "own" as above; "upstream": where a video has several captions, video to text ranks the scores made for
            text to video, as InternVideo does. Within a column these are a monotone map of positive scores, so a video
            whose best own caption has a positive score keeps its plain rank.
    """

    temperature: float | None = None
    v2t: Literal["own", "upstream"] = "own"

    name = "dsl"
    title = "DSL"
    fixed_bank = True

    def check(self, num_videos: int) -> None:
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(
                f"rescoring.temperature: found {self.temperature}, expected a positive number, or null: 100 for cosine "
                "similarities, 1 for logits"
            )

    def new_scores(self, scores: Scores, banks: Banks | None) -> NewScores:
        factor = scores.chosen(self.temperature, cosines=100.0, logits=1.0)
        over_videos_Q, over_captions_V = scores.log_sums(factor)
        least, greatest = scores.range
        # A root keeps the order; without it very high temperatures would make all far scores an equal zero.
        exponent = factor * (greatest - least) + math.log(max(len(over_videos_Q), scores.num_videos))
        root = max(1.0, exponent / MOST_EXPONENT)

        def t2v(s_RC: Tensor, rows: Index, columns: Index) -> Tensor:
            return product(s_RC, factor * s_RC - over_captions_V[columns], root)

        def v2t(s_RC: Tensor, rows: Index, columns: Index) -> Tensor:
            return product(s_RC, factor * s_RC - over_videos_Q[rows][:, None], root)

        owner = scores.video_of_caption[scores.rows_Q]
        several = len(owner.unique()) < len(owner)
        same = self.v2t == "upstream" and several
        settings: dict[str, object] = {"temperature": factor, **({"v2t": "upstream"} if same else {})}
        return NewScores(t2v, t2v if same else v2t, settings)


def product(s_RC: Tensor, log_weight_RC: Tensor, root: float = 1.0) -> Tensor:
    """s · exp(log weight), or with a root r > 1 sign(s) · |s · exp(log weight)|^(1/r), which has the same order."""
    if root == 1.0:
        return s_RC * log_weight_RC.exp()
    return s_RC.sign() * ((s_RC.abs().log() + log_weight_RC) / root).exp()
