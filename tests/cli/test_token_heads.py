"""Token heads and the dual softmax loss from the command line: trained by a multirun, every part of the loss logged."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SMALL = (
    *("dataset.num_train=40", "dataset.num_val=10", "dataset.num_test=20", "dataset.batch_size=8"),
    *("dataset.train_samples=one_per_video", "dataset.recipe.num_frames=4", "trainer.enable_progress_bar=false"),
)


def test_a_multirun_over_heads_trains_each(cli: Callable[..., Any], tmp_path: Path) -> None:
    words = ("-m", "model=clip4clip", "model.head=wti,xclip", "model.loss=dsl", "model.dsl_temperature=10")
    cli(*words, *SMALL, "trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path}/heads", tiny=False).succeeded()
    heads = {}
    for checkpoint in sorted((tmp_path / "heads").glob("**/checkpoints/best.ckpt")):
        state = torch.load(checkpoint, weights_only=True)["state_dict"]
        heads[next(name for name in state if name.startswith("head."))] = checkpoint.parents[1]
    assert len(heads) == 2
    assert any("word_score" in name for name in heads)
    assert any("mat_weight" in name or "logit_weight" in name for name in heads)
    for run in heads.values():
        assert "dsl_temperature: 10" in (run / "config.yaml").read_text()

    words = ("model=clip4clip", "model.head=wti", "model.head.cdcr=1", "model.head.cdcr_lambda=0.01", *SMALL)
    cli(*words, "trainer.max_epochs=1", name="cdcr", tiny=False).succeeded()
    with (tmp_path / "cdcr" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    parts = {name: float(row[f"train/{name}"]) for name in ("loss", "contrastive", "cdcr")}
    assert parts["cdcr"] > 0
    assert abs(parts["loss"] - parts["contrastive"] - 0.01 * parts["cdcr"]) < 1e-4
