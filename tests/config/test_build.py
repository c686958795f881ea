"""Every yaml with a `_target_` can be built: what the checks accept is what the classes accept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer
from torch import nn

from src.config import compose
from src.config.validate import CONF
from src.data.datamodule import RetrievalDataModule
from src.models.base import RetrievalModule
from src.tasks import build


def options(group: str) -> list[str]:
    return [path.stem for path in sorted((CONF / group).glob("*.yaml"))]


def configuration(tmp_path: Path, *words: str) -> DictConfig:
    (values,) = compose.preflight(compose.parse(["selection=last", f"paths.data_dir={tmp_path}", *words]))
    at_home: Any = OmegaConf.create(values)
    at_home.paths.run_dir = str(tmp_path)
    for node in at_home.logger.values():
        if node is not None:
            node.save_dir = str(tmp_path)
    return at_home


# What models on features insist on, and sizes that make them small.
SMALL = "experts=[face,ocr] model.vlad_clusters.text=2 model.vlad_clusters.ocr=2"
FEATURES = {
    "dual_encoding": "experts=imagenet model.vocabulary={folder}/vocabulary.json",
    **dict.fromkeys(("ce", "moee"), f"{SMALL} model.shared_dim=8"),
    **dict.fromkeys(("concat", "concat_mix"), SMALL),
    "mnnet": "experts=s3dg_logits",
}


@pytest.mark.parametrize("option", options("model"))
def test_model(option: str, tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").write_text('{"words": ["dog"]}')
    words = FEATURES.get(option, "").format(folder=tmp_path).split()
    model = build.build_model(configuration(tmp_path, f"model={option}", *words))
    assert isinstance(model, RetrievalModule)
    assert model.input_spec.frames is not None or model.input_spec.experts


@pytest.mark.parametrize("option", options("dataset"))
def test_dataset(option: str, tmp_path: Path) -> None:
    words = (f"dataset={option}", "dataset.recipe.arch=videotext-tiny", "dataset.recipe.pretrained=null")
    # A data set of features alone does not fit the default model; checking it is what it can do by itself.
    alone = [] if "frames" in OmegaConf.load(CONF / "dataset" / f"{option}.yaml").provides else ["task=check_data"]
    cfg = configuration(tmp_path, *words, *alone)
    datamodule = build.build_datamodule(cfg, build.build_model(cfg).input_spec)
    assert isinstance(datamodule, RetrievalDataModule)
    assert datamodule.split.name == cfg.split.name


@pytest.mark.parametrize("scheduler", options("scheduler"))
@pytest.mark.parametrize("optimizer", options("optimizer"))
def test_optimizer_and_scheduler(optimizer: str, scheduler: str, tmp_path: Path) -> None:
    cfg = configuration(tmp_path, f"optimizer={optimizer}", f"scheduler={scheduler}")
    factory, schedule = build.build_optimization(cfg)
    layer = nn.Linear(3, 2)
    optimiser = factory.build(list(layer.named_parameters()), total_steps=10)
    rates = schedule.build(optimiser, total_steps=10) if schedule is not None else None
    before = layer.weight.detach().clone()
    for _ in range(2):  # the first step of a warm-up may have rate 0
        optimiser.zero_grad()
        layer(torch.ones(1, 3)).sum().backward()
        optimiser.step()
        if hasattr(rates, "monitor"):  # such a schedule advances by epochs and is told a metric
            rates.step(1.0)
        elif rates is not None:
            rates.step()
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize("option", options("trainer"))
def test_trainer(option: str, tmp_path: Path) -> None:
    # The GPU files are built on the CPU: everything but the device is checked.
    cfg = configuration(tmp_path, f"trainer={option}", "trainer.accelerator=cpu", "trainer.precision=32-true")
    if cfg.trainer.devices == "auto":
        cfg.trainer.devices = 2
    trainer = build.build_trainer(cfg, [])
    assert isinstance(trainer, Trainer)
    assert trainer.world_size == cfg.trainer.devices
    assert trainer.max_epochs == cfg.trainer.max_epochs


def test_removed_logger_and_callback(tmp_path: Path) -> None:
    words = ("trainer=cpu", "logger=[csv,tensorboard]", "logger.csv=null", "callbacks.lr_monitor=null")
    trainer = build.build_trainer(configuration(tmp_path, *words), [])
    assert [type(logger).__name__ for logger in trainer.loggers] == ["TensorBoardLogger"]
    assert "LearningRateMonitor" not in [type(callback).__name__ for callback in trainer.callbacks]  # type: ignore[attr-defined]
    assert trainer.default_root_dir == str(tmp_path)


@pytest.mark.parametrize("option", options("logger"))
@pytest.mark.parametrize("callbacks", options("callbacks"))
def test_logger_and_callbacks(option: str, callbacks: str, tmp_path: Path) -> None:
    cfg = configuration(tmp_path, "trainer=cpu", f"logger={option}", f"callbacks={callbacks}")
    trainer = build.build_trainer(cfg, [])
    assert [type(logger).__module__.partition(".")[0] for logger in trainer.loggers] == ["pytorch_lightning"] * len(
        cfg.logger
    )
