"""Precomputed features of captions (the group `text`): where they are read, and what a check of the data says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from src.batch import ExpertSpec
from src.config import compose
from src.data.feature_source import FeatureSource
from src.data.features.writer import StoreWriter
from src.errors import UserError
from src.tasks import build, check_data


def write_store(path: Path, items: dict[str, int], dim: int) -> None:
    """A store with so many vectors of ones for each item; 0 = missing."""
    writer = StoreWriter(path, name=path.name, dim=dim, recipe={}, ids=list(items), items_per_shard=10)
    for shard in writer.pending():
        rows = {i: np.ones((items[i], dim), np.float32) if items[i] else None for i in writer.shard_ids(shard)}
        writer.write_shard(shard, ((i, x, None, "no words" if x is None else None) for i, x in rows.items()))
    writer.finish()


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command line for three videos with one caption each, an expert, and vectors of two captions."""
    clips = tmp_path / "clips"
    clips.mkdir()
    lines = ["video,caption,split"]
    for name, part in (("a", "train"), ("b", "val"), ("c", "test")):
        (clips / f"{name}.mp4").touch()
        lines.append(f"{name}.mp4,words of {name},{part}")
    (clips / "captions.csv").write_text("\n".join(lines))
    features = tmp_path / "data" / "folder" / "features"
    write_store(features / "action", {"a.mp4": 2, "b.mp4": 1, "c.mp4": 1}, 4)
    write_store(features / "glove", {"a.mp4#0": 3, "b.mp4#0": 0, "c.mp4#0": 2}, 50)
    return [
        *("task=check_data", "dataset=folder", f"dataset.data_dir={clips}", f"paths.data_dir={tmp_path}/data"),
        *("experts=action", "experts.action.dim=4", "text=glove"),
    ]


def configured(words: list[str], run_dir: Path) -> DictConfig:
    (values,) = compose.preflight(compose.parse(words))
    cfg: Any = OmegaConf.create(values)
    cfg.paths.run_dir = str(run_dir)
    return cfg


def test_the_captions_are_compared_with_their_store(words: list[str], tmp_path: Path) -> None:
    # A part of which nothing is at hand is an error, so the one without words is no part here.
    check_data.run(configured([*words, "~split.parts.val"], tmp_path))
    report = json.loads((tmp_path / "check_data.json").read_text())
    counts = {row["part"]: (row["with action"], row["with glove"]) for row in report["parts"]}
    assert counts == {"train": (1, 1), "test": (1, 1)}
    assert report["findings"] == []


def test_missing_words_wrong_dimensions_and_missing_stores_are_found(words: list[str], tmp_path: Path) -> None:
    found = {}
    for name, change in {"gap": [], "dim": ["text.dim=60"], "store": ["text=openai"]}.items():
        with pytest.raises(UserError, match="is not clean"):
            check_data.run(configured([*words, *change], tmp_path))
        report = json.loads((tmp_path / "check_data.json").read_text())
        found[name] = {(f["kind"], f["where"]) for f in report["findings"] if f["severity"] == "error"}
    gap = ("other ids than the store", "val, text feature glove")
    assert found["gap"] == {gap}
    assert found["dim"] == {gap, ("wrong dimension", "text feature glove")}
    assert found["store"] == {("no usable feature store", "text feature openai")}


def test_folders_of_the_stores(words: list[str], tmp_path: Path) -> None:
    own = configured([*words, "text=w2v", f"text.path={tmp_path}/elsewhere"], tmp_path)
    features = tmp_path / "data" / "folder" / "features"
    assert build.store_folders(own) == {"action": features / "action", "text.w2v": tmp_path / "elsewhere"}
    assert build.text_of(own) == (ExpertSpec("w2v", 300, temporal=True, store="text.w2v"),)
    without = configured([*words, "text=none"], tmp_path)
    assert build.store_folders(without) == {"action": features / "action"}
    assert build.text_of(without) == ()


def test_messages_name_the_group(words: list[str], tmp_path: Path) -> None:
    folders = build.store_folders(configured(words, tmp_path))
    with pytest.raises(UserError, match=r"text feature glove has dim 60 .* but 50 in .*; set text\.dim=50"):
        FeatureSource((ExpertSpec("glove", 60, temporal=True),), folders, "caption").check()
    with pytest.raises(UserError, match=r"reads the caption features 'w2v'.*conf/text, or choose .* the group text"):
        FeatureSource((ExpertSpec("w2v", 300, temporal=True),), folders, "caption").check()
