"""Dual Encoding in miniature, with captions and videos."""

from __future__ import annotations

from typing import Any

import torch

from src.batch import TextBatch, VideoBatch
from src.models.dual_encoding import MEAN, DualEncoding

WORDS = ("dog", "runs", "car", "red", "two")
SMALL: dict[str, Any] = {
    **{"text_rnn_size": 3, "visual_rnn_size": 4, "text_kernel_num": 2, "visual_kernel_num": 3},
    **{"word_dim": 6, "embed_dim": 7, "num_concepts": 5},
}
FRAMES = {"frames": {"dim": 8, "temporal": True, "max_steps": 64}}
CONCEPTS = {"concepts": {"dim": 5}}


def make(vocabulary: str, experts: dict[str, Any] | None = None, **options: Any) -> DualEncoding:
    torch.manual_seed(0)
    return DualEncoding(vocabulary=vocabulary, experts=experts or FRAMES | CONCEPTS, **(SMALL | options))


def texts(model: DualEncoding, captions: list[str]) -> TextBatch:
    tokens_BL, mask_BL = model.tokenizer(captions)
    ids = torch.arange(len(captions))
    return TextBatch(tokens_BL, mask_BL, ids, ids)


def videos(lengths: list[int], dim: int = 8, seed: int = 0) -> VideoBatch:
    generator = torch.Generator().manual_seed(seed)
    mask_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    x_BTD = torch.randn(len(lengths), max(lengths), dim, generator=generator) * mask_BT[..., None]
    features = {
        "frames": x_BTD,
        "frames" + MEAN: x_BTD.sum(1) / mask_BT.sum(1, keepdim=True).clamp_min(1),
        "concepts": torch.rand(len(lengths), 5, generator=generator),
    }
    return VideoBatch(torch.arange(len(lengths)), features=features, feature_masks={"frames": mask_BT})
