"""Files that are no checkpoints of ours are refused in one plain line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from src.errors import UserError
from src.tasks.checkpoint import read_checkpoint


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"state_dict": {}, "config": Path("published.json")}, "cannot be read as a checkpoint"),
        ({"weights": torch.zeros(2)}, "holds no `state_dict`"),
        (None, "cannot be read as a checkpoint"),
    ],
    ids=["code", "other names", "junk"],
)
def test_foreign_files(tmp_path: Path, content: Any, reason: str) -> None:
    file = tmp_path / "foreign.pth"
    if content is None:
        file.write_bytes(b"no archive" * 100)
    else:
        torch.save(content, file)
    with pytest.raises(UserError, match=reason) as raised:
        read_checkpoint(file)
    message = str(raised.value)
    assert f"task=convert task.source={file}" in message
    assert message.isprintable()
