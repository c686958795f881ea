"""TextVR from files to a report: trained, evaluated again from its checkpoint, and without parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from src.config import compose
from src.errors import UserError
from src.tasks import evaluate, fit
from src.tasks.build import build_datamodule, empty_model

SMALL = ("dataset.num_train=40", "dataset.num_val=10", "dataset.num_test=20", "logger=none", "callbacks=none")
QUAD = [8, 8, 40, 8, 40, 20, 8, 20, 0.9, 0]


def configuration(data: Path, run: str, *words: str) -> Any:
    (data / run).mkdir(exist_ok=True)
    folders = (f"paths.data_dir={data}", f"paths.run_dir={data}/{run}")
    (values,) = compose.preflight(compose.parse(["model=textvr", "trainer=cpu", *folders, *SMALL, *words]))
    return OmegaConf.create(values)


def metrics(data: Path, run: str) -> dict[str, Any]:
    return json.loads((data / run / "metrics.json").read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, and for those with a sign what stands on it, in the published layout."""
    folder = tmp_path_factory.mktemp("textvr")
    (folder / "toy" / "ocr").mkdir(parents=True)
    cfg = configuration(folder, "none", "model.mode=vision")
    build_datamodule(cfg, empty_model(cfg).input_spec).setup()
    (annotation,) = folder.glob("toy/*/annotation.json")
    for video in json.loads(annotation.read_text(encoding="utf-8"))["videos"]:
        if video["skill"] == "reading":
            track = {"text": video["scene"]["word"], "score": "0.9", "tracks": {"0": QUAD, "5": QUAD}}
            (folder / "toy" / "ocr" / f"{video['id']}.json").write_text(json.dumps({"0": track}))
    return folder


def test_a_trained_model_gives_the_same_results_from_its_checkpoint(data: Path) -> None:
    memory = ("model.ocr_checkpointing=true", "model.ocr_words_per_pass=4", "trainer.precision=bf16-mixed")
    fit.run(configuration(data, "fit", *memory, "trainer.max_epochs=2", "optimized_metric=val/loss"))
    trained = metrics(data, "fit")
    assert trained["protocol"]["without_ocr"] == 16  # of the 20 test videos a fifth has a sign
    checkpoint = data / "fit" / "checkpoints" / "best.ckpt"
    evaluate.run(configuration(data, "again", "task=evaluate", f"ckpt_path={checkpoint}", *memory))
    assert metrics(data, "again")["t2v"] == trained["t2v"]
    with pytest.raises(UserError, match="does not fit the model"):
        evaluate.run(configuration(data, "ocr", "task=evaluate", "model.mode=ocr", f"ckpt_path={checkpoint}"))


def test_shared_words_find_the_signs(data: Path) -> None:
    evaluate.run(configuration(data, "offline", "task=evaluate", "model.mode=offline", "task.random_weights=true"))
    found = metrics(data, "offline")
    assert found["t2v"]["R1"] > 0
    assert found["protocol"]["ties"] == "average"
