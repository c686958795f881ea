"""Preparation of the authors' folders: what is imported, what is left alone, and what is said of missing files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from src.config import compose
from src.data.features.store import FeatureStore
from src.data.features.writer import StoreWriter
from src.errors import UserError
from src.tasks import prepare, prepare_concepts, prepare_features, prepare_missing
from tests.cli.test_authors_folders import write_bigfile

CAPTIONS = {
    "train": "a#0 two dogs run\na#1 dogs run fast\nb#0 a red car\nb#1 a red car runs\n",
    "val": "c#0 a dog\n",
    "test": "d#0 a car\n",
}
ITEMS = {"train": "ab", "val": "c", "test": "d"}


def rows_of(videos: str) -> dict[str, np.ndarray]:
    return {video: np.full((2 + i, 4), ord(video), dtype=np.float32) for i, video in enumerate(videos)}


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """A root with the collections m_train, m_val and m_test, each with captions and features."""
    for part, text in CAPTIONS.items():
        folder = tmp_path / "root" / f"m_{part}"
        (folder / "TextData").mkdir(parents=True)
        (folder / "TextData" / f"m_{part}.caption.txt").write_text(text)
        write_bigfile(folder / "FeatureData" / "res-net", rows_of(ITEMS[part]))
    return tmp_path / "root"


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A root with the collection m."""
    for part, text in CAPTIONS.items():
        path = tmp_path / "root" / "m" / "TextData" / f"m{part}.caption.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    write_bigfile(tmp_path / "root" / "m" / "FeatureData" / "res-net", rows_of("abcd"))
    return tmp_path / "root"


def configure(root: Path, *words: str, layout: str = "multi") -> DictConfig:
    named = ["dataset.collection=m"] if layout == "one" else [f"dataset.{p}_collection=m_{p}" for p in CAPTIONS]
    fixed = [f"experiment=dual_encoding_{layout}folder", f"dataset.rootpath={root}", "dataset.feature=res-net"]
    places = [f"paths.data_dir={root.parent / 'data'}", "experts.frames.dim=4"]
    small = ["model.num_concepts=2", "task.min_count=1"]
    (values,) = compose.preflight(compose.parse([*fixed, *named, *places, *small, *words]))
    cfg = OmegaConf.create({**values, "paths": {**values["paths"], "run_dir": str(root.parent)}})
    assert isinstance(cfg, DictConfig)
    return cfg


def files_below(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}


@pytest.mark.parametrize("layout", ["one", "multi"])
def test_the_second_time_everything_is_found(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    cfg = configure(request.getfixturevalue("one" if layout == "one" else "several"), layout=layout)
    prepare_missing.run(cfg)
    assert capsys.readouterr().out.count("not there yet, made now") == 3
    folder = Path(cfg.paths.data_dir) / cfg.dataset.name
    store = FeatureStore.open(folder / "features" / "res-net")
    assert {video: store.rows([video])[0].shape for video in store.ids}.keys() == set("abcd")
    assert store.rows(["d"])[0][0].tolist() == [ord("d")] * 4

    before = files_below(folder)
    prepare_missing.run(cfg)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[f"{s}:", "found"] for s in ("features", "vocabulary", "concepts")]
    prepare_features.run(cfg)  # compares the files themselves
    assert "made of the same files" in capsys.readouterr().out
    assert files_below(folder) == before


