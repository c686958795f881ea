"""The evaluation of the published CLIP4Clip and CLIP2Video code, to compare with published numbers only.

New results use `src.metrics.retrieval`; its video-to-text protocol "groups" is the multi-sentence one here
without the quirks (a tied query counted several times, an undefined order of ties).

Source: CLIP2Video `evaluation/metrics.py`, CLIP4Clip `metrics.py` (identical formulas).

Shapes: Q captions, V videos, C most captions of a video.
"""

from __future__ import annotations

import numpy as np

from src.errors import UserError

ROWS = 1024  # captions ranked at a time

Metrics = dict[str, float | list[int]]


def single_sentence(scores: np.ndarray) -> Metrics:
    """Metrics of a square matrix, rows are queries, the diagonal is true.

    Every position of the sorted row that holds the diagonal's value is an entry of its own, so tied queries
    count several times; a NaN or -inf diagonal drops the query. Ranks `cols` count from 0.

    Args:
        scores: (Q, Q); transpose it for the other direction.
    """
    ordered = -np.sort(-scores, axis=1)
    true = np.diag(scores)[:, None]
    _, cols = np.nonzero((ordered == true) & np.isfinite(true))
    return {
        **_recalls(cols, 100.0 / len(cols)),
        "MR": float(np.median(cols)) + 1,
        "MedianR": float(np.median(cols)) + 1,
        "MeanR": float(np.mean(cols)) + 1,
        "cols": [int(col) for col in cols],
    }


def multi_sentence(scores: np.ndarray, captions_per_video: np.ndarray) -> tuple[Metrics, Metrics]:
    """Text-to-video and video-to-text metrics when a video has several captions.

    Text to video: each caption is a query; NaN or -inf true scores drop it; recalls are float32 and the median
    is the lower of the two middle ranks. Video to text: each video ranks the groups of captions, a group scores
    as its best caption.

    Deviates: ties of text to video take the order of the videos, where upstream leaves it undefined.

    Args:
        scores: (Q, V), captions grouped by video in the order of the columns.
        captions_per_video: int (V,).
    """
    owner = np.repeat(np.arange(len(captions_per_video)), captions_per_video)
    kept = np.isfinite(scores[np.arange(len(owner)), owner])
    ranks = np.concatenate([_stable_ranks(scores[rows], owner[rows]) for rows in _blocks(kept)] or [owner[:0]])
    to_video: Metrics = {
        **{key: float(np.float32(value)) for key, value in _recalls(ranks, 100.0 / len(ranks)).items()},
        "MedianR": float(np.sort(ranks)[(len(ranks) - 1) // 2]) + 1,
        "MeanR": float(np.mean(ranks)) + 1,
        "Std_Rank": float(np.std(ranks)),
    }
    to_video["MR"] = to_video["MedianR"]
    return to_video, single_sentence(group_scores(scores, captions_per_video))


def _blocks(kept: np.ndarray) -> list[np.ndarray]:
    rows = np.flatnonzero(kept)
    return np.array_split(rows, -(-len(rows) // ROWS)) if len(rows) else []


def _stable_ranks(scores: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Rank of the own column from 0, ties in the order of the columns."""
    # torch.argsort(descending=True), which upstream uses, puts a competitor's NaN first.
    finite = np.where(np.isnan(scores), np.inf, scores)
    own = finite[np.arange(len(owner)), owner][:, None]
    earlier = np.arange(scores.shape[1]) < owner[:, None]
    return np.asarray(np.count_nonzero((finite > own) | ((finite == own) & earlier), axis=1))


def published_rules(scores: np.ndarray, video_of_caption: np.ndarray) -> tuple[Metrics, Metrics]:
    """Both directions as CLIP4Clip, CLIP2Video and InternVideo print them: `single_sentence` or `multi_sentence`.

    Args:
        scores: (Q, V).
        video_of_caption: int (Q,) column of each caption's own video.

    Raises:
        UserError: a video has no caption, for which the published code has no rule.
    """
    counts = np.bincount(video_of_caption, minlength=scores.shape[1])
    check_captions(counts)
    order = np.argsort(video_of_caption, kind="stable")
    ordered = scores[order] if (order != np.arange(len(order))).any() else scores
    if (counts == 1).all():
        return single_sentence(ordered), single_sentence(ordered.T)
    return multi_sentence(ordered, counts)


def check_captions(counts: np.ndarray) -> None:
    """Raise a UserError where a video has none of these numbers of captions."""
    if not counts.all():
        raise UserError(
            f"compatibility=clip4clip: found {np.count_nonzero(counts == 0)} videos without a caption, expected at "
            "least one of each video, for the published code knows no distractors; drop compatibility"
        )


def group_scores(scores: np.ndarray, captions_per_video: np.ndarray) -> np.ndarray:
    """(V, V): row = video as query, column = caption group by its best caption; NaN counts as -inf."""
    starts = np.concatenate([[0], np.cumsum(captions_per_video)[:-1]])
    finite = np.where(np.isnan(scores), -np.inf, scores)
    return np.asarray(np.maximum.reduceat(finite, starts, axis=0).T)


def _recalls(ranks: np.ndarray, unit: float) -> dict[str, float]:
    return {f"R{k}": float(np.count_nonzero(ranks < k) * unit) for k in (1, 5, 10)}
