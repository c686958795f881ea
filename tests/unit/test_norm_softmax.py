"""The summed InfoNCE at a fixed temperature; the golden case proves values, tests/ddp processes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.losses.infonce import SymmetricInfoNCE
from src.losses.norm_softmax import NormSoftmaxLoss


def value(s_TV: Tensor, loss: SymmetricInfoNCE, videos: Tensor | None = None) -> Tensor:
    ids = torch.arange(len(s_TV))
    videos = ids if videos is None else videos
    return loss(lambda text, video: s_TV, TextEmbedding(ids, {}, video_ids=videos), VideoEmbedding(videos, {}))


def test_is_twice_the_mean_of_the_scaled_cosines() -> None:
    s_TV = torch.rand(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = 2 * value(s_TV / 0.05, SymmetricInfoNCE())
    torch.testing.assert_close(value(s_TV, NormSoftmaxLoss()), expected, rtol=1e-12, atol=0)


def test_chance_level() -> None:
    assert value(torch.zeros(64, 64), NormSoftmaxLoss()).item() == pytest.approx(2 * math.log(64))


def test_other_captions_of_a_video_are_negatives_unless_said_otherwise() -> None:
    s_TV, videos = torch.zeros(4, 4), torch.tensor([7, 7, 8, 9])
    assert value(s_TV, NormSoftmaxLoss(), videos).item() == pytest.approx(2 * math.log(4))
    left = value(s_TV, NormSoftmaxLoss(same_video_positives=True), videos).item()
    assert left == pytest.approx(math.log(3) + math.log(4))


def test_half_precision_is_summed_in_float32() -> None:
    s_TV = torch.eye(4, dtype=torch.bfloat16)
    assert value(s_TV, NormSoftmaxLoss()).dtype is torch.float32


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_the_temperature_is_positive(temperature: float) -> None:
    with pytest.raises(UserError, match=r"model.temperature=.*expected more than 0"):
        NormSoftmaxLoss(temperature)
