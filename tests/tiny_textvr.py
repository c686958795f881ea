"""A TextVR small enough for unit tests, and its batches."""

from __future__ import annotations

from typing import Any

import torch

from src.batch import PairBatch, TextBatch, VideoBatch, WordBatch
from src.models.textvr import TextVR

FRAMES, SIDE, PIECES, SLOTS = 2, 16, 5, 6


def tiny_textvr(**options: Any) -> TextVR:
    """16 px, patches of 8, one block of width 96 as the text model's; weights from seed 0."""
    torch.manual_seed(0)
    sizes = {"vit": "videotext-tiny", "image_size": SIDE, "patch_size": 8, "depth": 1, "num_frames": FRAMES}
    options = {"text_model": "videotext-tiny", "max_words": 12, "projection_dim": 24, **sizes, **options}
    return TextVR(**options)


def without_dropout(model: TextVR) -> TextVR:
    """In training mode, but with the same numbers every time."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def make_words(lengths: list[int]) -> WordBatch:
    """Random words, `lengths` of them per video."""
    generator = torch.Generator().manual_seed(3)
    size = (len(lengths), SLOTS)
    words_BW = torch.arange(SLOTS) < torch.tensor(lengths)[:, None]
    pieces_BW = torch.randint(1, PIECES + 1, size, generator=generator).masked_fill(~words_BW, 1)
    mask_BWL = torch.arange(PIECES) < pieces_BW[..., None]
    tokens_BWL = torch.randint(2, 30, (*size, PIECES), generator=generator)
    tokens_BWL = tokens_BWL.masked_fill(~words_BW[..., None], 1).masked_fill(~mask_BWL, 0)
    positions_BWP = torch.rand(*size, 12, generator=generator) * words_BW[..., None]
    return WordBatch(tokens_BWL, mask_BWL, words_BW, positions_BWP)


def make_videos(lengths: list[int]) -> VideoBatch:
    """Random frames with these numbers of words."""
    generator = torch.Generator().manual_seed(4)
    size = (len(lengths), FRAMES, 3, SIDE, SIDE)
    frames = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    mask_BT = torch.ones(size[:2], dtype=torch.bool)
    return VideoBatch(torch.arange(len(lengths)), frames, mask_BT, words=make_words(lengths))


def make_pairs(lengths: list[int]) -> PairBatch:
    """One caption per video."""
    generator = torch.Generator().manual_seed(5)
    tokens_BL = torch.randint(1, 4000, (len(lengths), 8), generator=generator)
    ids = torch.arange(len(lengths))
    return PairBatch(TextBatch(tokens_BL, torch.ones_like(tokens_BL, dtype=torch.bool), ids, ids), make_videos(lengths))
