"""The scores of a test in blocks of whole rows, for what has to look at all of them.

Shapes: Q captions, V videos, R rows of a block (captions), K captions that the mask leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from src.errors import UserError
from src.metrics.log_sums import LogSums
from src.metrics.ranks import Index, ScoreFn

BLOCK = 1 << 20  # scores of a block, which is held in float64
COSINE = 1.0001  # scores beyond are logits; rounding apart


class Scores:
    """The scores of a test, in blocks.

    Args:
        score: `score(rows, columns)` returns s_RC.
        video_of_caption: int64 (Q,) position of each caption's own video.
        num_videos: V.
        mask: bool (Q,), False for rows that stand for no caption; they are never looked at.
    """

    def __init__(self, score: ScoreFn, video_of_caption: Tensor, num_videos: int, mask: Tensor | None = None) -> None:
        self.score, self.video_of_caption, self.num_videos, self.mask = score, video_of_caption, num_videos, mask
        every = torch.arange(len(video_of_caption))
        self.rows_Q = every if mask is None else every[mask]

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(positions of the rows, float64 s_RV).

        Raises:
            UserError: a score is not finite.
        """
        for rows_R in self.rows_Q.split(max(1, BLOCK // self.num_videos)):
            first, last = int(rows_R[0]), int(rows_R[-1])
            at = slice(first, last + 1) if last - first == len(rows_R) - 1 else rows_R
            s_RV = self.score(at, slice(0, self.num_videos)).double()
            if not s_RV.isfinite().all():
                raise UserError(
                    "re-scoring: found NaN or infinite scores, expected finite ones; "
                    "look for a diverged checkpoint (NaN weights) or empty features"
                )
            yield rows_R, s_RV

    @cached_property
    def range(self) -> tuple[float, float]:
        """Least and greatest score."""
        ends = [s_RV.aminmax() for _, s_RV in self.blocks()]
        return min(float(end.min) for end in ends), max(float(end.max) for end in ends)

    def chosen(self, value: float | None, cosines: float, logits: float) -> float:
        """`value`, or where it is None what suits scores in [-1, 1] (cosines) or beyond (logits)."""
        if value is None:
            return cosines if max(map(abs, self.range)) <= COSINE else logits
        return value

    def spread(self, values_K: Tensor) -> Tensor:
        """Values of the captions that the mask leaves, at the places of their rows (Q,); zeros elsewhere."""
        values_Q = values_K.new_zeros(len(self.video_of_caption))
        values_Q[self.rows_Q] = values_K
        return values_Q

    def log_sums(self, factor: float) -> tuple[Tensor, Tensor]:
        """log Σ exp(factor · s) over the videos for each caption (Q,), and over the captions for each video (V,)."""
        over_videos_Q = torch.zeros(len(self.video_of_caption), dtype=torch.float64)
        over_captions = LogSums(self.num_videos)
        for rows_R, s_RV in self.blocks():
            over_videos_Q[rows_R] = torch.logsumexp(s_RV * factor, 1)
            over_captions.add(s_RV, factor)
        return over_videos_Q, over_captions.value_G

    def dense(self, change: Callable[[Tensor, Index, Index], Tensor] | None = None) -> np.ndarray:
        """The whole matrix s_KV, changed (float64) or as it is (float32 where that is exact)."""
        every = slice(0, self.num_videos)
        if change is not None:
            return torch.cat([change(s_RV, rows_R, every) for rows_R, s_RV in self.blocks()]).numpy()
        return torch.cat([_narrow(s_RV) for _, s_RV in self.blocks()]).numpy()

    def best(self) -> tuple[Tensor, Tensor]:
        """Position of the best video of each caption (Q,) and of the best caption of each video (V,); first ones."""
        video_Q = torch.zeros(len(self.video_of_caption), dtype=torch.int64)
        caption_V = torch.zeros(self.num_videos, dtype=torch.int64)
        most_V = torch.full((self.num_videos,), -torch.inf, dtype=torch.float64)
        for rows_R, s_RV in self.blocks():
            video_Q[rows_R] = s_RV.argmax(1)
            value_V, place_V = s_RV.max(0)
            caption_V = torch.where(value_V > most_V, rows_R[place_V], caption_V)
            most_V = torch.maximum(most_V, value_V)
        return video_Q, caption_V


def _narrow(values: Tensor) -> Tensor:
    narrow = values.float()
    return narrow if torch.equal(narrow.double(), values) else values
