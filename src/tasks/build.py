"""From a validated configuration to objects: the only place where Hydra instantiates anything."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger

from src.batch import ExpertSpec, InputSpec
from src.callbacks import AtomicCheckpointIO
from src.config.schema import DECLARED
from src.data.datamodule import RetrievalDataModule
from src.data.splits import SplitSpec
from src.metrics.rescoring import Rescoring
from src.models.base import OptimizerFactory, RetrievalModule, SchedulerFactory
from src.reports.trecvid import Submission


def plain(node: DictConfig) -> dict[str, Any]:
    """Resolve a node to plain dicts, lists and scalars: what models may store and checkpoints may hold."""
    container = OmegaConf.to_container(node, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _make(node: Mapping[str, Any], **extra: Any) -> Any:
    # Objects are passed to the partial: Hydra would turn dataclasses among its own keywords into configurations.
    return instantiate({**node, "_recursive_": False, "_convert_": "all", "_partial_": True})(**extra)


def _arguments(cfg: DictConfig, group: str) -> dict[str, Any]:
    """The constructor arguments of a group: its keys less the facts declared for validation."""
    return {key: value for key, value in plain(cfg[group]).items() if key not in DECLARED[group]}


def build_model(cfg: DictConfig) -> RetrievalModule:
    """The configured model. It is given its parts (tables with a `_target_` of their own) without what it adds."""
    arguments = _arguments(cfg, "model")
    parts = {key: value for key, value in arguments.items() if isinstance(value, dict) and "_target_" in value}
    rest = {key: value for key, value in arguments.items() if key not in parts}
    return _make(rest, **{key: _part(value) for key, value in parts.items()})


def _part(node: Mapping[str, Any]) -> partial[Any]:
    return partial(get_class(node["_target_"]), **{key: value for key, value in node.items() if key != "_target_"})


def empty_model(cfg: DictConfig) -> RetrievalModule:
    """The configured model with shapes but without values: nothing is allocated or fetched."""
    model_cfg = plain(cfg.model)
    if "pretrained" in model_cfg:
        model_cfg["pretrained"] = None
    with torch.device("meta"):
        return build_model(OmegaConf.create({"model": model_cfg}))


def build_datamodule(cfg: DictConfig, inputs: InputSpec) -> RetrievalDataModule:
    """The benchmark, told which split to use and what the model wants; unreadable files go to problems.jsonl."""
    return _make(
        _arguments(cfg, "dataset"),
        split=SplitSpec(**plain(cfg.split)),
        inputs=inputs,
        seed=cfg.seed,
        problems_file=Path(cfg.paths.run_dir) / "problems.jsonl",
        stores=store_folders(cfg),
    )


def experts_of(cfg: DictConfig) -> tuple[ExpertSpec, ...]:
    """The chosen entries of conf/experts, as models and data take them."""
    entries = plain(cfg.experts).items()
    return tuple(ExpertSpec(name, **{k: v for k, v in entry.items() if k != "path"}) for name, entry in entries)


def text_of(cfg: DictConfig) -> tuple[ExpertSpec, ...]:
    """The chosen entry of conf/text, as models and data take it; nothing for text=none."""
    entry = {key: value for key, value in plain(cfg.text).items() if key != "path"}
    return (ExpertSpec(**entry),) if entry else ()


def store_folders(cfg: DictConfig) -> dict[str, Path]:
    """Name of each feature store that the experts, text features and teachers of the run read -> its folder."""
    default = Path(cfg.paths.data_dir) / cfg.dataset.name / "features"
    experts, text = plain(cfg.experts), plain(cfg.text)
    entries = [*experts.items(), *([(str(text["name"]), text)] if text else [])]
    folders = {entry.get("store") or name: entry.get("path") for name, entry in entries}
    folders |= {name: name if "/" in name else None for name in cfg.model.get("teachers") or ()}
    return {name: Path(path).expanduser() if path else default / name for name, path in folders.items()}


def extractor_class(cfg: DictConfig) -> type:
    """What `build_extractor` will make."""
    return get_class(cfg.extractor._target_)


def build_extractor(cfg: DictConfig) -> Any:
    """An `Extractor`, or a `Teacher`."""
    return _make(plain(cfg.extractor))


def build_rescoring(cfg: DictConfig) -> Rescoring | None:
    """The method of re-scoring; None for rescoring=none."""
    node = cfg.get("rescoring")
    return _make(plain(node)) if node else None


def build_submission(cfg: DictConfig) -> Submission:
    """What TRECVID run files say of the run; defaults for tasks that do not ask."""
    about = plain(cfg.task).get("submission")
    return _make(about) if about else Submission()


def build_optimization(cfg: DictConfig) -> tuple[OptimizerFactory, SchedulerFactory | None]:
    scheduler = plain(cfg.scheduler)
    return _make(plain(cfg.optimizer)), _make(scheduler) if scheduler else None


def build_trainer(cfg: DictConfig, callbacks: list[Callback]) -> Trainer:
    """The Lightning trainer with the configured loggers and callbacks, and our atomic checkpoints."""
    quiet()
    loggers: list[Logger] = [_make(node) for node in plain(cfg.logger).values() if node]
    configured: list[Callback] = [_make(node) for node in plain(cfg.callbacks).values() if node]
    # A bar redraws one line, which a pipe or a file cannot; `History` logs one line per epoch anyway.
    bar = cfg.trainer.enable_progress_bar and sys.stderr.isatty()
    if not bar:
        configured = [c for c in configured if not hasattr(c, "refresh_rate")]
    if not loggers:  # a monitor without a logger is an error in Lightning
        configured = [c for c in configured if type(c).__name__ != "LearningRateMonitor"]
    return _make(
        plain(cfg.trainer),
        logger=loggers or False,
        callbacks=configured + callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=bar,
        default_root_dir=cfg.paths.run_dir,
    )


def quiet() -> None:
    """Silence messages of libraries that tell our user nothing to act on."""
    # Tips, device tables and "litlogger" advertising (no trainer flag switches them off in 2.6).
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",  # in-memory and memory-mapped frames are faster without
        r".*number of training batches.*smaller than the logging interval.*",  # epochs are logged as well
        r".*LeafSpec.*is deprecated.*",  # pytree call inside Lightning 2.6 with torch 2.15
        r".*Checkpoint directory .* exists and is not empty.*",  # a resumed run continues in its folder
        r"The .grad attribute of a Tensor that is not a leaf.*",  # torch.compile looks at it while it traces
    ):
        warnings.filterwarnings("ignore", message=message)
