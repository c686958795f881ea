"""A batch that holds each video once trains exactly like one that repeats it for every caption."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor

from src.batch import PairBatch, TextBatch, VideoBatch
from src.models.clip4clip import Clip4Clip

ROWS = torch.tensor([0, 1, 0, 2, 1, 0])


def batches() -> tuple[PairBatch, PairBatch]:
    """The same pairs with shared and with repeated videos."""
    torch.manual_seed(0)
    tokens_BL = torch.randint(1, 500, (len(ROWS), 8))
    text = TextBatch(tokens_BL, torch.ones(len(ROWS), 8, dtype=torch.bool), torch.arange(len(ROWS)), ROWS)
    frames = torch.randint(0, 255, (3, 4, 3, 64, 64), dtype=torch.uint8)
    video = VideoBatch(torch.arange(3), frames, torch.ones(3, 4, dtype=torch.bool))
    repeated = replace(video.map(lambda tensor: tensor[ROWS]), ids=ROWS)
    return PairBatch(text, video, ROWS), PairBatch(text, repeated)


def step(model: Clip4Clip, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    with patch.object(model, "log"):
        loss = model.training_step(batch, 0)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_loss_and_gradients_are_those_of_repeated_videos() -> None:
    model = Clip4Clip(arch="videotext-tiny", num_frames=4, max_words=8).double()
    shared, repeated = batches()
    loss, gradients = step(model, shared)
    expected_loss, expected = step(model, repeated)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7, msg=name)


def test_rows_move_with_the_batch() -> None:
    shared, _ = batches()
    moved = shared.map(lambda tensor: tensor + 0)
    assert moved.rows is not None
    assert torch.equal(moved.rows, ROWS)
    assert len(moved) == len(ROWS)
