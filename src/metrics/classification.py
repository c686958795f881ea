"""Retrieval as classification: the queries are labels, a video has any number of them, and ranks its own.

Each positive label of a video is a query of its own: its rank among all labels, less the video's positive labels that
stand before it, so that positives do not compete. The other direction is the mean average precision of the labels,
each of which ranks all videos.

Shapes: L labels, V videos, P pairs of a video and one of its labels, M labels that some video has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from src.errors import UserError
from src.metrics.result import RECALLS


@dataclass(frozen=True)
class ClassificationResult:
    """Metrics, and the ranks they come from.

    Attributes:
        metrics: R1, R5, R10, R50, GeoMean in percent, MdR and MnR counted from 1, over all pairs; mAP in percent over
            the labels that some video has.
        ranks_P: float64, counted from 1; halves where labels tie.
        videos_P, labels_P: int64, whose ranks these are.
        precision_M: float64, average precision of each label that some video has.
        labels_M: int64, which labels these are.
        without_label: videos that have none and are no queries.
        unused_labels: labels that no video has; they compete, but have no average precision.
    """

    metrics: dict[str, float]
    ranks_P: np.ndarray
    videos_P: np.ndarray
    labels_P: np.ndarray
    precision_M: np.ndarray
    labels_M: np.ndarray
    without_label: int
    unused_labels: int


def classify(scores_LV: np.ndarray, positive_LV: np.ndarray, *, upstream_order: bool = False) -> ClassificationResult:
    """Rank the labels of each video, and the videos of each label.

    Args:
        scores_LV: (L, V) scores; higher is better.
        positive_LV: bool (L, V), whether the video has the label.
        upstream_order: subtract the positive labels that stand before in the *list of labels*, as the published code
            has it, in place of those that *score* higher. A rank may then be 0 or less, which is not R@1.

    Source: collaborative-experts @ 7eb3b9d, `model/metric.py`, retrieval_as_classification.
    Deviates: positives that score higher are subtracted, unless `upstream_order`.

    Raises:
        UserError: shapes differ, a score is NaN, or no video has a label.
    """
    if scores_LV.shape != positive_LV.shape or scores_LV.ndim != 2:
        raise UserError(f"found scores {scores_LV.shape} and labels {positive_LV.shape}, expected two equal matrices")
    if np.isnan(scores_LV).any():
        raise UserError(f"found {int(np.isnan(scores_LV).sum())} NaN among the scores, expected finite numbers")
    if not positive_LV.any():
        raise UserError("found no video with a label, expected at least one; check the list of labels")
    videos_P, labels_P = np.nonzero(positive_LV.T)
    pieces = [
        _ranks_of_video(scores_LV[:, v], np.flatnonzero(positive_LV[:, v]), upstream_order) for v in np.unique(videos_P)
    ]
    ranks_P = np.concatenate(pieces)
    labels_M = np.flatnonzero(positive_LV.any(1))
    precision_M = np.array([average_precision(scores_LV[label], positive_LV[label]) for label in labels_M])
    recalls = {f"R{k}": 100 * float(np.mean(ranks_P == 1 if k == 1 else ranks_P < k + 1)) for k in RECALLS}
    metrics = {
        **recalls,
        "MdR": float(np.median(ranks_P)),
        "MnR": float(np.mean(ranks_P)),
        "mAP": 100 * float(precision_M.mean()),
        "GeoMean": (recalls["R1"] * recalls["R5"] * recalls["R10"]) ** (1 / 3),
    }
    without, unused = int((~positive_LV.any(0)).sum()), int((~positive_LV.any(1)).sum())
    return ClassificationResult(metrics, ranks_P, videos_P, labels_P, precision_M, labels_M, without, unused)


def _ranks_of_video(scores_L: np.ndarray, positives: np.ndarray, upstream_order: bool) -> np.ndarray:
    """Ranks, from 1, of the positive labels of one video, in the order of the labels; ties are averaged."""
    own = scores_L[positives, None]
    if upstream_order:
        above, level = (scores_L > own).sum(1), (scores_L == own).sum(1) - 1
        return 1 + above + level / 2 - np.arange(len(positives))
    others = np.delete(scores_L, positives)
    return np.asarray(1 + (others > own).sum(1) + (others == own).sum(1) / 2)


def average_precision(scores_V: np.ndarray, positive_V: np.ndarray) -> float:
    """Mean over the positives of one label of the precision of the list that ends there; ties keep their order."""
    hits = positive_V[np.argsort(-scores_V, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())
