"""CLIP models as the command line builds them, small enough for unit tests, and batches for them."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from omegaconf import OmegaConf
from torch import Tensor

from src.batch import PairBatch, TextBatch, VideoBatch
from src.config import compose
from src.config.validate import CONF
from src.models.base import RetrievalModule
from src.tasks import build
from tests.tiny_clip import tiny_arch

FRAMES, WORDS = 4, 8
HEADS = sorted(path.stem for path in (CONF / "model" / "head").glob("*.yaml"))
MODELS = ["model=clip2video", "model=internvideo", *(f"model=clip4clip model/head={head}" for head in HEADS)]


def build_tiny(words: str, seed: int = 0) -> RetrievalModule:
    """The model of `words`, as on a command line, in float64 and ready for training."""
    sizes = [f"model.arch={tiny_arch()}", "model.pretrained=null", f"model.num_frames={FRAMES}"]
    line = compose.task_keys_named(["selection=last", *words.split(), *sizes, f"model.max_words={WORDS}"])
    (values,) = compose.preflight(compose.parse(line))
    torch.manual_seed(seed)
    cfg: Any = OmegaConf.create(values)
    return build.build_model(cfg).double().train()


def pairs(captions: int, videos: int | None = None, seed: int = 0) -> PairBatch:
    """Captions of 2 to 8 tokens and videos of 1 to 4 frames, padded; `videos` of them are shared by the captions."""
    generator = torch.Generator().manual_seed(seed)
    count = captions if videos is None else videos
    lengths_B = torch.randint(2, WORDS + 1, (captions,), generator=generator)
    mask_BL = torch.arange(WORDS) < lengths_B[:, None]
    tokens_BL = torch.randint(1, 62, (captions, WORDS), generator=generator).masked_fill(~mask_BL, 0)
    tokens_BL[torch.arange(captions), lengths_B - 1] = 63
    frames_mask = torch.arange(FRAMES) < torch.randint(1, FRAMES + 1, (count, 1), generator=generator)
    pixels = torch.rand(count, FRAMES, 3, 16, 16, generator=generator, dtype=torch.float64)
    rows = None if videos is None else torch.randint(count, (captions,), generator=generator)
    own = torch.arange(captions) if rows is None else rows
    return PairBatch(
        TextBatch(tokens_BL, mask_BL, torch.arange(captions), own),
        VideoBatch(torch.arange(count), pixels * frames_mask[..., None, None, None], frames_mask),
        rows,
    )


def step(model: RetrievalModule, batch: PairBatch, chunks: int = 1) -> dict[str, Tensor]:
    """Loss and gradients of one training step."""
    model.configure_loss(cache_chunks=chunks)
    model.zero_grad()
    torch.manual_seed(5)
    with patch.object(model, "log"):
        loss = model.training_step(batch, 0)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Equal loss and gradients: relative to the largest entry of each; some are zero but for rounding."""
    assert found.keys() == expected.keys()
    least = 1e-6 * max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        scale = max(float(value.abs().max()), least)
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance * scale, msg=name)
