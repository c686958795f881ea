"""Result per skill, on matrices small enough to check by eye."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.metrics.skills import pair_scores, skill_report


def embeddings(caption_videos: list[int], num_videos: int) -> tuple[TextEmbedding, VideoEmbedding]:
    """Embeddings that only carry their ids, so that a table can serve as the similarity."""
    captions = torch.arange(len(caption_videos))
    text = TextEmbedding(ids=captions, parts={"row": captions.float()}, video_ids=torch.tensor(caption_videos))
    videos = torch.arange(num_videos)
    return text, VideoEmbedding(ids=videos, parts={"column": videos.float()})


def look_up(
    s_QV: Tensor, seen: list[tuple[int, int]] | None = None
) -> Callable[[TextEmbedding, VideoEmbedding], Tensor]:
    def similarity(text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        if seen is not None:
            seen.append((len(text), len(video)))
        return s_QV[text.parts["row"].long()][:, video.parts["column"].long()]

    return similarity


# Videos 0, 1 are a pair, 2, 3 are a pair, 4 stands alone. One caption each, and a second one of video 0.
CAPTION_VIDEOS = [0, 1, 2, 3, 4, 0]
GROUPS = torch.tensor([7, 7, 9, 9, -1])
SKILLS = ["order", "order", "sound", "sound", None]
SCORES = torch.tensor(
    [
        [5.0, 4.0, 9.0, 0.0, 0.0],  # prefers its own to the partner, although a stranger is best
        [3.0, 3.0, 0.0, 0.0, 0.0],  # a tie: one half
        [0.0, 0.0, 2.0, 1.0, 0.0],
        [0.0, 0.0, 4.0, 3.0, 0.0],  # prefers the partner
        [0.0, 0.0, 0.0, 0.0, 1.0],
        [1.0, 2.0, 0.0, 0.0, 0.0],  # prefers the partner
    ]
)
RANKS = torch.tensor([2, 1, 1, 2, 1, 2])


def test_hand_checked_report() -> None:
    text, video = embeddings(CAPTION_VIDEOS, 5)
    report = skill_report(
        text, video, look_up(SCORES), groups_V=GROUPS, skills_V=SKILLS, t2v_ranks=RANKS, caption_ids=text.ids
    )
    assert report == {
        "order": {"num_videos": 2, "num_captions": 3, "R1": pytest.approx(100 / 3), "pair_accuracy": pytest.approx(50)},
        "sound": {"num_videos": 2, "num_captions": 2, "R1": 50.0, "pair_accuracy": 50.0},
    }


def test_only_scores_within_groups_are_computed() -> None:
    text, video = embeddings(CAPTION_VIDEOS, 5)
    seen: list[tuple[int, int]] = []
    wins = pair_scores(text, video, look_up(SCORES, seen), GROUPS)
    assert sorted(seen) == [(2, 2), (3, 2)]
    assert wins == {0: 1.0, 1: 0.5, 2: 1.0, 3: 0.0, 5: 0.0}


def test_larger_groups_count_the_fraction_of_partners() -> None:
    text, video = embeddings([0], 3)
    wins = pair_scores(text, video, look_up(torch.tensor([[2.0, 1.0, 3.0]])), torch.zeros(3, dtype=torch.int64))
    assert wins == {0: 0.5}


def test_duplicates_and_any_order_change_nothing() -> None:
    text, video = embeddings(CAPTION_VIDEOS, 5)
    expected = pair_scores(text, video, look_up(SCORES), GROUPS)
    shuffled = pair_scores(
        text[torch.tensor([5, 3, 1, 0, 2, 4, 0, 0])], video[torch.tensor([4, 3, 2, 1, 0, 1])], look_up(SCORES), GROUPS
    )
    assert shuffled == expected


def test_a_missing_partner_leaves_no_pair_accuracy() -> None:
    """Video 3 could not be read: its captions are gone, and caption 2 has nobody to be compared with."""
    text, video = embeddings(CAPTION_VIDEOS, 5)
    kept = torch.tensor([0, 1, 2, 4, 5])
    report = skill_report(
        text,
        video[torch.tensor([0, 1, 2, 4])],
        look_up(SCORES),
        groups_V=GROUPS,
        skills_V=SKILLS,
        t2v_ranks=RANKS[kept],
        caption_ids=text.ids[kept],
    )
    assert report["sound"] == {"num_videos": 1, "num_captions": 1, "R1": 100.0}
    assert report["order"]["num_captions"] == 3


def test_no_tags_no_report() -> None:
    text, video = embeddings([0, 1], 2)
    report = skill_report(
        text,
        video,
        look_up(torch.eye(2)),
        groups_V=torch.tensor([-1, -1]),
        skills_V=[None, None],
        t2v_ranks=torch.ones(2),
        caption_ids=text.ids,
    )
    assert report == {}


def test_lists_of_different_parts_are_refused() -> None:
    text, video = embeddings([0, 1], 2)
    with pytest.raises(UserError, match="expected equal numbers"):
        skill_report(
            text,
            video,
            look_up(torch.eye(2)),
            groups_V=torch.tensor([0, 0, 0]),
            skills_V=["order", "order"],
            t2v_ranks=torch.ones(2),
            caption_ids=text.ids,
        )
