"""Zero-shot evaluation on all six benchmarks, and the published rows beside its result."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from src.config import compose
from src.errors import UserError
from src.models.clip_retrieval import ClipRetrievalModule
from src.tasks import build, evaluate
from tests.benchmark_files import MULTIPLE, PARTS, SETS, write_benchmark

MODELS = ("internvideo", "clip4clip")
QUICK = (
    *("model.num_frames=4", "~split.expected", "dataset.num_workers=0"),
    *("trainer=cpu", "trainer.enable_progress_bar=false", "logger=none", "callbacks=none"),
)
TINY = "model.arch=videotext-tiny-quickgelu"


def configuration(*words: str, tower: tuple[str, ...] = (TINY,)) -> Any:
    (values,) = compose.preflight(compose.parse([*words, *QUICK, *tower]))
    return OmegaConf.create(values)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name in SETS:
        write_benchmark(root, name)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model -> random weights of its tower, as the authors store theirs."""
    files = {}
    for name in MODELS:
        torch.manual_seed(0)
        model = build.build_model(configuration(f"model={name}", "recipe=none", "model.pretrained=null"))
        assert isinstance(model, ClipRetrievalModule)
        state = {key: value.clone() for key, value in model.tower.clip.state_dict().items()}
        files[name] = tmp_path_factory.mktemp("weights") / ("CLIP.pt" if name == "clip4clip" else "InternVideo-MM.ckpt")
        inside = {"state_dict": {f"clip.{key}": value for key, value in state.items()}}
        torch.save(state if name == "clip4clip" else inside, files[name])
    return files


def run(tmp_path: Path, data: Path, *words: str) -> dict[str, Any]:
    """metrics.json of a zero-shot evaluation."""
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    cfg = configuration("task=evaluate", *words, f"paths.data_dir={data}")
    cfg.paths.run_dir = str(folder)
    evaluate.run(cfg)
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("dataset", SETS)
@pytest.mark.parametrize("model", MODELS)
def test_every_benchmark_is_evaluated_without_training(
    model: str, dataset: str, data: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    found = run(
        tmp_path, data, f"model={model}", f"dataset={dataset}", f"model.pretrained={weights[model]}", "rescoring=dsl"
    )
    protocol = found["protocol"]
    assert (protocol["num_videos"], protocol["captions_per_video"]) == (PARTS["test"], MULTIPLE.get(dataset, 1))
    assert protocol["checkpoint"] == f"pretrained={weights[model]}"
    assert all(0 <= found[side]["R10"] <= 100 for side in ("t2v", "v2t"))
    assert found["t2v"]["R10"] == 100  # of six
    published = found.get("published", [])
    assert {row["model"] for row in published} == ({"InternVideo"} if model == "internvideo" else set())
    assert all((row["dataset"], row["setting"]) == (dataset, "zero-shot") for row in published)
    assert (model != "internvideo") or published


def test_published_rows_stand_beside_the_result(
    data: Path, weights: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("experiment=internvideo_msrvtt_zero_shot", f"model.pretrained={weights['internvideo']}")
    found = run(tmp_path, data, *words, f"model.merge_clip={weights['clip4clip']}")
    out = re.sub(" +", " ", capsys.readouterr().out)
    plain, rescored = (
        next(part for part in out.split("published: ") if part.startswith("InternVideo zero-shot") and how in part)
        for how in ("without re-scoring", "with DSL (transductive")
    )
    assert "35.4 58.3 68.4" in plain
    assert "40.0 65.3 74.1" not in plain
    # Both tables of the authors, which disagree, and the repetition.
    assert all(row in rescored for row in ("40.0 65.3 74.1", "40.7 67.3 76.0", "38.0 65.0 73.5"))
    assert f"{found['t2v']['MnR']:.1f}" in plain.split("text to video: this run")[1].splitlines()[0]
    own = rescored.split("text to video: this run")[1].splitlines()[0].split()
    assert own[-1] == f"{found['rescored']['t2v']['MnR']:.1f}"
    assert "this run ranks 6 videos, not 1000: its numbers do not compare" in out
    assert [row["rescoring"] for row in found["published"]] == ["DSL", "DSL", "DSL", "none"]
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "authors, second table (ViT-L/14)" in page
    assert "40.7" in page


def test_other_splits_have_no_published_rows(data: Path, weights: dict[str, Path], tmp_path: Path) -> None:
    words = ("model=internvideo", "dataset=msrvtt", f"model.pretrained={weights['internvideo']}")
    found = run(tmp_path, data, *words, "split.name=mine")
    assert "published" not in found


def test_a_checkpoint_needs_no_pretrained_file(data: Path, tmp_path: Path) -> None:
    model = build.build_model(configuration("model=internvideo", "dataset=msvd", "model.pretrained=null"))
    file = tmp_path / "best.ckpt"
    torch.save({"state_dict": model.state_dict()}, file)
    found = run(tmp_path, data, "model=internvideo", "dataset=msvd", f"ckpt_path={file}")
    assert found["protocol"]["checkpoint"] == str(file)
    assert {row["setting"] for row in found["published"]} == {"fine-tuned"}
    with pytest.raises(UserError, match=r"InternVideo-MM-L-14\.ckpt"):
        run(tmp_path, data, "model=internvideo", "dataset=msvd")


@pytest.mark.parametrize("meant", [False, True])
def test_a_configuration_without_weights_is_no_pretrained_model(meant: bool, data: Path, tmp_path: Path) -> None:
    words = ["task=evaluate", "model=hf", "dataset=msvd", f"paths.data_dir={data}"]
    cfg = configuration(*words, f"task.random_weights={str(meant).lower()}", tower=())
    cfg.paths.run_dir = str(tmp_path)
    if not meant:
        with pytest.raises(UserError, match=r"no weights \(model.path=videotext-tiny-clip is a configuration without"):
            evaluate.run(cfg)
        return
    evaluate.run(cfg)
    assert json.loads((tmp_path / "metrics.json").read_text())["protocol"]["checkpoint"] == "random weights"
