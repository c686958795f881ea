"""The outcome of an evaluation: ranks of both directions and the metrics computed from them.

Shapes: Q captions, V videos, W videos with captions, K kept items.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from src.errors import UserError
from src.metrics.ranks import RankCounts

log = logging.getLogger(__name__)
_warned: set[tuple[str, str]] = set()

Ties = Literal["optimistic", "average", "pessimistic"]
VideoToText = Literal["captions", "groups"]
RECALLS = (1, 5, 10, 50)
TIE_WEIGHT: dict[Ties, float] = {"optimistic": 0.0, "average": 0.5, "pessimistic": 1.0}


@dataclass(frozen=True)
class RetrievalResult:
    """Metrics, and the ranks they come from.

    Attributes:
        t2v, v2t: R1, R5, R10, R50, mAP, GeoMean in percent; MdR, MnR count from 1.
        ties: the tie rule.
        caption_ids, caption_videos: int64 (Q,) id of each caption and of its video, ascending by id.
        video_ids: int64 (V,) the gallery, ascending.
        v2t_ids: int64 (W,) the videos that have captions: the queries of video to text.
        t2v_ranks, v2t_ranks: (Q,) and (W,), int64, or float64 under the average rule.
        t2v_tied, v2t_tied: bool (Q,) and (W,), whether a competitor ties with the true item.
        own_scores: float64 (Q,) score of each caption with its own video.
        t2v_topk: video ids (Q, K), best first, and their scores; id -1 = none.
        v2t_topk: caption ids (W, K), best first, and their scores.
        excluded_captions: ids of captions left out because their video has no embedding.
    """

    t2v: dict[str, float]
    v2t: dict[str, float]
    ties: Ties
    v2t_protocol: VideoToText
    caption_ids: Tensor
    caption_videos: Tensor
    video_ids: Tensor
    v2t_ids: Tensor
    t2v_ranks: Tensor
    v2t_ranks: Tensor
    t2v_tied: Tensor
    v2t_tied: Tensor
    own_scores: Tensor
    t2v_topk: tuple[Tensor, Tensor]
    v2t_topk: tuple[Tensor, Tensor]
    excluded_captions: tuple[int, ...] = ()

    @property
    def sum_r(self) -> float:
        """Sum of the six recalls R@1, R@5, R@10 of both directions."""
        return sum(side[key] for side in (self.t2v, self.v2t) for key in ("R1", "R5", "R10"))

    @property
    def sum_ap(self) -> float:
        """Sum of the mean average precision of both directions."""
        return self.t2v["mAP"] + self.v2t["mAP"]

    @property
    def tie_fraction(self) -> dict[str, float]:
        """Share of the queries of each direction whose true item ties with a competitor."""
        return {"t2v": float(self.t2v_tied.double().mean()), "v2t": float(self.v2t_tied.double().mean())}

    def to_json(self) -> dict[str, object]:
        """The metric part of `metrics.json`."""
        return {"t2v": dict(self.t2v), "v2t": dict(self.v2t), "SumR": self.sum_r, "SumAP": self.sum_ap}

    def scalars(self, prefix: str) -> dict[str, float]:
        """Flat names for loggers: `<prefix>/t2v/R1`, …, `<prefix>/SumR`, `<prefix>/SumAP`."""
        sides = {
            f"{prefix}/{name}/{key}": value for name in ("t2v", "v2t") for key, value in getattr(self, name).items()
        }
        return {**sides, f"{prefix}/SumR": self.sum_r, f"{prefix}/SumAP": self.sum_ap}


def within(ranks: np.ndarray, k: int) -> np.ndarray:
    """Which ranks (counted from 1) count for recall at k.

    Whole ranks leave no choice; the average rule has halves. Those between k and k + 1 count for k > 1 but not for
    k = 1, since that is how results with averaged ties were published.

    Source: collaborative-experts @ 7eb3b9d, `model/metric.py`: rank 0 for R@1, below k for the others, from 0.
    """
    return ranks <= 1 if k == 1 else ranks < k + 1


def rank_metrics(ranks: np.ndarray, average_precision: np.ndarray) -> dict[str, float]:
    """The metrics of one direction from ranks (counted from 1) and the average precision of each query."""
    recalls = {f"R{k}": 100 * float(np.count_nonzero(within(ranks, k))) / len(ranks) for k in RECALLS}
    return {
        **recalls,
        "MdR": float(np.median(ranks)),
        "MnR": float(np.mean(ranks)),
        "mAP": 100 * float(np.mean(average_precision)),
        "GeoMean": (recalls["R1"] * recalls["R5"] * recalls["R10"]) ** (1 / 3),
    }


def make_result(
    counts: RankCounts,
    ids: tuple[np.ndarray, np.ndarray, np.ndarray],
    dropped: tuple[int, ...],
    ties: Ties,
    v2t: VideoToText,
) -> RetrievalResult:
    """Ranks and metrics from counts; `ids` = id and video id of each caption, and the gallery's ids."""
    caption_ids, caption_videos, video_ids = ids
    _refuse_nan(counts, caption_ids, video_ids)
    t2v_ranks = _ranks(1 + counts.greater_Q, counts.equal_Q, ties)
    queries_W, v2t_ranks, tied_W, precision_W = _video_queries(
        counts, np.searchsorted(video_ids, caption_videos), ties, v2t
    )
    result = RetrievalResult(
        t2v=rank_metrics(t2v_ranks, 1 / t2v_ranks),
        v2t=rank_metrics(v2t_ranks, precision_W),
        ties=ties,
        v2t_protocol=v2t,
        caption_ids=torch.from_numpy(caption_ids),
        caption_videos=torch.from_numpy(caption_videos),
        video_ids=torch.from_numpy(video_ids),
        v2t_ids=torch.from_numpy(video_ids[queries_W]),
        t2v_ranks=torch.from_numpy(t2v_ranks),
        v2t_ranks=torch.from_numpy(v2t_ranks),
        t2v_tied=counts.equal_Q.cpu() > 0,
        v2t_tied=torch.from_numpy(tied_W),
        own_scores=counts.own_Q.cpu(),
        t2v_topk=_named(counts.videos_QK, counts.video_scores_QK, video_ids),
        v2t_topk=_named(counts.captions_VK[queries_W], counts.caption_scores_VK[queries_W], caption_ids),
        excluded_captions=dropped,
    )
    for side, fraction in result.tie_fraction.items():
        if fraction > 0.01:
            _warn_of_ties(side, ties, f"{100 * fraction:.1f}")
    return result


