"""What a head is told of its model, without a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from src.models.heads.base import HeadHost


def host_of(width: int, num_frames: int, max_words: int) -> HeadHost:
    """A host whose tower has a width and positions but no blocks: fresh layers start at random."""
    tower: Any = SimpleNamespace(
        arch="no-tower", is_plain=False, embed_dim=width, text_width=width, context_length=max(num_frames, max_words)
    )
    return HeadHost(tower, num_frames, max_words, attention_heads=1)
