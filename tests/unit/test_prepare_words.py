"""`task.prepare=[words]`: a training that reads has its words read before, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from src.config import compose
from src.data.features.store import FeatureStore
from src.data.ocr_files import open_ocr
from src.errors import UserError
from src.tasks import prepare, prepare_missing
from src.tasks.build import build_datamodule, empty_model

SMALL = ("dataset.num_train=10", "dataset.num_val=10", "dataset.num_test=10", "logger=none", "callbacks=none")
TWO_PROCESSES = ("trainer=ddp_cpu", "trainer.devices=2")  # of the training; reading takes one


def configuration(data: Path, *words: str) -> Any:
    (values,) = compose.preflight(
        compose.parse(["experiment=textvr_toy", f"paths.data_dir={data}", f"paths.run_dir={data}/run", *SMALL, *words])
    )
    return OmegaConf.create(values)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    prepare_missing.run(configuration(folder, *TWO_PROCESSES))
    return folder


def test_the_words_on_the_signs_are_read(data: Path) -> None:
    (annotation,) = data.glob("toy/*/annotation.json")
    videos = json.loads(annotation.read_text(encoding="utf-8"))["videos"]
    store = FeatureStore.open(data / "toy" / "ocr")
    assert len(store.ids) + len(store.missing) == len(videos) == 30
    cfg = configuration(data)
    datamodule = build_datamodule(cfg, empty_model(cfg).input_spec)
    records = {video.id: video for video in datamodule.annotation.videos}
    reader = open_ocr(data / "toy" / "ocr")
    signs = {video["id"]: video["scene"]["word"].lower() for video in videos if video["skill"] == "reading"}
    read = {name: {track.text.lower() for track in reader.read(records[name]).tracks} for name in signs}
    assert sum(word in read[name] for name, word in signs.items()) >= len(signs) - 1


def test_what_is_there_stays(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (data / "toy" / "ocr" / "manifest.json").stat().st_mtime_ns
    prepare_missing.run(configuration(data))
    assert f"words: found {data}/toy/ocr" in capsys.readouterr().out
    prepare.run(configuration(data, "task=prepare"))  # the experiment says which step
    assert "(1 of 1 shards were there before)" in capsys.readouterr().out.replace("\n", " ")
    assert (data / "toy" / "ocr" / "manifest.json").stat().st_mtime_ns == before


def test_a_model_that_does_not_read_waits_for_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_missing.run(configuration(tmp_path, "model.mode=vision"))
    assert "words: found nothing to read: this model does not read words" in capsys.readouterr().out
    assert not (tmp_path / "toy").exists()


def test_files_of_somebody_else_are_used_and_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "toy" / "ocr" / "a.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    prepare_missing.run(configuration(tmp_path))
    prepare.run(configuration(tmp_path, "task=prepare", "task.steps=[words]"))
    assert capsys.readouterr().out.count(f"words: found {file.parent}") == 2
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.ocr_dir=null, expected the folder .* set dataset\.ocr_dir=FOLDER"):
        prepare_missing.run(configuration(tmp_path, "dataset.ocr_dir=null"))
