"""The tasks besides fit and evaluate, each once through the real command line; sweeps save start-up time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from src.convert.clip4clip import to_upstream
from src.metrics.retrieval import evaluate_matrix
from src.models.clip4clip import Clip4Clip
from src.models.heads.seq_transf import SeqTransfHead
from src.reports.report import ReportFacts, write_report
from tests.clips import make_clip, make_truncated

Cli = Callable[..., Any]
Metrics = Callable[[str], dict[str, Any]]

VIDEOS, PER_VIDEO = 12, 3
SMALL = ("dataset=folder", "dataset.batch_size=4", "dataset.recipe.num_frames=4", "trainer.enable_progress_bar=false")


def save_matrix(path: Path, matrix: np.ndarray) -> Path:
    np.save(path, matrix.astype(np.float32))
    return path


def save_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Four train, two val and three test clips, all different."""
    folder = tmp_path / "clips"
    folder.mkdir()
    rows = []
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        for i in range(count):
            make_clip(folder / f"{part}{i}.mp4", 8 + len(rows), audio=False)
            rows.append(f"{part}{i},clip {i} of {part},{part}")
    save_lines(folder / "captions.csv", ["video,caption,split", *rows])
    return folder


def test_score_does_not_depend_on_the_order_and_refuses_what_it_cannot_rank(
    cli: Cli, environment: dict[str, str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(VIDEOS), PER_VIDEO)
    matrix = rng.standard_normal((len(owners), VIDEOS)) + 2 * np.eye(VIDEOS)[owners]
    with_nan = matrix.copy()
    with_nan[5, 7] = np.nan
    files = [
        save_matrix(tmp_path / "good.npy", matrix),
        save_matrix(tmp_path / "transposed.npy", matrix.T),
        save_matrix(tmp_path / "nan.npy", with_nan),
    ]
    names = [f"v{n}" for n in range(VIDEOS)]
    captions = save_lines(tmp_path / "captions.txt", [names[owner] for owner in owners])
    videos = save_lines(tmp_path / "videos.txt", names)
    sweep = f"similarity={','.join(map(str, files))}"
    outcome = cli(
        *("-m", "task=score", sweep, f"captions={captions}", f"videos={videos}", f"hydra.sweep.dir={tmp_path}/sweep"),
        tiny=False,
    )
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    wrong_shape, nan = outcome.err.splitlines()
    assert wrong_shape.startswith("error: videos: found 12 lines")
    assert "expected 36" in wrong_shape
    assert nan.startswith("error: ")
    assert "nan" in nan.lower()

    rows, columns = rng.permutation(len(owners)), rng.permutation(VIDEOS)
    permuted = (
        f"similarity={save_matrix(tmp_path / 'permuted.npy', matrix[rows][:, columns])}",
        f"captions={save_lines(tmp_path / 'rows.txt', [names[owners[row]] for row in rows])}",
        f"videos={save_lines(tmp_path / 'columns.txt', [names[column] for column in columns])}",
    )
    words = [sys.executable, "-m", "src.run", "task=score", *permuted]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "text to video" in done.stdout
    # No data set or model names the folder: the task reads neither.
    (again,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/score/*/metrics.json"))
    good = json.loads((tmp_path / "sweep" / "0" / "metrics.json").read_text())
    assert 0 < good["t2v"]["R1"] < 100
    assert good["protocol"]["captions_per_video"] == PER_VIDEO
    for direction in ("t2v", "v2t"):
        assert again[direction] == pytest.approx(good[direction])


def test_compare_prints_one_table_of_finished_runs(cli: Cli, tmp_path: Path) -> None:
    for name, noise in (("a", 0.2), ("b", 0.6)):
        matrix = np.eye(40) + noise * np.random.default_rng(0).standard_normal((40, 40))
        result = evaluate_matrix(matrix, torch.arange(40), 40)
        facts = {"dataset": "toy", "split": "toy", "model": name, "seed": 0}
        write_report(tmp_path / name, result, ReportFacts(protocol=facts, captions={}, videos={}))
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "model": {"noise": noise}}))
    outcome = cli("task=compare", f"runs=[{tmp_path}/a,{tmp_path}/b]", tiny=False).succeeded()
    lines = outcome.out.splitlines()
    assert lines[0].startswith("toy/toy | 40 videos, 40 captions")
    assert [line.split()[:2] for line in lines if line[:2] in ("a ", "b ")] == [["a", "100.0"], ["b", "42.5"]]
    assert "t2v R@1: b minus a = -57.5 points, 95 % interval [" in outcome.out
    written = sorted(path.suffix for path in (tmp_path / "run").iterdir() if path.stem != "config" and path.suffix)
    assert {".csv", ".md", ".tex"} <= set(written)


def test_prepared_frames_train_without_the_videos(cli: Cli, metrics: Metrics, clips: Path, tmp_path: Path) -> None:
    words = (*SMALL, f"dataset.data_dir={clips}", f"dataset.cache_dir={tmp_path}/cache", "model=clip4clip")
    outcome = cli("task=prepare", "task.workers=1", *words, name="prepare", tiny=False).succeeded()
    assert f"9 videos in {tmp_path}/cache (9 new, 0 before), 0 not readable" in outcome.out
    for path in clips.glob("*.mp4"):
        path.unlink()
    cli("dataset.cache=disk", "dataset.num_workers=0", "trainer.max_epochs=1", *words, tiny=False).succeeded()
    assert metrics("run")["protocol"]["num_videos"] == 3
    assert metrics("run")["excluded"]["by_part"] == {}


def test_describe_needs_no_data_and_no_weights(cli: Cli, tmp_path: Path) -> None:
    words = ("task=describe", "dataset=msrvtt", "model=clip4clip", "selection=test", f"paths.data_dir={tmp_path}/none")
    outcome = cli(*words, tiny=False, env={"HF_HUB_OFFLINE": "1"}).succeeded()
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("parameters: ")]
    with torch.device("meta"):
        model = Clip4Clip(arch="ViT-B-32-quickgelu")
    assert int(line.split()[1]) == sum(p.numel() for p in model.tower.parameters() if p.requires_grad)
    assert "num_frames=12" in outcome.out


def test_check_data_passes_clean_data_and_lists_all_that_is_wrong(cli: Cli, clips: Path, tmp_path: Path) -> None:
    unclean = tmp_path / "unclean"
    shutil.copytree(clips, unclean)
    shutil.copy(unclean / "train0.mp4", unclean / "test0.mp4")  # a leak
    make_truncated(unclean / "train1.mp4", share=0.3)
    (unclean / "val1.mp4").unlink()
    words = (*SMALL, "task=check_data", "task.decode=true", f"dataset.data_dir={clips},{unclean}")
    outcome = cli("-m", *words, f"hydra.sweep.dir={tmp_path}/sweep", tiny=False)
    assert outcome.code == 2
    assert "nothing to report" in outcome.out
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: data set 'folder' is not clean: ")
    for kind in ("1 missing file (val)", "1 unreadable file (train)", "1 identical files in two parts"):
        assert kind in line
    clean, report = (json.loads((tmp_path / "sweep" / job / "check_data.json").read_text()) for job in "01")
    assert clean["findings"] == []
    assert sum(part["videos"] for part in clean["parts"]) == sum(part["files"] for part in clean["parts"]) == 9
    assert sum(part["captions"] for part in clean["parts"]) == 9
    listed = {item.split(" ")[0].rstrip(":") for finding in report["findings"] for item in finding["items"]}
    assert {"val1", "train1", "train0"} <= listed


def test_convert_reads_an_upstream_checkpoint_and_writes_it_back(cli: Cli, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"arch": "videotext-tiny", "num_frames": 4, "max_words": 16}
    state = Clip4Clip(head=partial(SeqTransfHead, temporal_layers=1), **options).state_dict()  # type: ignore[arg-type]
    source = tmp_path / "pytorch_model.bin"
    torch.save({f"module.{name}": value for name, value in to_upstream(state).items()}, source)
    words = ["model.head=seqTransf", "model.head.temporal_layers=1", *(f"model.{k}={v}" for k, v in options.items())]
    outcome = cli(
        *("-m", "task=convert", "task.format=ours,upstream", f"task.source={source}"),
        *("model=clip4clip", *words, f"hydra.sweep.dir={tmp_path}/sweep"),
        tiny=False,
    )
    outcome.succeeded()
    ours = load_file(tmp_path / "sweep" / "0" / "pytorch_model.safetensors")
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[name], state[name]) for name in state)
    upstream = load_file(tmp_path / "sweep" / "1" / "pytorch_model.safetensors")
    assert upstream.keys() == to_upstream(state).keys()
    facts = json.loads((tmp_path / "sweep" / "0" / "pytorch_model.json").read_text())
    assert facts["model"]["head"]["_target_"].endswith(".SeqTransfHead")


def test_bench_measures_the_part_that_was_asked_for(cli: Cli, tmp_path: Path) -> None:
    sizes = ("task.parts=[evaluation]", "task.num_captions=600", "task.num_videos=30", "task.dim=16")
    outcome = cli("task=bench", *sizes, tiny=False).succeeded()
    assert "ratio to matmul" in outcome.out
    found = json.loads((tmp_path / "run" / "bench.json").read_text())
    assert set(found) == {"machine", "evaluation"}
    assert found["evaluation"]["captions"] == 600
