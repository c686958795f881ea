"""Scores of two spaces over a gallery, and predicted concepts."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.metrics.retrieval import evaluate
from src.models import concept_space
from src.models.concept_space import CONCEPTS, LATENT, hybrid_spaces, space_scorer, top_concepts
from src.models.measures import jaccard_tiled


def items(captions: int = 30, videos: int = 12) -> tuple[TextEmbedding, VideoEmbedding]:
    """Ids with gaps, in the order of an evaluation that lost some items."""
    generator = torch.Generator().manual_seed(1)

    def parts(count: int) -> dict[str, Tensor]:
        return {
            LATENT: normalize(torch.randn(count, 7, generator=generator), dim=1),
            CONCEPTS: torch.rand(count, 5, generator=generator),
        }

    video_ids = torch.arange(videos) * 3 + 1
    owners = video_ids[torch.arange(captions) % videos]
    return (
        TextEmbedding(torch.arange(captions) * 2 + 5, parts(captions), video_ids=owners),
        VideoEmbedding(video_ids, parts(videos)),
    )


def expected(text: TextEmbedding, video: VideoEmbedding, alpha: float) -> Tensor:
    cosine = text.parts[LATENT] @ video.parts[LATENT].T
    jaccard = jaccard_tiled(text.parts[CONCEPTS], video.parts[CONCEPTS])
    ranged = [(s - s.min()) / (s.max() - s.min()) for s in (cosine, jaccard)]
    return alpha * ranged[0] + (1 - alpha) * ranged[1]


@pytest.mark.parametrize("kept", [0, 30 * 12 * 4, 1 << 20])  # no matrix, one, both
@pytest.mark.parametrize("alpha", [0.6, 0.8, 0.0])
def test_scores_are_those_of_the_whole_matrix(kept: int, alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concept_space, "ROWS", 8)
    monkeypatch.setattr(concept_space, "COLUMNS", 5)
    text, video = items()
    whole = expected(text, video, alpha)
    score = space_scorer(hybrid_spaces(alpha), text, video, kept_bytes=kept)
    torch.testing.assert_close(score(text, video), whole)
    torch.testing.assert_close(score(text[4:9], video[2:]), whole[4:9, 2:])
    rows, columns = torch.tensor([9, 2, 2, 29]), torch.tensor([11, 0])
    torch.testing.assert_close(score(text[rows], video[columns]), whole[rows][:, columns])
    assert score(text[:0], video).shape == (0, 12)


def test_items_of_a_bank_are_scored_on_the_scale_of_the_test() -> None:
    """Their ids mean other captions than those of the test."""
    text, video = items()
    others = TextEmbedding(text.ids + 1000, {k: p.flip(0) for k, p in text.parts.items()}, video_ids=text.video_ids)
    score = space_scorer(hybrid_spaces(0.6), text, video, kept_bytes=0)
    whole = expected(text, video, 0.6).flip(0)
    torch.testing.assert_close(score(others, video), whole)
    same_ids = TextEmbedding(text.ids, others.parts, video_ids=text.video_ids)
    torch.testing.assert_close(score(same_ids[3:9], video), whole[3:9])


def test_a_block_may_be_changed_by_its_reader() -> None:
    text, video = items()
    score = space_scorer(hybrid_spaces(0.6), text, video)
    score(text, video).zero_()
    torch.testing.assert_close(score(text, video), expected(text, video, 0.6))


def test_order_and_duplicates_of_the_evaluated_items_do_not_matter() -> None:
    text, video = items()
    mixed = torch.tensor([3, 1, 1, 0, 2])
    score = space_scorer(hybrid_spaces(0.6), text[mixed], video)
    torch.testing.assert_close(score(text[:4], video), expected(text[:4], video, 0.6))


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_a_constant_space_does_not_count(kept: int, caplog: pytest.LogCaptureFixture) -> None:
    text, video = items()
    for item in (text, video):
        item.parts[CONCEPTS].fill_(0.5)  # type: ignore[union-attr]
    with caplog.at_level(logging.WARNING):
        found = space_scorer(hybrid_spaces(0.6), text, video, kept_bytes=kept)(text, video)
    cosine = text.parts[LATENT] @ video.parts[LATENT].T
    torch.testing.assert_close(found, 0.6 * (cosine - cosine.min()) / (cosine.max() - cosine.min()))
    assert "the concepts space gives all pairs the same score" in caplog.text


def test_a_single_pair_scores_zero() -> None:
    text, video = items(1, 1)
    assert space_scorer(hybrid_spaces(0.6), text, video)(text, video).tolist() == [[0]]


def test_one_space_alone_scores_as_it_is() -> None:
    text, video = items()
    latent, concepts = hybrid_spaces(0.6)
    torch.testing.assert_close(
        space_scorer([latent], text, video)(text, video), text.parts[LATENT] @ video.parts[LATENT].T
    )
    torch.testing.assert_close(
        space_scorer([concepts], text, video)(text, video),
        jaccard_tiled(text.parts[CONCEPTS], video.parts[CONCEPTS]),
    )


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_ranks_are_those_of_the_matrix(kept: int) -> None:
    text, video = items(60, 20)
    result = evaluate(text, video, space_scorer(hybrid_spaces(0.6), text, video, kept_bytes=kept), block=16)
    whole = expected(text, video, 0.6)
    own = whole[torch.arange(60), torch.arange(60) % 20][:, None]
    assert result.t2v_ranks.tolist() == (1 + (whole > own).sum(1)).tolist()


def test_broken_items_are_named_and_others_keep_their_scores() -> None:
    text, video = items()
    text.parts[LATENT][3] = torch.nan
    score = space_scorer(hybrid_spaces(0.6), text, video)
    found = score(text, video)
    assert found[3].isnan().all()
    assert found.isnan().sum() == len(video)
    with pytest.raises(UserError, match=r"1 captions \(ids 11\)"):
        evaluate(text, video, score)


def test_most_probable_concepts_come_first() -> None:
    video = VideoEmbedding(torch.arange(2), {CONCEPTS: torch.tensor([[0.1, 0.7, 0.7, 0.2], [0.9, 0.0, 0.3, 1.0]])})
    numbers, probabilities = top_concepts(video, 3)
    assert numbers.tolist() == [[1, 2, 3], [3, 0, 2]]
    torch.testing.assert_close(probabilities, torch.tensor([[0.7, 0.7, 0.2], [1.0, 0.9, 0.3]]))
    assert top_concepts(video)[0].shape == (2, 4)
