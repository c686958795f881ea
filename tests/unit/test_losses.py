"""The contrastive loss on one process; tests/ddp/test_gather.py has the rest."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.losses.gather import gather_embedding
from src.losses.infonce import SymmetricInfoNCE


def embeddings(video_ids: list[int]) -> tuple[TextEmbedding, VideoEmbedding]:
    torch.manual_seed(0)
    ids = torch.tensor(video_ids)
    text = TextEmbedding(ids=torch.arange(len(ids)), parts={"x": torch.randn(len(ids), 5)}, video_ids=ids)
    return text, VideoEmbedding(ids=ids, parts={"x": torch.randn(len(ids), 5)})


def dot(text: TextEmbedding, video: VideoEmbedding) -> Tensor:
    return text.parts["x"] @ video.parts["x"].T


def test_equals_two_cross_entropies() -> None:
    text, video = embeddings([3, 1, 2])
    s_TV, target = dot(text, video), torch.arange(3)
    expected = (F.cross_entropy(s_TV, target) + F.cross_entropy(s_TV.T, target)) / 2
    torch.testing.assert_close(SymmetricInfoNCE()(dot, text, video), expected)
    torch.testing.assert_close(SymmetricInfoNCE().local(dot, text, video), expected)


def test_other_captions_of_the_same_video_leave_the_denominator() -> None:
    text, video = embeddings([4, 4, 9])
    s_TV = dot(text, video)
    rows = [
        s_TV[0, 0] - torch.logsumexp(s_TV[0, [0, 2]], 0),
        s_TV[1, 1] - torch.logsumexp(s_TV[1, [1, 2]], 0),
        s_TV[2, 2] - torch.logsumexp(s_TV[2], 0),
    ]
    columns = [
        s_TV[0, 0] - torch.logsumexp(s_TV[[0, 2], 0], 0),
        s_TV[1, 1] - torch.logsumexp(s_TV[[1, 2], 1], 0),
        s_TV[2, 2] - torch.logsumexp(s_TV[:, 2], 0),
    ]
    expected = -torch.stack(rows + columns).mean()
    torch.testing.assert_close(SymmetricInfoNCE(same_video_positives=True)(dot, text, video), expected)


def test_same_video_option_changes_nothing_without_duplicates() -> None:
    text, video = embeddings([4, 5, 9])
    with_option = SymmetricInfoNCE(same_video_positives=True)(dot, text, video)
    assert torch.equal(with_option, SymmetricInfoNCE()(dot, text, video))


def test_each_scores_share_one_batch() -> None:
    text, video = embeddings([0, 1])
    losses = SymmetricInfoNCE().each({"a": dot, "b": lambda t, v: 2 * dot(t, v)}, text, video)
    torch.testing.assert_close(losses["a"], SymmetricInfoNCE()(dot, text, video))
    assert losses["b"] != losses["a"]


def test_one_pair_has_no_negative() -> None:
    text, video = embeddings([0])
    assert SymmetricInfoNCE()(dot, text, video).item() == 0


def test_unequal_counts_are_refused() -> None:
    text, video = embeddings([0, 1])
    with pytest.raises(UserError, match="2 captions and 1 videos"):
        SymmetricInfoNCE()(dot, text, video[:1])


def test_bfloat16_scores_are_summed_in_float32() -> None:
    text, video = embeddings([0, 1])
    loss = SymmetricInfoNCE()(lambda t, v: dot(t, v).bfloat16(), text, video)
    assert loss.dtype is torch.float32


def test_gather_is_the_identity_in_one_process() -> None:
    text, _ = embeddings([0, 1])
    assert gather_embedding(text) is text
