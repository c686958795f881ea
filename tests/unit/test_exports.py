"""Predicted concepts and the error matrix; the golden case `pipeline_onefolder` has the published files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from src.batch import TextEmbedding, VideoEmbedding
from src.data.annotation import CaptionRecord, VideoRecord
from src.data.splits import SplitPart
from src.errors import UserError
from src.models.concept_space import CONCEPTS
from src.tasks import exports
from src.tasks.exports import check_exports, write_exports

PART = SplitPart(
    "test",
    (VideoRecord("a"), VideoRecord("b"), VideoRecord("c")),
    (
        CaptionRecord("a", "first", ("a#enc#0",)),
        CaptionRecord("b", "two sentences", ("b#0", "b#1")),
        CaptionRecord("c", "third"),
    ),
    (0, 1, 2),
)
TEXT = TextEmbedding(
    torch.arange(3), {CONCEPTS: torch.tensor([[0.25, 0.5], [1.0, 0.0], [0.5, 0.5]])}, video_ids=torch.arange(3)
)
VIDEO = VideoEmbedding(torch.tensor([0, 2]), {CONCEPTS: torch.tensor([[0.1239, 0.5], [0.5, 1.0]])})  # b was unreadable


def scorer(text: TextEmbedding, video: VideoEmbedding) -> Any:
    assert (len(text), len(video)) == (3, 2)  # the whole
    return lambda t, v: t.parts[CONCEPTS] @ v.parts[CONCEPTS].T


MODEL: Any = SimpleNamespace(scorer=scorer, on_save_checkpoint=lambda checkpoint: None)


def config(tmp_path: Path, **task: object) -> DictConfig:
    return OmegaConf.create({"paths": {"run_dir": str(tmp_path)}, "task": task})


@pytest.mark.parametrize("content", [["dog", "run"], {"concepts": ["dog", "run"]}])
def test_concepts_are_listed_by_probability(tmp_path: Path, content: object) -> None:
    concepts = tmp_path / "concepts.json"
    concepts.write_text(json.dumps(content))
    write_exports(config(tmp_path, concepts=str(concepts)), PART, (TEXT, VIDEO), MODEL)
    assert (tmp_path / "video" / "pred_tags.txt").read_text() == "a\trun:0.500 dog:0.124 \nc\trun:1.000 dog:0.500 \n"
    assert (tmp_path / "text" / "pred_tags.txt").read_text().splitlines() == [
        "a#enc#0\trun:0.500 dog:0.250 ",
        "b#0\tdog:1.000 run:0.000 ",
        "c\tdog:0.500 run:0.500 ",
    ]
    assert not (tmp_path / "pred_errors_matrix.pth.tar").exists()


def test_concepts_of_another_model_are_refused(tmp_path: Path) -> None:
    concepts = tmp_path / "concepts.json"
    concepts.write_text('["dog"]')
    cfg = config(tmp_path, concepts=str(concepts))
    with pytest.raises(UserError, match="names 1 concepts but the model predicts 2"):
        write_exports(cfg, PART, (TEXT, VIDEO), MODEL)
    without = TextEmbedding(TEXT.ids, {"latent": torch.ones(3, 1)}, video_ids=TEXT.video_ids)
    with pytest.raises(UserError, match="the model predicts none"):
        write_exports(cfg, PART, (without, VideoEmbedding(VIDEO.ids, {"latent": torch.ones(2, 1)})), MODEL)


def test_errors_are_minus_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "BLOCK", 2)
    write_exports(config(tmp_path, error_matrix=True), PART, (TEXT, VIDEO), MODEL)
    written = torch.load(tmp_path / "pred_errors_matrix.pth.tar", weights_only=True)
    assert written["videos"] == ["a", "c"]
    assert written["captions"] == ["a#enc#0", "b#0", "c"]
    torch.testing.assert_close(written["errors"], -(TEXT.parts[CONCEPTS] @ VIDEO.parts[CONCEPTS].T))


def test_tasks_without_these_keys_write_nothing(tmp_path: Path) -> None:
    write_exports(config(tmp_path), PART, (TEXT, VIDEO), MODEL)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_found_early(tmp_path: Path) -> None:
    for task in ({}, {"concepts": None, "error_matrix": False}):
        check_exports(config(tmp_path, **task), by_topics=True)
    check_exports(config(tmp_path, error_matrix=True), by_topics=False)
    with pytest.raises(UserError, match=r"task\.error_matrix is for captions"):
        check_exports(config(tmp_path, error_matrix=True), by_topics=True)
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        check_exports(config(tmp_path, concepts=str(tmp_path / "none.json")), by_topics=False)
