"""The evaluation of the published CLIP4Clip and CLIP2Video code, to compare with published numbers only.

New results use `src.metrics.retrieval`; its video-to-text protocol "groups" is the multi-sentence one here
without the quirks (a tied query counted several times, an undefined order of ties).

Source: CLIP2Video `evaluation/metrics.py`, CLIP4Clip `metrics.py` (identical formulas).

Shapes: Q captions, V videos, C most captions of a video.
"""

from __future__ import annotations

import numpy as np

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
    # torch.argsort(descending=True), which upstream uses, puts a competitor's NaN first.
    order = np.argsort(-np.where(np.isnan(scores), np.inf, scores), axis=1, kind="stable")
    ranks = np.nonzero(order[kept] == owner[kept, None])[1]
    to_video: Metrics = {
        **{key: float(np.float32(value)) for key, value in _recalls(ranks, 100.0 / len(ranks)).items()},
        "MedianR": float(np.sort(ranks)[(len(ranks) - 1) // 2]) + 1,
        "MeanR": float(np.mean(ranks)) + 1,
        "Std_Rank": float(np.std(ranks)),
    }
    to_video["MR"] = to_video["MedianR"]
    return to_video, single_sentence(group_scores(scores, captions_per_video))


def group_scores(scores: np.ndarray, captions_per_video: np.ndarray) -> np.ndarray:
    """(V, V): row = video as query, column = caption group by its best caption; NaN counts as -inf."""
    starts = np.concatenate([[0], np.cumsum(captions_per_video)[:-1]])
    finite = np.where(np.isnan(scores), -np.inf, scores)
    return np.asarray(np.maximum.reduceat(finite, starts, axis=0).T)


def _recalls(ranks: np.ndarray, unit: float) -> dict[str, float]:
    return {f"R{k}": float(np.count_nonzero(ranks < k) * unit) for k in (1, 5, 10)}
