"""task=evaluate: encode each video and caption once, score, rank, report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

from omegaconf import DictConfig
from pytorch_lightning import seed_everything

from src.batch import InputSpec, WindowSpec
from src.data.sliding_window import WindowCount
from src.errors import UserError
from src.tasks import pentathlon, rescoring, validation_scores
from src.tasks.build import build_datamodule, build_model, build_trainer, empty_model
from src.tasks.checkpoint import load_weights, resolve_checkpoint, without_pretrained_file
from src.tasks.exports import check_exports
from src.tasks.outcome import ResultWriter, optimized_value


def run(cfg: DictConfig) -> float | None:
    """Evaluate `ckpt_path=…`, or the pretrained weights of the model (zero-shot).

    Returns:
        The metric named by `optimized_metric`, with its stage replaced by test.

    Raises:
        UserError: no weights were named, or they do not fit the model.
    """
    pretrained = cfg.model.get("pretrained")
    if cfg.ckpt_path is None and pretrained is None and not cfg.task.random_weights:
        raise UserError(
            "task=evaluate found neither ckpt_path= nor model.pretrained=, expected weights to evaluate; "
            "type ckpt_path=runs/fit/…/checkpoints/best.ckpt, model.pretrained=FILE (CLIP models: or openai), "
            "or task.random_weights=true to evaluate an untrained model on purpose"
        )
    # Data before weights: what is missing shows before anything large is fetched.
    datamodule = build_datamodule(cfg, with_windows(cfg, empty_model(cfg).input_spec))
    datamodule.setup()
    check_exports(cfg, by_topics=bool(datamodule.annotation.topics))
    pentathlon.check_part(cfg, datamodule.part("test"))
    rescoring.check(cfg, datamodule)
    seed_everything(cfg.seed, workers=True, verbose=False)
    model = build_model(cfg if cfg.ckpt_path is None else without_pretrained_file(cfg))
    untrained = cfg.ckpt_path is None and model.starts_random
    if untrained and not cfg.task.random_weights:
        raise UserError(
            f"task=evaluate found no weights ({untrained}), expected some to evaluate; type ckpt_path=…, choose a "
            "model with weights, or task.random_weights=true to evaluate an untrained model on purpose"
        )
    label = f"pretrained={pretrained}" if pretrained and not untrained else "random weights"
    if cfg.ckpt_path is not None:
        checkpoint = resolve_checkpoint(cfg.ckpt_path, Path(cfg.paths.run_dir))
        load_weights(model, checkpoint)
        label = str(cfg.ckpt_path)
    writer = ResultWriter(cfg, checkpoint=label)
    model.configure_evaluation(ties=cfg.ties, topk=10)
    trainer = build_trainer(cfg, [writer])
    rescoring.test(trainer, model, datamodule, writer)
    validation_scores.write(trainer, model, datamodule, writer)
    return optimized_value(cfg)


def with_windows(cfg: DictConfig, inputs: InputSpec) -> InputSpec:
    """What the model needs, with the windows that `task.window_stride` asks for.

    Raises:
        UserError: they make no sense, or for this model or data set.
    """
    stride, count, most = (cfg.task.get(key) for key in ("window_stride", "window_count", "max_windows"))
    if stride is None:
        return inputs
    for key, value in (("window_stride", stride), ("max_windows", most)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"task.{key}={value}, expected a whole number of at least 1, or null")
    if count not in get_args(WindowCount):
        raise UserError(f"task.window_count={count}, expected one of {', '.join(get_args(WindowCount))}")
    if inputs.frames is None:
        raise UserError(
            f"task.window_stride={stride} is for models that read frames, this one reads none; drop task.window_stride"
        )
    if cfg.dataset.cache == "disk":
        raise UserError(
            "task.window_stride reads other frames than dataset.cache=disk holds; add dataset.cache=none to decode "
            "the videos"
        )
    return replace(inputs, windows=WindowSpec(stride, count, most))
