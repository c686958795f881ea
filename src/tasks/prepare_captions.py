"""task=prepare task.steps=[captions]: normalised caption texts in a file of their own, with a report of the changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from src.batch import InputSpec
from src.data.captions_text import CaptionReport, CaptionRow, CaptionRules, normalise_all, write_captions
from src.data.datamodule import RetrievalDataModule
from src.errors import UserError
from src.tasks.build import build_datamodule

SHOWN = 5


def run(cfg: DictConfig) -> None:
    """Write captions.normalised.jsonl and its report beside the videos of own data, else to DATA/<dataset>.

    Readers of published benchmarks take the published files and nothing else; the written file serves them through
    `dataset=folder`.

    Raises:
        UserError: the data set has no captions.
    """
    datamodule = build_datamodule(cfg, InputSpec(tokenizer=None))
    own = "captions_file" in cfg.dataset
    rows = list(_own_rows(datamodule) if own else _split_rows(datamodule))
    if not rows:
        raise UserError(f"dataset={cfg.dataset.name} has no captions in the parts of its split; run task=check_data")
    rules = CaptionRules(lower=cfg.task.lower, unique=cfg.task.unique)
    kept, report = normalise_all(rows, rules)
    folder = Path(cfg.dataset.data_dir if own else Path(cfg.paths.data_dir) / cfg.dataset.name).expanduser()
    file, report_file = write_captions(folder, kept, report, rules)
    console = Console()
    for line in _lines(report, file, report_file):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    use = f"dataset.captions_file={file.name}"
    if not own:
        videos = cfg.dataset.get("videos_dir", folder)
        use = f"dataset=folder dataset.data_dir={videos} dataset.captions_file={file.resolve()}"
    console.print(f"use it with {use}", markup=False, highlight=False, soft_wrap=True)


def _own_rows(datamodule: RetrievalDataModule) -> Iterator[CaptionRow]:
    """Every caption of the annotation; its part becomes the column `split`, the tags of its video columns."""
    annotation = datamodule.annotation
    lists = {part: annotation.splits.get(name, ()) for part, name in datamodule.split.parts.items()}
    part_of = {video_id: {"split": part} for part, ids in lists.items() for video_id in ids}
    tags = {video.id: dict(video.tags) for video in annotation.videos}
    for caption in annotation.captions:
        video_id = caption.video_id
        yield CaptionRow(video_id, caption.text, part_of.get(video_id, {}) | tags[video_id])


def _split_rows(datamodule: RetrievalDataModule) -> Iterator[CaptionRow]:
    """The captions that the split uses, as its caption policies choose them."""
    for name in datamodule.applied.parts:
        part = datamodule.part(name)
        for caption, index in zip(part.captions, part.video_index, strict=True):
            yield CaptionRow(part.videos[index].id, caption.text, {"split": name})


def _lines(report: CaptionReport, file: Path, report_file: Path) -> Iterator[str]:
    yield (
        f"{report.written} of {report.read} captions in {file}: {report.changed} changed, {len(report.dropped)} "
        f"repeated and {len(report.empty)} empty ones left out"
    )
    if report.by_rule:
        yield "changed by: " + ", ".join(f"{name} {count}" for name, count in report.by_rule.most_common())
    for before, after in report.examples[:SHOWN]:
        yield f"  {before!r} -> {after!r}"
    for video, text in report.empty[:SHOWN]:
        yield f"  empty: {video} {text!r}"
    yield f"report: {report_file}"
