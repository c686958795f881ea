"""Results of one evaluation by domain: the queries of a domain, each ranked in the whole gallery.

Numbers of two domains are comparable with each other and with the whole, since all queries face the same competitors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from src.errors import UserError
from src.metrics.result import RetrievalResult, rank_metrics

OTHERS = "(none)"


def domain_report(result: RetrievalResult, domains_V: Sequence[str | None]) -> dict[str, dict[str, Any]]:
    """Metrics of each domain.

    Args:
        result: of the whole part.
        domains_V: domain of each video id (position in the part); None for a video without one.

    Returns:
        domain -> `num_videos`, `num_captions`, and `t2v` and `v2t` with R1, R5, R10, R50, GeoMean in percent, MdR and
        MnR counted from 1. `num_videos` are those with captions: the queries of video to text. Domains in the order
        of the videos; those without query are absent. Videos without domain are under "(none)".

    Raises:
        UserError: the result names videos that the list does not.
    """
    most = int(result.video_ids.max()) + 1 if len(result.video_ids) else 0
    if most > len(domains_V):
        raise UserError(f"domain report: found domains of {len(domains_V)} videos, expected at least {most}")
    of_video = np.array([OTHERS if domain is None else domain for domain in domains_V], dtype=object)
    of_caption, of_query = of_video[result.caption_videos.numpy()], of_video[result.v2t_ids.numpy()]
    t2v_ranks, v2t_ranks = result.t2v_ranks.numpy(), result.v2t_ranks.numpy()
    report: dict[str, dict[str, Any]] = {}
    for domain in dict.fromkeys(of_video.tolist()):
        captions, videos = of_caption == domain, of_query == domain
        if not captions.any():
            continue
        report[domain] = {
            "num_videos": int(videos.sum()),
            "num_captions": int(captions.sum()),
            "t2v": _metrics(t2v_ranks[captions]),
            "v2t": _metrics(v2t_ranks[videos]),
        }
    return report


def _metrics(ranks: np.ndarray) -> dict[str, float]:
    # Average precision of a video with several captions is not among the ranks.
    metrics = rank_metrics(ranks, np.zeros(1))
    return {key: value for key, value in metrics.items() if key != "mAP"}
