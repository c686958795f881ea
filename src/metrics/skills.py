"""Which skill a model has: results per tag, and how often it prefers a clip to its minimal-pair partner.

R@1 mixes all skills: a model that recognises the context of every clip but not the skill scores 50 % within each
pair. Pair accuracy isolates the skill: chance is 50 %, whatever else the model can see.

Legend: Q captions, V videos.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError

Similarity = Callable[[TextEmbedding, VideoEmbedding], Tensor]


def _first_rows(ids: Tensor) -> dict[int, int]:
    """id -> first row that holds it; later duplicates (padded samplers) are ignored."""
    rows: dict[int, int] = {}
    for row, item in enumerate(ids.tolist()):
        rows.setdefault(item, row)
    return rows


def pair_scores(
    text: TextEmbedding, video: VideoEmbedding, similarity: Similarity, groups_V: Tensor
) -> dict[int, float]:
    """How often each caption prefers its own video to the other videos of its group.

    Only scores within groups are computed, never the whole matrix.

    Args:
        text: encoded captions.
        video: encoded videos.
        similarity: scores s_QV of captions (rows) against videos (columns).
        groups_V: int64, group of each video id; -1 for a video without a group.

    Returns:
        Caption id -> fraction of partners that score lower than the own video, a tie counting one half.
        Captions without an encoded own video, without a group or without an encoded partner are absent.
    """
    members: dict[int, list[int]] = {}
    row_of_video = _first_rows(video.ids)
    for video_id in row_of_video:
        if (group := int(groups_V[video_id])) >= 0:
            members.setdefault(group, []).append(video_id)
    captions: dict[int, list[int]] = {}
    for row in _first_rows(text.ids).values():
        video_id = int(text.video_ids[row])
        if video_id in row_of_video and (group := int(groups_V[video_id])) >= 0:
            captions.setdefault(group, []).append(row)
    wins: dict[int, float] = {}
    for group, rows in captions.items():
        if len(members[group]) < 2:
            continue
        columns = [row_of_video[video_id] for video_id in members[group]]
        s_QV = similarity(text[torch.tensor(rows)], video[torch.tensor(columns)]).double().cpu()
        own_Q = torch.tensor([members[group].index(int(text.video_ids[row])) for row in rows])
        own_score_Q1 = s_QV.gather(1, own_Q[:, None])
        better_QV = (own_score_Q1 > s_QV).double() + 0.5 * (own_score_Q1 == s_QV)
        # The own video ties with itself: take this half out again.
        fraction_Q = (better_QV.sum(dim=1) - 0.5) / (len(columns) - 1)
        wins.update(zip(text.ids[rows].tolist(), fraction_Q.tolist(), strict=True))
    return wins


@torch.no_grad()
def skill_report(
    text: TextEmbedding,
    video: VideoEmbedding,
    similarity: Similarity,
    *,
    groups_V: Tensor,
    skills_V: Sequence[str | None],
    t2v_ranks: Tensor,
    caption_ids: Tensor,
) -> dict[str, dict[str, float]]:
    """Result of each skill of a tagged split part.

    Args:
        text: encoded captions; duplicates by id are ignored.
        video: encoded videos; duplicates by id are ignored.
        similarity: scores of captions (rows) against videos (columns).
        groups_V: int64, group of each video id (position in the part); -1 for none.
        skills_V: skill of each video id; None for none.
        t2v_ranks: 1-based rank of the own video of each caption in the whole gallery.
        caption_ids: caption id of each entry of `t2v_ranks`.

    Returns:
        skill -> `num_videos`, `num_captions`, `R1` (percent, whole gallery) and `pair_accuracy` (percent of
        captions that prefer their own video to its pair partner, ties counting half; absent without pairs).

    Raises:
        UserError: the lists do not belong together.
    """
    if len(groups_V) != len(skills_V) or len(t2v_ranks) != len(caption_ids):
        raise UserError(
            f"skill report: {len(groups_V)} groups for {len(skills_V)} skills and {len(t2v_ranks)} ranks for "
            f"{len(caption_ids)} captions, expected equal numbers; pass lists of one split part"
        )
    wins = pair_scores(text, video, similarity, groups_V)
    rank_of = dict(zip(caption_ids.tolist(), t2v_ranks.tolist(), strict=True))
    video_of = dict(zip(text.ids.tolist(), text.video_ids.tolist(), strict=True))
    report: dict[str, dict[str, float]] = {}
    for skill in dict.fromkeys(skill for skill in skills_V if skill is not None):
        captions = [caption for caption in rank_of if skills_V[video_of[caption]] == skill]
        if not captions:
            continue
        row = {
            "num_videos": len({video_of[caption] for caption in captions}),
            "num_captions": len(captions),
            "R1": 100 * sum(rank_of[caption] <= 1 for caption in captions) / len(captions),
        }
        judged = [wins[caption] for caption in captions if caption in wins]
        if judged:
            row["pair_accuracy"] = 100 * sum(judged) / len(judged)
        report[skill] = row
    return report
