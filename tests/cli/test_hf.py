"""model=hf from the command line: folders that transformers wrote train and are evaluated on the toy benchmark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.hf_folders import write_clip, write_xclip

SMALL = (
    "model=hf",
    *("dataset.num_train=40", "dataset.num_val=10", "dataset.num_test=20", "dataset.batch_size=8"),
    *("dataset.train_samples=one_per_video", "model.max_words=16", "trainer.enable_progress_bar=false"),
)


def test_folders_train_and_are_evaluated(
    cli: Callable[..., Any], metrics: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    theirs = write_clip(tmp_path / "clip")
    folder = f"model.path={tmp_path}/clip"
    words = (*SMALL, folder, "model.num_frames=4", "model.head=seqTransf")
    cli(*words, "trainer.max_epochs=1", name="fit", tiny=False).succeeded()
    checkpoint = tmp_path / "fit" / "checkpoints" / "best.ckpt"
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    start = theirs.state_dict()["visual_projection.weight"]
    moved = (trained["tower.clip.visual_projection.weight"] - start).abs().max()
    assert 0 < moved < 0.2, "training starts from the folder's weights"
    cli("task=evaluate", *words, f"ckpt_path={checkpoint}", name="again", tiny=False).succeeded()
    assert metrics("again")["t2v"] == metrics("fit")["t2v"]

    write_xclip(tmp_path / "xclip")
    words = (*SMALL, f"model.path={tmp_path}/xclip", "trainer.max_epochs=1")
    outcome = cli(*words, name="videos", tiny=False).succeeded()
    assert "model HfVideoText" in outcome.out
    assert "epoch 1/1" in outcome.out + outcome.err
