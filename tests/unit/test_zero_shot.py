"""The zero-shot notebook on real clips: class names alone retrieve far above chance."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.real
@pytest.mark.slow
def test_class_names_find_real_videos(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOTEXT_CLIPS", str(shared_data / "clips"))
    monkeypatch.setenv("VIDEOTEXT_PREFIX", "panda70m/")
    notebook = nbformat.read(ROOT / "notebooks" / "zero_shot.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}}).execute()
    printed = "".join(output.text for output in notebook.cells[-1].outputs if output.output_type == "stream")
    row = re.search(r"text to video\s+([\d.]+)", printed)
    assert row is not None, printed
    assert float(row.group(1)) >= 22, printed
