"""InternVideo's published files through the real command line: converted both ways, evaluated in every layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import TINY as TOY
from tests.tiny_internvideo import TINY, clip_shapes, finetuned, pretrained, tower_shapes, values

Cli = Callable[..., Any]
MODEL = ("model=internvideo", "model.arch=videotext-tiny-quickgelu")
DATA = [word for word in TOY if not word.startswith("model.")]
OURS_CKPT, OURS_BIN = "InternVideo-MM-tiny.safetensors", "pytorch_model.safetensors"


@pytest.fixture
def tower() -> dict[str, torch.Tensor]:
    return values(tower_shapes(TINY), seed=3)


def test_published_files_are_converted_and_evaluated(cli: Cli, tmp_path: Path, tower: dict[str, torch.Tensor]) -> None:
    files = [tmp_path / name for name in ("InternVideo-MM-tiny.ckpt", "pytorch_model.bin")]
    torch.save(pretrained(tower, moved=False), files[0])
    torch.save(finetuned(tower), files[1])
    sources = f"task.source={','.join(str(file) for file in files)}"
    sweep = tmp_path / "converted"
    both = cli(
        "-m", "task=convert", sources, "task.format=ours,upstream", *MODEL, f"hydra.sweep.dir={sweep}", tiny=False
    )
    both.succeeded()
    text = both.out + both.err + "".join(path.read_text() for path in sweep.rglob("*.txt"))
    assert "not converted: 5 tensors outside the tower: mlm_score.predictions.*" in text
    ours = [load_file(sweep / place / name) for place, name in (("0", OURS_CKPT), ("2", OURS_BIN))]
    back = [load_file(sweep / place / name) for place, name in (("1", OURS_CKPT), ("3", OURS_BIN))]
    for converted in ours:
        assert {name.removeprefix("tower.clip."): value.shape for name, value in converted.items()} == {
            name: value.shape for name, value in tower.items()
        }
    for converted in back:
        assert converted.keys() == finetuned(tower).keys()
        assert all(torch.equal(converted[name], value) for name, value in finetuned(tower).items())

    weights = sweep / "0" / OURS_CKPT
    asked = ("task=evaluate", *DATA, *MODEL, "save_similarity=true")
    torch.save(values(clip_shapes(TINY)), clip := tmp_path / "clip.pt")
    layouts = ",".join(str(path) for path in (*files, weights, clip))
    sweep = tmp_path / "evaluated"
    cli("-m", *asked, f"model.pretrained={layouts}", f"hydra.sweep.dir={sweep}", tiny=False).succeeded()
    fresh = len(tower_shapes(TINY)) - len(clip_shapes(TINY))
    assert f"clip.pt lacks {fresh} tensors, which start afresh: " in (sweep / "3" / "log.txt").read_text()
    cli(*asked, f"ckpt_path={weights}", name="checkpoint", tiny=False).succeeded()
    folders = [sweep / "0", sweep / "1", sweep / "2", tmp_path / "checkpoint"]
    scores = [np.load(folder / "similarity.npy") for folder in folders]
    assert np.ptp(scores[0]) > 1, "the weights tell videos apart"
    for other, folder in zip(scores, folders, strict=True):
        assert np.array_equal(other, scores[0]), folder
    metrics = [json.loads((folder / "metrics.json").read_text())["t2v"] for folder in folders]
    assert all(found == metrics[0] for found in metrics)
