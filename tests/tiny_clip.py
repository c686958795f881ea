"""A CLIP small enough for unit tests, known to open_clip by name."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import open_clip

NAME = "unit-test-clip"


def tiny_arch() -> str:
    """16 px, patch 8, width 32, 2 heads, 10 positions, 64 ids (start 62, end 63)."""
    config = {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 16, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 10, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2},
    }
    if open_clip.get_model_config(NAME) is None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{NAME}.json"
            path.write_text(json.dumps(config))
            open_clip.add_model_config(path)
    return NAME
