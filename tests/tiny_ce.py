"""A small Collaborative Experts model and batches for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from src.batch import TextBatch, VideoBatch
from src.models.collaborative_experts import CollaborativeExperts

# "zebra" is read from the store "alpha", so that the model's order is zebra, ocr, scene.
EXPERTS: dict[str, dict[str, Any]] = {
    "ocr": {"dim": 5, "temporal": True, "max_steps": 3},
    "scene": {"dim": 7},
    "zebra": {"dim": 6, "store": "alpha"},
}
TEXT: dict[str, Any] = {"name": "words", "dim": 4, "temporal": True, "max_steps": 6}
OPTIONS: dict[str, Any] = {
    "experts": EXPERTS,
    "text": TEXT,
    "vlad_clusters": {"text": 3, "ocr": 2, "speech": 9},
    "max_tokens": {"speech": 9},
    "text_ghost_clusters": 1,
    "shared_dim": 8,
    "g_layers": 2,
}


def make(**options: Any) -> CollaborativeExperts:
    torch.manual_seed(0)
    model = CollaborativeExperts(**OPTIONS | options)
    for name, buffer in model.named_buffers():  # statistics that evaluation can be told by
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return model


def texts(size: int, seed: int = 1) -> TextBatch:
    """Captions of the first videos, one each, with 1 to 6 words."""
    generator = torch.Generator().manual_seed(seed)
    lengths_B = 1 + torch.arange(size) % 6
    mask_BL = torch.arange(6) < lengths_B[:, None]
    x_BLD = torch.randn(size, 6, 4, generator=generator) * mask_BL[..., None]
    tokens = torch.zeros(size, 0, dtype=torch.int64)
    ids = torch.arange(size)
    return TextBatch(tokens, tokens.bool(), ids, ids, features={"words": x_BLD}, feature_masks={"words": mask_BL})


def videos(size: int, seed: int = 2) -> VideoBatch:
    """Every third video has no ocr, every fourth no scene; all have zebra."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"scene": (7,), "zebra": (6,), "ocr": (3, 5)}
    features: dict[str, Tensor] = {
        name: torch.randn(size, *shape, generator=generator) for name, shape in shapes.items()
    }
    ids = torch.arange(size)
    present_BE = torch.stack([ids % 4 != 1, ids >= 0, ids % 3 != 0], 1)
    return VideoBatch(ids, features=features, present_BE=present_BE)


def scores(model: CollaborativeExperts, text: TextBatch, video: VideoBatch) -> Tensor:
    return model.similarity(model.encode_text(text), model.encode_video(video))
