"""Submissions to the Video Pentathlon: files, their check, their score."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from src.data.annotation import CaptionRecord, VideoRecord
from src.data.splits import SplitPart
from src.errors import UserError
from src.metrics.retrieval import RetrievalResult, evaluate_matrix
from src.reports import pentathlon
from src.reports.pentathlon import Size, expected_size, ranking_lines, read_predictions, score_predictions
from src.tasks import pentathlon as task

PHASE = "public_server_test"


def ranked(captions: int = 40, videos: int = 12, seed: int = 0) -> tuple[np.ndarray, RetrievalResult]:
    rng = np.random.default_rng(seed)
    owner = np.sort(rng.integers(0, videos, captions))
    matrix = (rng.standard_normal((captions, videos)) + 2 * np.eye(videos)[owner]).astype(np.float32)
    return matrix, evaluate_matrix(matrix, torch.from_numpy(owner), videos)


def part(captions: int, videos: int) -> SplitPart:
    records = tuple(VideoRecord(f"v{n}") for n in range(videos))
    return SplitPart("test", records, (CaptionRecord("v0", "x"),) * captions, (0,) * captions)


def config(tmp_path: Path, phase: str | None = PHASE, dataset: str = "toy") -> DictConfig:
    values = {"task": {"pentathlon": phase}, "dataset": {"name": dataset}, "paths": {"run_dir": str(tmp_path)}}
    return OmegaConf.create(values)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(10, 25), st.integers(0, 1000))
def test_lines_are_the_sorted_videos_and_score_as_the_evaluation(captions: int, videos: int, seed: int) -> None:
    matrix, result = ranked(captions, videos, seed)
    lines = ranking_lines(result, videos)
    assert lines == [",".join(map(str, np.argsort(-row, kind="stable")[:10])) for row in matrix]
    predictions = np.array([[int(cell) for cell in line.split(",")] for line in lines])
    found = score_predictions(predictions, result.caption_videos.numpy())
    assert found == pytest.approx({key: result.t2v[key] for key in ("R1", "R5", "R10", "GeoMean")})


def test_a_run_leaves_a_submission_that_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, result = ranked()
    cfg = config(tmp_path, dataset="toy")
    task.check_part(cfg, part(40, 12))
    task.write(cfg, part(40, 12), result)
    folder = tmp_path / "pentathlon"
    name = f"toy-{PHASE}-predictions.csv"
    assert json.loads((folder / "predictions.json").read_text()) == {"toy": {PHASE: name}}
    (archive,) = folder.glob("*.zip")
    assert f"pentathlon: {archive} (no data set of the challenge)" in capsys.readouterr().out
    with zipfile.ZipFile(archive) as file:
        assert file.namelist() == [name]
        assert file.read(name) == (folder / name).read_bytes()
    score = task.score(folder / name, tmp_path / "scored")
    assert score == pytest.approx(result.t2v["GeoMean"])
    out = " ".join(capsys.readouterr().out.split())
    assert f"toy {PHASE} 40 {result.t2v['R1']:.1f} {result.t2v['R5']:.1f}" in out
    stored = json.loads((tmp_path / "scored" / "metrics.json").read_text())["pentathlon"][f"toy {PHASE}"]
    assert stored == pytest.approx({"lines": 40, **{key: result.t2v[key] for key in ("R1", "R5", "R10", "GeoMean")}})


def test_nothing_is_written_unless_asked(tmp_path: Path) -> None:
    cfg = config(tmp_path, phase=None)
    task.check_part(cfg, part(1, 1))
    task.write(cfg, part(40, 12), ranked()[1])
    assert not list(tmp_path.iterdir())


def test_files_of_several_data_sets_are_checked_and_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pentathlon, "SIZES", {name: (Size(12, 30), Size(12, 40)) for name in ("MSVD", "DiDeMo")})
    _, result = ranked()
    index: dict[str, dict[str, str]] = {}
    for dataset in ("MSVD", "DiDeMo"):
        file = pentathlon.write_predictions(tmp_path / dataset, dataset, PHASE, ranking_lines(result, 12))
        index[dataset] = {PHASE: f"{dataset}/{file.name}"}
    (tmp_path / "predictions.json").write_text(json.dumps(index))
    assert task.score(tmp_path / "predictions.json", tmp_path / "out") is None
    assert "all files can be submitted" in capsys.readouterr().out
    (archive,) = (tmp_path / "out").glob(f"{PHASE}-*.zip")
    with zipfile.ZipFile(archive) as file:
        assert sorted(file.namelist()) == [f"{name}-{PHASE}-predictions.csv" for name in ("DiDeMo", "MSVD")]
    (tmp_path / "MSVD" / f"MSVD-{PHASE}-predictions.csv").write_text("0,1,2,3,4,5,6,7,8,9\n" * 39)
    with pytest.raises(UserError, match=r"found 39 lines, expected 40"):
        task.score(tmp_path / "predictions.json", tmp_path / "out")


def test_the_name_of_the_zip_says_phase_paths_and_time(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1")
    moment = datetime(2020, 5, 17, 1, 2, 3)
    one = pentathlon.write_submission(tmp_path, {"MSVD": tmp_path / "x.csv"}, PHASE, moment)
    assert one.name.startswith(f"{PHASE}-")
    assert one.name.endswith("-2020-05-17_01-02-03.zip")
    assert len(one.name.split("-")[1]) == 10
    (tmp_path / "y.csv").write_text("1")
    other = pentathlon.write_submission(tmp_path, {"MSVD": tmp_path / "y.csv"}, PHASE, moment)
    assert one.name != other.name


def test_published_sizes() -> None:
    found = {name: tuple((s.videos, s.lines) for s in sizes) for name, sizes in pentathlon.SIZES.items()}
    assert found["MSRVTT"] == ((497, 497 * 20), (2990, 2990 * 20 - 6))
    assert found["MSVD"] == ((100, 100 * 81 - 3810), (670, 670 * 81 - 26507))
    assert set(found) == {"MSRVTT", "MSVD", "DiDeMo", "LSMDC", "YouCook2", "ActivityNet"}
    assert expected_size("msrvtt", PHASE) == Size(2990, 59_794)
    assert expected_size("activity-net", "public_server_val") == Size(1001, 1001)
    assert expected_size("toy", PHASE) is None
    with pytest.raises(UserError, match="found phase 'test'"):
        expected_size("msvd", "test")


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("0,1,2,3,4,5,6,7,8\n", None, "line 1 is '0,1,2,3,4,5,6,7,8', expected 10 different"),
        ("0,1,2,3,4,5,6,7,8,9\n0,1,2,3,4,5,6,7,8,8\n", None, "line 2 is"),
        ("0,1,2,3,4,5,6,7,8,x\n", None, "line 1 is"),
        ("0,1,2,3,4,5,6,7,8,-1\n", None, "line 1 is"),
        ("0,1,2,3,4,5,6,7,8,12\n", Size(12, 1), "whole numbers from 0 to 11"),
        ("0,1,2,3,4,5,6,7,8,9\n", Size(12, 2), "found 1 lines, expected 2"),
        ("", None, "found 0 lines, expected at least one"),
    ],
)
def test_files_that_the_server_would_refuse(tmp_path: Path, text: str, size: Size | None, message: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_predictions(tmp_path / "p.csv", size)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot read it"), ("{}", "names no file"), ("[1]", "cannot read it"), ('{"toy": {"a": "b"}}', "phase 'a'")],
)
def test_indices_that_mean_nothing(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "predictions.json").write_text(text)
    with pytest.raises(UserError, match=message):
        task.score(tmp_path / "predictions.json", tmp_path)
    (tmp_path / "predictions.json").write_text(json.dumps({"toy": {PHASE: "x.csv"}}))
    with pytest.raises(UserError, match="found data set 'toy'"):
        task.score(tmp_path / "predictions.json", tmp_path)


def test_results_that_cannot_be_submitted(tmp_path: Path) -> None:
    _, result = ranked()
    with pytest.raises(UserError, match="2 captions were left out"):
        ranking_lines(replace(result, excluded_captions=(3, 4)), 12)
    with pytest.raises(UserError, match="found 12 ranked videos of 13"):
        ranking_lines(result, 13)
    with pytest.raises(UserError, match="the best 9 of each query"):
        ranking_lines(ranked(20, 9)[1], 9)
    with pytest.raises(UserError, match="found 40 videos and 12 captions, expected 670 and 27,763"):
        task.check_part(config(tmp_path, dataset="msvd"), part(12, 40))
    with pytest.raises(UserError, match="equal numbers"):
        score_predictions(np.arange(10)[None], np.arange(2))
