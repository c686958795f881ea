"""Preparation as a part of a run: its options, and the experiments that use it."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from src.config import compose
from src.config.validate import CONF

FOLDERS = {
    "onefolder": ["dataset.collection=mine"],
    "multifolder": [f"dataset.{part}_collection=my{part}" for part in ("train", "val", "test")],
}


def configuration(*words: str) -> dict[str, Any]:
    (values,) = compose.preflight(compose.parse(list(words)))
    return values


def test_a_run_has_the_options_and_defaults_of_the_task() -> None:
    fit, own = (OmegaConf.load(CONF / "task" / f"{name}.yaml") for name in ("fit", "prepare"))
    options = set(fit) - {"name", "prepare", "weights"}
    assert {"min_count", "tagger", "tags_dir"} < options
    assert {key: fit[key] for key in options} == {key: own[key] for key in options}
    assert fit.prepare == []


@pytest.mark.parametrize("layout", FOLDERS)
def test_own_data_are_trained_as_published(layout: str) -> None:
    values = configuration(f"experiment=dual_encoding_{layout}", *FOLDERS[layout])
    published = configuration("experiment=dual_encoding_msrvtt_full")
    differing = {"padding", "word_vectors", "vocabulary", "concept_list", "experts"}
    for group in ("model", "optimizer", "scheduler", "callbacks", "trainer"):
        same = {key: item for key, item in published[group].items() if key not in differing}
        assert {key: item for key, item in values[group].items() if key not in differing} == same, group
    assert values["optimized_metric"] == published["optimized_metric"]
    assert values["dataset"]["recipe"] == published["dataset"]["recipe"]
    assert values["task"]["prepare"] == ["features", "vocabulary", "concepts"]


def test_features_of_another_name() -> None:
    words = ("experiment=dual_encoding_onefolder", "dataset.collection=mine", "dataset.feature=mine")
    assert configuration(*words)["experts"]["frames"]["store"] == "mine"
    assert list(configuration(*words, "experts=[i3d,concepts]")["experts"]) == ["i3d", "concepts"]


def test_targets_have_the_size_of_the_concept_space() -> None:
    words = ("model=dual_encoding", "dataset=visualsearch", "experts=[imagenet,concepts]")
    assert configuration(*words, "model.num_concepts=7")["experts"]["concepts"]["dim"] == 7
    assert configuration("task=check_data", "experts=concepts")["experts"]["concepts"]["dim"] == 512
