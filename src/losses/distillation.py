"""Learning to score pairs as other models do, whose scores were computed before (TeachText).

Shape suffixes: B captions of this process, N videos of all processes, C videos that the teachers know.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from src.batch import TeacherScores, TextEmbedding, VideoEmbedding
from src.losses.gather import gather_embedding, gather_sizes, world_size
from src.losses.pairs import SimilarityFn


class Distillation:
    """Smooth L1 distance (beta 1) of all similarities of a batch to the mean over its teachers.

    The mean is over the N x N entries of the whole batch. Each process computes the rows of its own captions and
    multiplies by the number of processes, so that the mean over processes, which DDP takes, has the value and the
    gradient of one process, even when local batches differ in size.

    Args:
        weight: factor on the distance.

    Source: equation 3 of arXiv 2104.08271; collaborative-experts trainer/trainer.py @ 7eb3b9d.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(
        self, similarity: SimilarityFn, text: TextEmbedding, video: VideoEmbedding, teachers: TeacherScores
    ) -> Tensor:
        """Return the scalar loss; row i of `text` describes row i of `video`, as in the ranking losses."""
        sizes = gather_sizes(video)
        everybody = gather_embedding(video, "exact", sizes)
        s_BN = similarity(text, everybody)
        target_BN = mean_scores(teachers, everybody.ids, s_BN.dtype)
        total = F.smooth_l1_loss(s_BN, target_BN, reduction="sum", beta=1.0)
        return self.weight * world_size() * total / max(sum(sizes), 1) ** 2


def mean_scores(teachers: TeacherScores, video_ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Mean over teachers of the scores of the captions and some videos, (B, N).

    Args:
        teachers: scores s_BC.
        video_ids: int64 (N,), all among those of the columns.
        dtype: of the mean.
    """
    columns_N = torch.searchsorted(teachers.video_ids, video_ids)
    return torch.stack([s_BC[:, columns_N].to(dtype) for s_BC in teachers.scores.values()]).mean(0)
