"""task=prepare task.steps=[transcode]: small copies of all videos below a folder, which decode many times faster."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from src.data.benchmarks.folder import CAPTION_FILES
from src.data.transcode import TranscodeRecipe
from src.data.transcode_folder import FolderOptions, FolderResult, transcode_folder
from src.data.video import append_problem
from src.errors import UserError

SHOWN_PROBLEMS = 20


def run(cfg: DictConfig) -> None:
    """Transcode `task.source` into `task.output`, and print the option that makes a run read the copies.

    Raises:
        UserError: there are no videos, none could be transcoded, or the folder holds copies of another recipe.
    """
    task = cfg.task
    recipe = TranscodeRecipe(task.rule, task.fps, task.short_side, task.crf, task.keyint, task.preset, task.audio)
    source = _source(cfg)
    output = Path(task.output or f"{source}_{recipe.fps:g}fps_{recipe.short_side}").expanduser()
    # Own data names its files with their endings, benchmarks by their ids.
    options = FolderOptions(task.workers, task.file_timeout_s, keep_suffix="videos_dir" not in cfg.dataset)
    console = Console()
    columns = (TextColumn("transcode"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar: TaskID = progress.add_task("", total=None)
        result = transcode_folder(
            source,
            output,
            recipe,
            options,
            begin=lambda total, done: progress.update(bar, total=total, completed=done),
            advance=lambda: progress.advance(bar),
        )
    _report(console, result, output, Path(cfg.paths.run_dir) / "problems.jsonl")
    _say(console, f"use them with {_use(cfg, source, output)}")


def _source(cfg: DictConfig) -> Path:
    given = cfg.task.source or cfg.dataset.get("videos_dir") or cfg.dataset.get("data_dir")
    if given is None:
        raise UserError(f"dataset={cfg.dataset.name} has no folder of videos; give task.source=FOLDER")
    return Path(given).expanduser()


def _use(cfg: DictConfig, source: Path, output: Path) -> str:
    """What to type; own data keeps its captions where they are."""
    if "videos_dir" in cfg.dataset:
        return f"dataset.videos_dir={output}"
    words = f"dataset.data_dir={output}"
    if "captions_file" in cfg.dataset:
        names = [cfg.dataset.captions_file] if cfg.dataset.captions_file else CAPTION_FILES
        found = [source / name for name in names if (source / name).is_file()]
        words += f" dataset.captions_file={found[0].resolve()}" if found else ""
    return words


def _report(console: Console, result: FolderResult, output: Path, problems_file: Path) -> None:
    for problem in result.problems:
        append_problem(problems_file, problem)
    copied = f", {result.copied} unreadable and copied as they are" if result.copied else ""
    others = f"; {result.others} other files were left alone" if result.others else ""
    _say(
        console,
        f"{result.before + result.made} videos in {output} ({result.made} new, {result.before} before{copied}), "
        f"{len(result.problems)} failed{others}",
    )
    for problem in result.problems[:SHOWN_PROBLEMS]:
        _say(console, f"  {problem.video_id}: {problem.reason}")
    if len(result.problems) > SHOWN_PROBLEMS:
        _say(console, f"  … and {len(result.problems) - SHOWN_PROBLEMS} more")
    if result.problems:
        _say(console, f"all of them in {problems_file}")
    if not result.before + result.made + result.copied:
        first = result.problems[0]
        raise UserError(
            f"found {len(result.problems)} videos, none could be transcoded (first: {first.path}: "
            f"{first.reason}); run task=check_data"
        )


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
