"""task=check_data: report everything missing, broken, duplicated or leaking between splits, in one pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from src.batch import FrameSpec, InputSpec
from src.data.annotation import Annotation, VideoRecord
from src.data.checks import Finding, find_all
from src.data.datamodule import RetrievalDataModule
from src.data.datasets import FrameSource
from src.data.feature_checks import find_in_features
from src.data.feature_source import FeatureSource, Keys
from src.data.splits import captions_of
from src.data.stream_checks import find_in_listings
from src.data.streamed import StreamedDataModule
from src.data.word_checks import find_in_words
from src.errors import UserError
from src.tasks.build import build_datamodule, experts_of, text_of

# Enough to touch the beginning, the middle and the end of a file.
PROBE = FrameSpec(num_frames=3, image_size=32)


def run(cfg: DictConfig) -> None:
    """Check the data set under its split; the list goes to the terminal and to check_data.json in the run folder.

    With experts, a video is at hand when one of them has it, and its file is not asked for. Stores of text features are
    compared with the captions of each part. The OCR of `dataset.ocr_dir` is looked at where there is some. Of data sets
    of millions (webvid, cc3m), files are counted and listed, but not decoded.

    Raises:
        UserError: something is wrong; notes alone are no error.
    """
    experts = experts_of(cfg)
    with_files = "frames" in cfg.dataset.provides and not experts
    datamodule = build_datamodule(cfg, InputSpec(None, PROBE if with_files else None, experts, text_of(cfg)))
    datamodule.cache = "none"  # the files themselves are the question
    if isinstance(datamodule, StreamedDataModule) and with_files:
        return _finish(cfg, datamodule, *find_in_listings(datamodule, Path(cfg.paths.run_dir)))
    annotation = datamodule.read()
    probe = FrameSource(PROBE, backend=cfg.dataset.backend, timeout_s=cfg.dataset.timeout_s)

    def reason(video: VideoRecord) -> str | None:
        return None if probe.load(video) is not None else probe.problems[video.id].reason

    findings = find_all(
        datamodule.split,
        annotation,
        available=datamodule.is_available if with_files else None,
        unreadable=reason if cfg.task.decode and with_files else None,
    )
    lists = {part: annotation.splits.get(name, ()) for part, name in datamodule.split.parts.items()}
    keys = {video.id: video.key for video in annotation.videos}
    items: dict[str, list[Keys]] = {part: [(keys.get(i, i),) for i in ids] for part, ids in lists.items()}
    words = {part: _caption_keys(datamodule, annotation, part, ids) for part, ids in lists.items()}
    findings += find_in_features(datamodule.experts, items, read_all=cfg.task.decode)
    findings += find_in_features(datamodule.text_features, words, read_all=cfg.task.decode)
    findings += datamodule.own_findings() + _mask(datamodule)
    in_words, with_words = _words(datamodule, annotation, cfg.task.decode)
    findings = sorted(findings + in_words, key=lambda finding: finding.severity)
    parts = _parts(datamodule, annotation, items, words, with_files)
    for row in parts:
        row |= {"with OCR": with_words[row["part"]]} if row["part"] in with_words else {}
    _finish(cfg, datamodule, findings, parts)


def _finish(
    cfg: DictConfig, datamodule: RetrievalDataModule, findings: Sequence[Finding], parts: Sequence[dict[str, Any]]
) -> None:
    """Write and print the report.

    Raises:
        UserError: something is wrong.
    """
    path = Path(cfg.paths.run_dir) / "check_data.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"parts": parts, "findings": [asdict(finding) for finding in findings]}
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _print(findings, parts)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        kinds = ", ".join(f"{len(finding.items)} {finding.kind} ({finding.where})" for finding in errors)
        raise UserError(f"data set {datamodule.name!r} is not clean: {kinds}; every item is listed in {path}")


def _mask(datamodule: RetrievalDataModule) -> list[Finding]:
    """The captions that the mask leaves out of training, or why it cannot be used."""
    try:
        kept = datamodule.kept_captions
    except UserError as error:
        return [Finding("error", "unusable caption mask", "train", (str(error),))]
    if kept is None or kept.kept_N.all():
        return []
    captions = datamodule.applied.part("train").captions
    keys = tuple(captions[index].keys[0] for index in np.flatnonzero(~kept.kept_N).tolist())
    return [Finding("note", "caption left out of training", "train", keys)]


def _caption_keys(datamodule: RetrievalDataModule, annotation: Annotation, part: str, ids: Sequence[str]) -> list[Keys]:
    """The keys of every caption of a part, under which text features are stored."""
    captions = captions_of(datamodule.split, annotation, part, ids)
    return [caption.keys for of_video in captions.values() for caption in of_video]


def _words(
    datamodule: RetrievalDataModule, annotation: Annotation, read_all: bool
) -> tuple[list[Finding], dict[str, int]]:
    """What is wrong with the OCR of each part, and how many of its videos have some."""
    records = {video.id: video for video in annotation.videos}
    lists = {
        part: [records[i] for i in dict.fromkeys(annotation.splits.get(name, ())) if i in records]
        for part, name in datamodule.split.parts.items()
    }
    folder = Path(datamodule.ocr_dir).expanduser() if datamodule.ocr_dir else None
    return find_in_words(folder, lists, read_all=read_all)


def _parts(
    datamodule: RetrievalDataModule,
    annotation: Annotation,
    items: dict[str, list[Keys]],
    words: dict[str, list[Keys]],
    with_files: bool,
) -> list[dict[str, Any]]:
    """One row per part: what the files list, and how much of it is at hand."""
    records = {video.id: video for video in annotation.videos}
    rows = []
    for part, keys in items.items():
        ids = annotation.splits.get(datamodule.split.parts[part], ())
        captions = captions_of(datamodule.split, annotation, part, ids)
        row: dict[str, Any] = {
            "part": part,
            "list": datamodule.split.parts[part],
            "videos": len(captions),
            "captions": sum(map(len, captions.values())),
            "policy": datamodule.split.captions.get(part, "all"),
        }
        if with_files:
            row["files"] = sum(datamodule.is_available(records[i]) for i in captions if i in records)
        rows.append(row | _at_hand(datamodule.experts, keys) | _at_hand(datamodule.text_features, words[part]))
    for edition, topics in annotation.topics.items():
        judged = len(annotation.qrels.get(edition, ()))
        rows.append({"part": f"topics {edition}", "captions": len(topics), "judgements": judged})
    return rows


def _at_hand(source: FeatureSource, keys: Sequence[Keys]) -> dict[str, int]:
    counts = {}
    for spec in source.specs:
        try:
            store = source.store(spec)
        except UserError:  # a finding of its own
            continue
        counts[f"with {spec.name}"] = sum(any(key in store for key in of_item) for of_item in keys)
    return counts


def _print(findings: Sequence[Finding], parts: Sequence[dict[str, Any]]) -> None:
    console = Console()
    columns = list(dict.fromkeys(name for row in parts for name in row))
    table = Table(*columns)
    for row in parts:
        table.add_row(*(str(row.get(name, "")).replace("[", r"\[") for name in columns))
    console.print(table)
    if not findings:
        console.print("nothing to report")
        return
    table = Table("severity", "kind", "where", "count", "first")
    for column in table.columns:
        column.overflow = "fold"
    for finding in findings:
        # Texts of the data may look like rich's markup.
        first = finding.items[0].replace("[", r"\[")[:200]
        table.add_row(finding.severity, finding.kind, finding.where, str(len(finding.items)), first)
    console.print(table)
