"""task=prepare task.steps=[frames]: decode every video of a split once into the frame cache that training reads."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from src.data.fill_cache import Filled, FillOptions, fill
from src.data.frame_cache import Recipe
from src.data.splits import Part
from src.data.video import append_problem
from src.errors import UserError
from src.tasks.build import build_datamodule, empty_model

SHOWN_PROBLEMS = 20


def run(cfg: DictConfig) -> None:
    """Fill `dataset.cache_dir` for the parts `task.parts`.

    Raises:
        UserError: no video could be read, the folder holds another recipe, or the disk is full.
    """
    unknown = sorted(set(cfg.task.parts) - set(get_args(Part)))
    if unknown:
        raise UserError(f"found task.parts with {', '.join(unknown)}, expected some of {', '.join(get_args(Part))}")
    if "frames" not in cfg.dataset.provides:
        raise UserError(
            f"found dataset={cfg.dataset.name} without videos, expected one with videos to decode; its features need "
            "no frame cache"
        )
    inputs = empty_model(cfg).input_spec
    if inputs.frames is None:
        raise UserError("found a model that reads no frames, expected one that does; give model=clip2video")
    datamodule = build_datamodule(_with(cfg, {"dataset": {"cache": "none"}}), inputs)
    present = [part for part in cfg.task.parts if part in datamodule.applied.parts]
    records = list({video.id: video for part in present for video in datamodule.part(part).videos}.values())
    task = cfg.task
    recipe = Recipe(inputs.frames, task.extra_frames, task.format, task.quality, cfg.dataset.backend)
    options = FillOptions(task.workers, cfg.dataset.timeout_s, task.videos_per_shard)
    console = Console()
    columns = (TextColumn("frame cache"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(records))
        filled = fill(Path(cfg.dataset.cache_dir), records, recipe, options, lambda n: progress.advance(bar, n))
    _report(console, filled, Path(cfg.dataset.cache_dir), Path(cfg.paths.run_dir) / "problems.jsonl")


def _with(cfg: DictConfig, changes: dict[str, dict[str, object]]) -> DictConfig:
    merged = OmegaConf.merge(cfg, changes)
    assert isinstance(merged, DictConfig)
    return merged


def _report(console: Console, filled: Filled, folder: Path, problems_file: Path) -> None:
    for problem in filled.problems:
        append_problem(problems_file, problem)
    console.print(
        f"{filled.before + filled.stored} videos in {folder} ({filled.stored} new, {filled.before} before), "
        f"{len(filled.problems)} not readable",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for problem in filled.problems[:SHOWN_PROBLEMS]:
        console.print(f"  {problem.video_id}: {problem.reason}", markup=False, highlight=False, soft_wrap=True)
    if not filled.problems:
        return
    if len(filled.problems) > SHOWN_PROBLEMS:
        console.print(f"  … and {len(filled.problems) - SHOWN_PROBLEMS} more")
    console.print(f"all of them in {problems_file}", markup=False, highlight=False, soft_wrap=True)
    if not filled.before + filled.stored:
        raise UserError(
            f"none of {len(filled.problems)} videos could be read (first: {filled.problems[0].path}: "
            f"{filled.problems[0].reason}); run task=check_data"
        )
