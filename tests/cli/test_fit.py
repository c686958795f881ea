"""task=fit and task=evaluate from the command line: what they leave behind, and that it repeats."""

from __future__ import annotations

import csv
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.config import compose
from src.errors import UserError
from tests.cli.conftest import TINY

Cli = Callable[..., Any]
Metrics = Callable[[str], dict[str, Any]]
PROTOCOL = (
    "dataset split subset num_videos num_captions captions_per_video rescoring selection ties model checkpoint seed"
)


def without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key != "timing"}


def test_a_run_leaves_what_the_contract_says_and_repeats(cli: Cli, metrics: Metrics, tmp_path: Path) -> None:
    outcome = cli("trainer.max_epochs=2", "save_similarity=true", name="first").succeeded()
    run = tmp_path / "first"
    for file in ("config.yaml", "metrics.json", "metrics.csv", "ranks.csv", "report/index.html", "log.txt"):
        assert (run / file).stat().st_size > 0, file
    found = metrics("first")
    assert set(PROTOCOL.split()) <= set(found["protocol"])
    for direction in ("t2v", "v2t"):
        assert {"R1", "R5", "R10", "R50", "MdR", "MnR", "mAP", "GeoMean"} == set(found[direction])
    assert set(found["skills"]) == {"appearance", "motion", "order", "reading", "sound"}
    assert "text to video" in outcome.out
    assert str(run / "report" / "index.html") in outcome.out

    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [0, 1]
    assert all(float(row["train/loss"]) > 0 and float(row["val/SumR"]) >= 0 for row in rows)

    for name in ("best", "last"):
        assert torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]

    similarity = np.load(run / "similarity.npy")
    assert similarity.shape == (found["protocol"]["num_captions"], found["protocol"]["num_videos"])
    assert len((run / "videos.txt").read_text().split()) == similarity.shape[1]

    # The saved matrix gives the same metrics, and so does the checkpoint; and so does a second run.
    ids = (f"similarity={run}/similarity.npy", f"captions={run}/captions.txt", f"videos={run}/videos.txt")
    cli("task=score", *ids, name="score", tiny=False).succeeded()
    assert metrics("score")["t2v"] == found["t2v"]
    assert metrics("score")["v2t"] == found["v2t"]
    best = f"ckpt_path={run}/checkpoints/best.ckpt"
    cli("task=evaluate", best, "task.error_matrix=true", name="again").succeeded()
    for part in ("t2v", "v2t", "skills"):
        assert metrics("again")[part] == found[part]
    errors = torch.load(run.parent / "again" / "pred_errors_matrix.pth.tar", weights_only=True)
    np.testing.assert_allclose(errors["errors"], -similarity, rtol=1e-5, atol=1e-5)
    assert errors["videos"] == (run / "videos.txt").read_text().split()
    cli("trainer.max_epochs=2", name="second").succeeded()
    assert without_times(metrics("second")) == without_times(found)


SELECTIONS = ("test", "last")


@pytest.fixture(scope="module")
def selected(session_cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multirun over ways of selection, for a split without val part, as MSR-VTT 1k-A is one."""
    sweep = tmp_path_factory.mktemp("selected")
    jobs = ("-m", f"selection={','.join(SELECTIONS)}", f"hydra.sweep.dir={sweep}")
    session_cli(*jobs, "model=clip4clip", "trainer.max_epochs=1", "~split.parts.val").succeeded()
    return sweep


@pytest.mark.parametrize("selection", SELECTIONS)
def test_selection_is_what_was_asked_for(selected: Path, selection: str) -> None:
    run = selected / str(SELECTIONS.index(selection))
    assert json.loads((run / "metrics.json").read_text())["protocol"]["selection"] == selection
    assert (run / "checkpoints" / "best.ckpt").exists() == (selection == "test")


def test_wrong_checkpoints_are_refused(cli: Cli, selected: Path, tmp_path: Path) -> None:
    best = selected / str(SELECTIONS.index("test")) / "checkpoints" / "best.ckpt"
    foreign, cut = tmp_path / "foreign.ckpt", tmp_path / "cut.ckpt"
    torch.save({"weights": torch.zeros(3)}, foreign)
    cut.write_bytes(best.read_bytes()[:5000])
    files = ",".join(map(str, (best, foreign, cut)))
    jobs = ("-m", f"ckpt_path={files}", f"hydra.sweep.dir={tmp_path}/sweep")
    outcome = cli(*jobs, "task=evaluate", "model=clip2video")  # the first file is of clip4clip
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    other, foreign_line, cut_line = (line for line in outcome.err.splitlines() if line.startswith("error: "))
    assert "missing" in other
    assert "does not fit" in other
    assert "state_dict" in foreign_line
    assert "cannot be read" in cut_line
    for words, reason in ((["ckpt_path=none.ckpt"], "does not exist"), ([], "ckpt_path")):
        with pytest.raises(UserError, match=reason):
            compose.preflight(compose.parse(["task=evaluate", *TINY, *words]))


def test_a_full_disk_while_saving_is_one_error_line(cli: Cli, tmp_path: Path) -> None:
    """A limit on the file size is what a full disk looks like to a program that writes a checkpoint."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

    message = cli("trainer.max_epochs=1", preexec_fn=limit).failed_with(2)
    assert "cannot save" in message
    assert "ckpt_path=last" in message
    assert not list((tmp_path / "run" / "checkpoints").glob(".*.part")), "the unfinished file was left behind"