def _warn_of_ties(side: str, ties: Ties, percent: str) -> None:
    if (side, ties) not in _warned:  # once, not after every epoch
        _warned.add((side, ties))
        log.warning(
            "%s: %s %% of the queries tie with their true item; the '%s' rule decides these ranks, and a "
            "collapsed model looks perfect under 'optimistic': compare with ties=pessimistic",
            side,
            percent,
            ties,
        )


def _ranks(above: Tensor, level: Tensor, ties: Ties) -> np.ndarray:
    better, equal = above.cpu().numpy(), level.cpu().numpy()
    return better + equal / 2 if ties == "average" else better + int(TIE_WEIGHT[ties]) * equal


def _video_queries(
    counts: RankCounts, column_Q: np.ndarray, ties: Ties, v2t: VideoToText
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Positions, ranks, ties and average precision of the videos that have captions.

    The i-th best of a video's own captions has rank i + competitors above it, so its precision is i / rank. The
    average rule ranks the video at the mean position of all captions that score like its best one, own ones included.
    """
    order = np.lexsort((-counts.own_Q.cpu().numpy(), column_Q))
    queries_W, first_W, size_W = np.unique(column_Q[order], return_index=True, return_counts=True)
    if v2t == "groups":
        ranks = _ranks(1 + counts.group_greater_V[queries_W], counts.group_equal_V[queries_W], ties)
        return queries_W, ranks, counts.group_equal_V[queries_W].cpu().numpy() > 0, 1 / ranks
    place = 1 + np.arange(len(order)) - np.repeat(first_W, size_W)
    ranks = _ranks(torch.from_numpy(place) + counts.above_Q.cpu()[order], counts.level_Q.cpu()[order], ties)
    precision_W = np.add.reduceat(place / ranks, first_W) / size_W
    ranks_W = ranks[first_W]
    if ties == "average":
        own = counts.own_Q.cpu().numpy()[order]
        ranks_W = ranks_W + (np.add.reduceat(own == np.repeat(own[first_W], size_W), first_W) - 1) / 2
    return queries_W, ranks_W, counts.level_Q.cpu().numpy()[order][first_W] > 0, precision_W


def _named(items: Tensor, scores: Tensor, ids: np.ndarray) -> tuple[Tensor, Tensor]:
    positions = items.cpu().numpy()
    return torch.from_numpy(np.where(positions < 0, -1, ids[positions])), scores.cpu()


def _refuse_nan(counts: RankCounts, caption_ids: np.ndarray, video_ids: np.ndarray) -> None:
    nan_Q, nan_V = counts.nan_Q.cpu().numpy(), counts.nan_V.cpu().numpy()
    if not nan_Q.any():
        return
    captions, videos = caption_ids[nan_Q == len(video_ids)], video_ids[nan_V == len(caption_ids)]
    if not len(captions) and not len(videos):
        captions, videos = caption_ids[nan_Q > 0], video_ids[nan_V > 0]
    found = " and ".join(
        f"{len(ids)} {kind} (ids {', '.join(map(str, ids[:5]))}{', …' if len(ids) > 5 else ''})"
        for kind, ids in (("captions", captions), ("videos", videos))
        if len(ids)
    )
    raise UserError(
        f"found NaN in {int(nan_Q.sum())} similarity scores of {found}, expected finite numbers; "
        "look for a diverged checkpoint (NaN weights) or empty features of these items"
    )
