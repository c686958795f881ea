"""task=check_data: report everything missing, broken, duplicated or leaking between splits, in one pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor

from src.batch import FrameSpec, InputSpec
from src.data.annotation import VideoRecord
from src.data.checks import Finding, find_all
from src.data.datasets import FrameSource
from src.errors import UserError
from src.tasks.build import build_datamodule

# Enough to touch the beginning, the middle and the end of a file.
PROBE = FrameSpec(num_frames=3, image_size=32)


def run(cfg: DictConfig) -> None:
    """Check the data set under its split; the list goes to the terminal and to check_data.json in the run folder.

    Raises:
        UserError: something is wrong; notes alone are no error.
    """
    datamodule = build_datamodule(cfg, InputSpec(_no_tokens, PROBE))
    datamodule.cache = "none"  # the files themselves are the question
    annotation = datamodule.read()
    probe = FrameSource(PROBE, backend=cfg.dataset.backend, timeout_s=cfg.dataset.timeout_s)

    def reason(video: VideoRecord) -> str | None:
        return None if probe.load(video) is not None else probe.problems[video.id].reason

    findings = find_all(
        datamodule.split,
        annotation,
        available=datamodule.is_available,
        unreadable=reason if cfg.task.decode else None,
    )
    path = Path(cfg.paths.run_dir) / "check_data.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False) + "\n")
    _print(findings, len(annotation.videos), len(annotation.captions))
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        kinds = ", ".join(f"{len(finding.items)} {finding.kind} ({finding.where})" for finding in errors)
        raise UserError(f"data set {datamodule.name!r} is not clean: {kinds}; every item is listed in {path}")


def _print(findings: Sequence[Finding], num_videos: int, num_captions: int) -> None:
    console = Console()
    if not findings:
        console.print(f"{num_videos} videos and {num_captions} captions: nothing to report")
        return
    table = Table(title=f"{num_videos} videos, {num_captions} captions", title_justify="left")
    for column in ("severity", "kind", "where", "count", "first"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        # Texts of the data may look like rich's markup.
        first = finding.items[0].replace("[", r"\[")[:200]
        table.add_row(finding.severity, finding.kind, finding.where, str(len(finding.items)), first)
    console.print(table)


def _no_tokens(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """No caption is encoded here."""
    return torch.zeros(len(captions), 1, dtype=torch.int64), torch.ones(len(captions), 1, dtype=torch.bool)
