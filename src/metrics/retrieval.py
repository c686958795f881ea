"""Retrieval metrics of both directions, from embeddings or from a similarity matrix.

Conventions (printed beside every number): a query's rank is 1 + the competitors that score higher, plus none,
half or all of those that tie with the true item (`ties`). Text to video: a caption has one relevant video.
Video to text: `captions` = rank of the best own caption among all captions (own ones never compete with each
other, except that under `average` those that tie for the best share their positions, as published), mAP over all own
captions; `groups` = rank of the video's caption group among all groups, each represented by its best caption, as the
multi-sentence evaluation of CLIP4Clip and CLIP2Video has it.

Shapes: Q captions, V videos, W videos with captions, K kept items.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.metrics.ranks import Index, ReduceFn, ScoreFn, count_ranks
from src.metrics.result import RetrievalResult, Ties, VideoToText, make_result

__all__ = ["MatrixScore", "RetrievalResult", "Ties", "VideoToText", "evaluate", "evaluate_matrix"]


def evaluate(
    text: TextEmbedding,
    video: VideoEmbedding,
    similarity: Callable[[TextEmbedding, VideoEmbedding], Tensor],
    *,
    ties: Ties = "optimistic",
    v2t: VideoToText = "captions",
    block: int = 1024,
    topk: int = 10,
    share: tuple[int, int] = (0, 1),
    reduce: ReduceFn = lambda tensor: tensor,
) -> RetrievalResult:
    """Rank all captions against all videos and back.

    Rows that carry the same id are duplicates of a padded sampler: the first one counts. Captions whose
    video has no embedding are left out and listed. The result does not depend on the order of the rows.

    Args:
        text: embeddings of all captions of the part (gathered over processes).
        video: embeddings of all its videos.
        similarity: pure function of two embeddings, rows text, columns video.
        ties: what a competitor with exactly the true item's score costs: nothing, half a rank, a rank.
        v2t: "captions" or "groups", see the module's docstring.
        block: most captions in one call of `similarity`; a video axis of about half as many.
        topk: best items kept for each query.
        share: this process' (number, count).
        reduce: sum over all processes.

    Raises:
        UserError: nothing to rank, or NaN scores; names the captions and videos.
    """
    caption_ids, text_rows = np.unique(text.ids.cpu().numpy(), return_index=True)
    video_ids, video_rows = np.unique(video.ids.cpu().numpy(), return_index=True)
    owner = text.video_ids.cpu().numpy()[text_rows]
    known = np.isin(owner, video_ids)
    dropped = tuple(int(i) for i in caption_ids[~known])
    caption_ids, text_rows, owner = caption_ids[known], text_rows[known], owner[known]
    if not len(caption_ids):
        raise UserError(
            f"found {len(dropped)} captions and {len(video_ids)} videos but no caption whose video was encoded, "
            "expected at least one; run task=check_data to see which files cannot be read"
        )
    take_text, take_video = _Rows(text_rows), _Rows(video_rows)
    parts = [*text.parts.values(), *video.parts.values()]
    device = parts[0].device if parts and parts[0].is_cuda else torch.device("cpu")
    counts = count_ranks(
        lambda rows, cols: similarity(text[take_text(rows)], video[take_video(cols)]),
        torch.from_numpy(np.searchsorted(video_ids, owner)),
        len(video_ids),
        block=block,
        topk=topk,
        groups=v2t == "groups",
        device=device,
        share=share,
        reduce=reduce,
    )
    return make_result(counts, (caption_ids, owner, video_ids), dropped, ties, v2t)


def evaluate_matrix(
    matrix: Tensor | np.ndarray | ScoreFn,
    caption_video: Tensor,
    num_videos: int,
    *,
    mask: Tensor | None = None,
    ties: Ties = "optimistic",
    v2t: VideoToText = "captions",
    block: int = 1024,
    topk: int = 10,
) -> RetrievalResult:
    """Rank from scores that exist already: ids are positions.

    Args:
        matrix: scores (Q, V), rows captions; an array (memory-mapped or not), a tensor, or `score(rows, columns)`.
        caption_video: int64 (Q,), column of each caption's own video.
        num_videos: V.
        mask: bool (Q,), False for rows that stand for no caption (videos with fewer captions than others); they are
            neither queries nor competitors.
        ties: as in `evaluate`.
        v2t: as in `evaluate`.
        block: as in `evaluate`.
        topk: as in `evaluate`.

    Raises:
        UserError: NaN scores, or no caption.
    """
    score = matrix if callable(matrix) and not isinstance(matrix, Tensor) else MatrixScore(matrix)
    rows = np.arange(len(caption_video)) if mask is None else np.flatnonzero(mask.cpu().numpy())
    if not len(rows):
        raise UserError("found no caption in the matrix, expected at least one row that the mask leaves")
    if len(rows) < len(caption_video):
        score = _chosen(score, torch.from_numpy(rows))
    owner = caption_video.cpu()[rows]
    counts = count_ranks(score, owner, num_videos, block=block, topk=topk, groups=v2t == "groups")
    return make_result(counts, (rows, owner.numpy(), np.arange(num_videos)), (), ties, v2t)


def _chosen(score: ScoreFn, rows_Q: Tensor) -> ScoreFn:
    """`score` of some rows only; neighbouring rows stay a slice, which copies nothing."""

    def of_rows(rows: Index, columns: Index) -> Tensor:
        at = rows_Q[rows]
        if len(at) and int(at[-1]) - int(at[0]) == len(at) - 1 and isinstance(rows, slice):
            return score(slice(int(at[0]), int(at[-1]) + 1), columns)
        return score(at, columns)

    return of_rows


class _Rows:
    """Positions after sorting and de-duplication, to rows of the embedding; a slice where it can be one."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = torch.from_numpy(rows)
        self.straight = bool((rows == np.arange(len(rows))).all())

    def __call__(self, index: Index) -> Index:
        # An index on the CPU may be used on tensors of any device, so ids may stay there while parts do not.
        place = index.cpu() if isinstance(index, Tensor) else index
        return place if self.straight else self.rows[place]


class MatrixScore:
    """A score function that reads a matrix."""

    def __init__(self, matrix: Tensor | np.ndarray) -> None:
        self.matrix = matrix

    def __call__(self, rows: Index, cols: Index) -> Tensor:
        if isinstance(self.matrix, Tensor):
            return self.matrix[:, cols][rows] if isinstance(cols, slice) else self.matrix[rows][:, cols]
        at = rows.numpy() if isinstance(rows, Tensor) else rows
        columns = cols.numpy() if isinstance(cols, Tensor) else cols
        part = self.matrix[:, columns][at] if isinstance(columns, slice) else self.matrix[at][:, columns]
        return torch.from_numpy(np.array(part))
