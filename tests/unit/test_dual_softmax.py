"""The dual softmax loss against loops; tests/ddp/test_token_heads.py has several processes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.losses.dual_softmax import DualSoftmaxLoss
from src.losses.infonce import SymmetricInfoNCE
from src.models.clip4clip import Clip4Clip
from tests.tiny_clip import tiny_arch

COUNT = 4


def pair(video_ids: list[int]) -> tuple[TextEmbedding, VideoEmbedding]:
    ids = torch.tensor(video_ids)
    return (
        TextEmbedding(ids=torch.arange(len(ids)), parts={}, video_ids=ids),
        VideoEmbedding(ids=ids, parts={}),
    )


def scores() -> Tensor:
    return 3 * torch.randn(COUNT, COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def one_direction(s: list[list[float]], temperature: float, out: set[tuple[int, int]]) -> float:
    """Mean cross-entropy of the rows after the dual softmax; pairs in `out` count nowhere."""
    total = 0.0
    for q in range(COUNT):
        dual = {}
        for i in range(COUNT):
            if (q, i) not in out:
                column = sum(math.exp(s[other][i] / temperature) for other in range(COUNT) if (other, i) not in out)
                dual[i] = s[q][i] * COUNT * math.exp(s[q][i] / temperature) / column
        total += math.log(sum(math.exp(value) for value in dual.values())) - dual[q]
    return total / COUNT


@pytest.mark.parametrize("temperature", [1.0, 50.0])
@pytest.mark.parametrize(
    ("video_ids", "same_video", "out"),
    [([0, 1, 2, 3], False, set()), ([0, 1, 0, 3], False, set()), ([0, 1, 0, 3], True, {(0, 2), (2, 0)})],
)
def test_equals_loops(temperature: float, video_ids: list[int], same_video: bool, out: set[tuple[int, int]]) -> None:
    s_NN = scores()
    loss = DualSoftmaxLoss(same_video_positives=same_video, temperature=temperature)
    found = loss(lambda text, video: s_NN, *pair(video_ids))
    rows, columns = (one_direction(side.tolist(), temperature, out) for side in (s_NN, s_NN.T))
    assert float(found) == pytest.approx((rows + columns) / 2, rel=1e-12)


def test_gradients_stay_finite_where_pairs_are_left_out() -> None:
    s_NN = scores().requires_grad_()
    loss = DualSoftmaxLoss(same_video_positives=True, temperature=2.0)
    loss(lambda text, video: s_NN, *pair([0, 1, 0, 3])).backward()
    assert s_NN.grad is not None
    assert torch.isfinite(s_NN.grad).all()
    assert s_NN.grad[0, 2] == 0


def test_a_huge_temperature_gives_the_plain_loss() -> None:
    """All queries then have the same share, 1/B, of every item."""
    s_NN = scores()
    loss = DualSoftmaxLoss(temperature=1e12)(lambda text, video: s_NN, *pair([0, 1, 2, 3]))
    torch.testing.assert_close(loss, SymmetricInfoNCE()(lambda text, video: s_NN, *pair([0, 1, 2, 3])))


def test_half_precision_is_summed_in_float32() -> None:
    loss = DualSoftmaxLoss()(lambda text, video: scores().bfloat16(), *pair([0, 1, 2, 3]))
    assert loss.dtype is torch.float32


def test_temperature_is_positive() -> None:
    with pytest.raises(UserError, match="dsl_temperature=0"):
        DualSoftmaxLoss(temperature=0)


def test_models_of_the_clip_family_take_it_as_an_option() -> None:
    options = {"arch": tiny_arch(), "num_frames": 3, "max_words": 8}
    contrastive = Clip4Clip(**options, loss="dsl", dsl_temperature=7.0, gather="upstream").contrastive
    assert isinstance(contrastive, DualSoftmaxLoss)
    assert (contrastive.temperature, contrastive.gather) == (7.0, "upstream")
    assert type(Clip4Clip(**options).contrastive) is SymmetricInfoNCE
