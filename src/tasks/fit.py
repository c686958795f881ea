"""task=fit: train, select the checkpoint by `selection`, test it, write the report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.utilities.exceptions import SIGTERMException

from src.callbacks import History, MovableCheckpoint, SaveOnSigterm
from src.data.datamodule import RetrievalDataModule
from src.errors import UserError
from src.metrics.order import better
from src.models.base import RetrievalModule
from src.models.weights import check_fit
from src.tasks import prepare_missing, rescoring, validation_scores
from src.tasks.build import build_datamodule, build_model, build_optimization, build_trainer, empty_model
from src.tasks.checkpoint import load_weights, read_checkpoint, resolve_checkpoint, without_pretrained_file
from src.tasks.loaders import Loaders
from src.tasks.outcome import ResultWriter, optimized_value

SIGTERM_EXIT_CODE = 143
# What the order of the batches, the schedule or the meaning of the metrics depends on.
FIXED_BY_A_RUN = (
    *("seed", "dataset.name", "split.name", "dataset.batch_size", "dataset.train_samples"),
    *("dataset.caption_mask", "model.teachers"),
)


def run(cfg: DictConfig) -> float | None:
    """Train and test.

    Returns:
        The metric named by `optimized_metric`, for sweeps.

    Raises:
        UserError: a mistake in configuration, data or checkpoint, or a step of `task.prepare` that failed.
        SystemExit: with code 143 after SIGTERM; `checkpoints/last.ckpt` is saved.
    """
    run_dir = Path(cfg.paths.run_dir)
    prepare_missing.run(cfg)  # the model and the data need what it makes
    # Data before weights: what is missing shows before anything large is fetched.
    datamodule = build_datamodule(cfg, empty_model(cfg).input_spec)
    datamodule.setup()
    rescoring.check(cfg, datamodule)
    if cfg.selection == "last" and "val" not in datamodule.applied.parts:
        cfg.trainer.limit_val_batches = 0  # nothing to validate on, and nothing to select
    seed_everything(cfg.seed, workers=True, verbose=False)
    model = build_model(cfg if cfg.task.weights is None else without_pretrained_file(cfg))
    if cfg.task.weights is not None:
        load_weights(model, resolve_checkpoint(cfg.task.weights, run_dir, "task.weights"))
    datamodule.select_on("test" if cfg.selection == "test" else "val")
    history = History(run_dir / "metrics.csv")
    writer = ResultWriter(cfg, checkpoint="best" if cfg.selection != "last" else "last", history=history)
    folder = run_dir / "checkpoints"
    callbacks = [history, SaveOnSigterm(folder / "last.ckpt"), *_checkpoints(cfg, folder), writer]
    trainer = build_trainer(cfg, callbacks)
    _configure(cfg, model, datamodule, trainer)
    resume = _resume_path(cfg, model, run_dir)
    try:
        trainer.fit(model, datamodule=Loaders(datamodule), ckpt_path=resume, weights_only=True)
    except SIGTERMException:
        raise SystemExit(SIGTERM_EXIT_CODE) from None
    if trainer.interrupted:
        raise SystemExit(1)
    if cfg.selection != "last":
        load_weights(model, folder / "best.ckpt")
    if "test" in datamodule.applied.parts:
        rescoring.test(trainer, model, datamodule, writer)
        validation_scores.write(trainer, model, datamodule, writer)
    elif trainer.is_global_zero:
        sys.stdout.write("nothing was tested: the split has no test part\n")
    return optimized_value(cfg)


def _checkpoints(cfg: DictConfig, folder: Path) -> list[Callback]:
    """best.ckpt by the metric that `selection` names (absent for "last"), and last.ckpt after every epoch.

    Two callbacks, since Lightning's `save_last` only writes when the best one changes.
    """
    common: dict[str, Any] = {
        "dirpath": folder,
        "auto_insert_metric_name": False,  # the metric's slashes would become folders
        "enable_version_counter": False,
        "save_on_train_epoch_end": True,  # after validation, and after `History` has its row
    }
    last = MovableCheckpoint(filename="last", **common)
    if cfg.selection == "last":
        return [last]
    monitor, later_wins = cfg.optimized_metric or "val/t2v/R1", cfg.selection_tie == "last"
    best = MovableCheckpoint(filename="best", monitor=monitor, mode=better(monitor), later_wins=later_wins, **common)
    return [best, last]


def _configure(cfg: DictConfig, model: RetrievalModule, datamodule: RetrievalDataModule, trainer: Trainer) -> None:
    """Tell the model its optimisation and evaluation options."""
    optimizer, scheduler = build_optimization(cfg)
    batches = datamodule.batches_per_epoch(trainer.world_size)
    limit = cfg.trainer.overfit_batches or cfg.trainer.limit_train_batches
    limit = int(cfg.trainer.fast_dev_run) or limit
    batches = min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
    total_steps = -(-batches // cfg.trainer.accumulate_grad_batches) * cfg.trainer.max_epochs
    if cfg.trainer.max_steps > 0:
        total_steps = min(total_steps, cfg.trainer.max_steps)
    model.configure(optimizer, scheduler, total_steps=total_steps, seed=cfg.seed)
    model.configure_loss(cache_chunks=cfg.loss.cache_chunks)
    # Only where it selects: no other run has to encode and score what its loss needs.
    loss_batch = cfg.dataset.batch_size if cfg.optimized_metric == "val/loss" else 0
    model.configure_evaluation(ties=cfg.ties, topk=10, loss_batch=loss_batch)


def _resume_path(cfg: DictConfig, model: RetrievalModule, run_dir: Path) -> Path | None:
    """The checkpoint to go on from, checked against the model and the trainer before anything starts."""
    if cfg.ckpt_path is None:
        return None
    path = resolve_checkpoint(cfg.ckpt_path, run_dir)
    checkpoint = read_checkpoint(path)
    model.on_load_checkpoint(checkpoint)  # other words say more than other shapes
    check_fit(model, checkpoint["state_dict"], str(path))
    if "optimizer_states" not in checkpoint:
        raise UserError(
            f"{path} holds weights only, expected a checkpoint of task=fit with its optimiser; "
            f"start from these weights with task.weights={path}, or resume from a last.ckpt"
        )
    _refuse_changes(cfg, OmegaConf.create(checkpoint["videotext"]["config"]), path)
    return path


def _refuse_changes(cfg: DictConfig, before: DictConfig, path: Path) -> None:
    """A resumed run continues the same sequence of batches; options that would change it are refused."""
    for key in FIXED_BY_A_RUN:
        was, now = OmegaConf.select(before, key), OmegaConf.select(cfg, key)
        if was != now:
            raise UserError(
                f"{path} was trained with {key}={was}, found {key}={now}, expected the same to resume; "
                f"type {key}={was}, or start a new run with task.weights={path}"
            )