def test_only_what_is_missing_is_made(several: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = configure(several)
    prepare_missing.run(cfg)
    folder = Path(cfg.paths.data_dir) / cfg.dataset.name
    (folder / "vocabulary.json").unlink()
    before = files_below(folder / "features")
    capsys.readouterr()
    prepare_missing.run(cfg)
    assert re.findall(r"^(\w+): not there yet", capsys.readouterr().out, re.MULTILINE) == ["vocabulary"]
    assert (folder / "vocabulary.json").is_file()
    assert files_below(folder / "features") == before


def test_a_later_process_prepares_nothing_and_is_silent(
    several: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = configure(several)
    prepare_missing.run(cfg)
    capsys.readouterr()
    monkeypatch.setenv("LOCAL_RANK", "1")
    prepare_missing.run(cfg)
    assert capsys.readouterr().out == ""


def test_missing_features_are_named_with_what_is_there(several: Path) -> None:
    cfg = configure(several, "dataset.feature=i3d")
    with pytest.raises(UserError) as caught:
        prepare_missing.run(cfg)
    message = str(caught.value)
    for part in CAPTIONS:
        assert str(several / f"m_{part}" / "FeatureData" / "i3d") in message
    assert str(Path(cfg.paths.data_dir) / cfg.dataset.name / "features" / "i3d") in message
    assert "features there: res-net;" in message


def test_one_collection_without_the_features(several: Path) -> None:
    (several / "m_val" / "FeatureData" / "res-net" / "feature.bin").unlink()
    with pytest.raises(UserError, match=r"nor \S+m_val/FeatureData/res-net with feature\.bin"):
        prepare_missing.run(configure(several))
    prepare_features.run(configure(several, "~split.parts.val", "selection=test"))  # it is not needed then


def test_collections_have_to_be_given(one: Path) -> None:
    cfg = configure(one, "dataset.collection=null", layout="one")
    with pytest.raises(UserError, match=r"neither dataset\.collection nor dataset\.train_collection is set"):
        prepare_missing.run(cfg)
    assert [path.name for path in (one.parent / "data").iterdir()] == [".prepare.lock"]


def test_a_data_set_of_another_layout(tmp_path: Path) -> None:
    words = ["dataset=folder", f"paths.data_dir={tmp_path}", "model=dual_encoding", "experts=imagenet"]
    (values,) = compose.preflight(compose.parse([*words, "task.prepare=[features]"]))
    with pytest.raises(UserError, match="dataset=folder is not in the authors' layout; extract them by task=extract"):
        prepare_missing.run(OmegaConf.create(values))  # type: ignore[arg-type]


def test_the_length_of_the_vectors_is_checked_before_copying(several: Path) -> None:
    cfg = configure(several, "experts.frames.dim=5")
    with pytest.raises(UserError, match=r"vectors of 4, expected 5 .*; add experts\.frames\.dim=4"):
        prepare_missing.run(cfg)
    assert not (Path(cfg.paths.data_dir) / cfg.dataset.name / "features").exists()


def test_signs_in_names_do_not_count(one: Path) -> None:
    cfg = configure(one, "dataset.feature=res_net", layout="one")
    prepare_features.run(cfg)
    assert len(FeatureStore.open(Path(cfg.paths.data_dir) / cfg.dataset.name / "features" / "res_net")) == 4


def test_other_files_do_not_replace_a_store(one: Path) -> None:
    cfg = configure(one, layout="one")
    prepare_features.run(cfg)
    numbers = one / "m" / "FeatureData" / "res-net" / "feature.bin"
    numbers.write_bytes(bytes(numbers.stat().st_size))
    with pytest.raises(UserError, match=r"made with other settings.*remove this one"):
        prepare_features.run(cfg)


def test_a_store_of_other_origin_stays(one: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = configure(one, layout="one")
    path = Path(cfg.paths.data_dir) / cfg.dataset.name / "features" / "res-net"
    writer = StoreWriter(path, name="res-net", dim=4, recipe={"extractor": "x"}, ids=["a"])
    writer.write_shard(0, [("a", np.ones((1, 4), np.float32), None, None)])
    writer.finish()
    prepare_features.run(cfg)
    assert capsys.readouterr().out == f"features res-net: found {path}\n"
    assert FeatureStore.open(path).ids == ("a",)


def test_fewer_concepts_than_asked_for(several: Path) -> None:
    with pytest.raises(UserError, match=r"has 4 concepts, expected model\.num_concepts=50; add model\.num_concepts=4"):
        prepare_missing.run(configure(several, "model.num_concepts=50"))


def test_concepts_are_left_out_with_their_expert(several: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = configure(several, "experts=frames", "model.space=latent")
    prepare_missing.run(cfg)
    assert "concepts: no expert of this run is called concepts" in capsys.readouterr().out
    assert not (Path(cfg.paths.data_dir) / cfg.dataset.name / "concepts.json").exists()


def test_published_labels_are_taken_where_they_are(several: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tags = several / "m_train" / "TextData" / "tags"
    (tags / "video_label_th_1").mkdir(parents=True)
    (tags / "video_label_th_1.txt").write_text("a\tdog:2 \nb\tcar:2 red:1 \n")
    (tags / "video_label_th_1" / "tag_vocab_2.json").write_text('["dog", "car"]')
    prepare_concepts.run(configure(several))
    assert f"concepts: published labels of {tags}" in capsys.readouterr().out
    prepare_concepts.run(configure(several, "model.num_concepts=3"))
    lacking = tags / "video_label_th_1" / "tag_vocab_3.json"
    assert f"concepts: computed from the captions, for {lacking} does not exist" in capsys.readouterr().out


def test_unknown_step(several: Path) -> None:
    expected = r"task\.prepare=\[frames\], expected some of words, features, vocabulary, concepts"
    with pytest.raises(UserError, match=expected):
        prepare_missing.run(configure(several, "task.prepare=[frames]"))


def test_task_prepare_does_the_steps_of_an_experiment_unless_others_are_typed(several: Path) -> None:
    prepare.run(configure(several, "task=prepare", "task.steps=[vocabulary]"))
    folder = several.parent / "data" / "visualsearch_m_train"
    assert sorted(path.name for path in folder.iterdir()) == ["vocabulary", "vocabulary.json"]
    prepare.run(configure(several, "task=prepare"))
    assert {"features", "concepts.json", "tags"} < {path.name for path in folder.iterdir()}
