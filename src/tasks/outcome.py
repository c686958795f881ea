"""From the embeddings of the test part to everything a run leaves behind."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer

from src.batch import TextEmbedding, VideoEmbedding
from src.callbacks import History
from src.data.datamodule import RetrievalDataModule
from src.data.splits import SplitPart
from src.metrics.domains import domain_report
from src.metrics.order import better
from src.metrics.retrieval import RetrievalResult
from src.metrics.skills import skill_report
from src.models.base import RetrievalModule
from src.reports.domains import domains_table
from src.reports.published import published_rows, published_tables
from src.reports.report import ProblemFacts, ReportFacts, VideoFacts, write_report
from src.reports.rescored import Further
from src.reports.table import print_table
from src.tasks import pentathlon
from src.tasks.build import plain
from src.tasks.exports import caption_names, write_exports

THUMBNAIL_SIDE = 112  # pixels
SHOWN_PROBLEMS = 20  # in the terminal; the report lists more
BLOCK = 1024  # captions per call of `similarity` when the matrix is written


class ResultWriter(Callback):
    """Writes metrics.json, ranks.csv, the report and, if wanted, the similarity matrix after a test.

    It runs in process 0 of the trainer, which under a spawning strategy is not the process of the task.

    Args:
        cfg: the run's configuration.
        checkpoint: what was evaluated, for the protocol line.
        history: the training curve, if there was training.

    Attributes:
        further: re-scored numbers and those of the published code, where a test has them.
    """

    def __init__(self, cfg: DictConfig, checkpoint: str, history: History | None = None) -> None:
        self.cfg = cfg
        self.checkpoint = checkpoint
        self.history = history
        self.run_dir = Path(cfg.paths.run_dir)
        self.started = time.perf_counter()
        self.further = Further()
        self._test_started = 0.0

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Text and plain values only: our checkpoints load with weights_only=True.
        checkpoint["videotext"] = {"format": 1, "config": OmegaConf.to_yaml(self.cfg, resolve=True)}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._test_started = time.perf_counter()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Other tests (`src.tasks.topic_search`, `src.tasks.rescoring`) wrap the model, and write for themselves.
        if trainer.is_global_zero and isinstance(pl_module, RetrievalModule):
            self.write(trainer.datamodule.benchmark, pl_module)  # type: ignore[attr-defined]

    @torch.no_grad()
    def write(self, datamodule: RetrievalDataModule, model: RetrievalModule) -> None:
        """Write and print what the model's results and embeddings of the test say."""
        result = model.results["test"]
        text, video = model.embeddings["test"]
        now = time.perf_counter()
        part = datamodule.part("test")
        skills = _skills(part, result, text, video, model)
        domains = _domains(part, result)
        lacking = datamodule.experts.lacking((record.key,) for record in part.videos)
        if self.cfg.save_similarity:
            save_similarity(self.run_dir, part, (text, video), model)
        unknown = len(part.captions) - len(result.caption_ids) - len(result.excluded_captions)
        protocol = self.protocol(datamodule)
        trained = self.cfg.task.name == "fit" or self.cfg.ckpt_path is not None
        published = published_rows(protocol, "fine-tuned" if trained else "zero-shot")
        facts = ReportFacts(
            protocol=protocol,
            captions={i: caption.text for i, caption in enumerate(part.captions)},
            videos={i: VideoFacts(v.id, v.path, v.start_s, v.end_s, v.tags) for i, v in enumerate(part.videos)},
            history=self.history.rows if self.history is not None else [],
            problems=datamodule.problems,
            skills=skills,
            timing={"total_s": round(now - self.started, 2), "test_s": round(now - self._test_started, 2)},
            thumbnail=_Thumbnails(datamodule, part),
            words=datamodule.shown_words(part),
            details={
                "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
                **({"domains": domains} if domains else {}),
                **({"without_expert": lacking} if lacking else {}),
                **({"captions_without_feature": unknown} if unknown else {}),
                **self.further.details(),
                **({"published": [row.to_json() for row in published]} if published else {}),
            },
            tables=(
                *self.further.tables(result, protocol),
                *([domains_table(domains)] if domains else []),
                *published_tables(published, result, self.further),
            ),
        )
        page = write_report(self.run_dir, result, facts)
        print_table(result, facts.protocol, skills, facts.tables)
        print_problems(facts.problems)
        if unknown:
            sys.stdout.write(f"excluded: {unknown} captions have no feature and are no queries\n")
        without = {f"expert {name}": number for name, number in lacking.items()} | {"OCR": protocol.get("without_ocr")}
        for what, number in without.items():
            sys.stdout.write(f"without {what}: {number} of the {len(part.videos)} videos\n" if number else "")
        write_exports(self.cfg, part, (text, video), model)
        pentathlon.write(self.cfg, part, result, self.further.rescored)
        sys.stdout.write(f"report: {page}\n")

    def protocol(self, datamodule: RetrievalDataModule) -> dict[str, Any]:
        """Under which conditions the numbers of the test hold."""
        return {
            **datamodule.describe("test"),
            "rescoring": "none",  # of the plain numbers; re-scored ones have a protocol of their own
            "selection": self.cfg.selection,
            "ties": self.cfg.ties,
            "model": plain(self.cfg.model)["_target_"].rsplit(".", 1)[-1],
            "checkpoint": self.checkpoint,
            "seed": self.cfg.seed,
        }


def print_problems(problems: Sequence[ProblemFacts]) -> None:
    """What was left out, or is used without its words, shortened."""
    for problem in problems[:SHOWN_PROBLEMS]:
        fate = "kept" if problem.kept else "excluded"
        sys.stdout.write(f"{fate}: {problem.kind} {problem.video_id} ({problem.part}): {problem.reason}\n")
    if len(problems) > SHOWN_PROBLEMS:
        sys.stdout.write(f"excluded: {len(problems) - SHOWN_PROBLEMS} more, listed in the run folder\n")


def _skills(
    part: SplitPart, result: RetrievalResult, text: TextEmbedding, video: VideoEmbedding, model: RetrievalModule
) -> dict[str, dict[str, float]] | None:
    skills = [dict(record.tags).get("skill") for record in part.videos]
    if not any(skills):
        return None
    names = list(dict.fromkeys(record.group for record in part.videos if record.group is not None))
    groups = torch.tensor([names.index(r.group) if r.group is not None else -1 for r in part.videos])
    return skill_report(
        text,
        video,
        model.scorer(text, video),
        groups_V=groups,
        skills_V=skills,
        t2v_ranks=result.t2v_ranks,
        caption_ids=result.caption_ids,
    )


def _domains(part: SplitPart, result: RetrievalResult) -> dict[str, dict[str, Any]]:
    """Results by the tag "domain" of the videos; empty where no video has it."""
    domains = [dict(record.tags).get("domain") for record in part.videos]
    return domain_report(result, domains) if any(domains) else {}


def save_similarity(
    run_dir: Path,
    part: SplitPart,
    embeddings: tuple[TextEmbedding, VideoEmbedding],
    model: RetrievalModule,
    prefix: str = "",
) -> None:
    """Write similarity.npy (float32, rows captions, columns videos) and what its rows and columns are.

    videos.txt and captions.txt have one video id per line; captions.tsv also names and quotes the captions:
    `caption<TAB>video<TAB>text`.

    Args:
        run_dir: gets the files.
        part: of the embeddings.
        embeddings: captions and videos.
        model: scores them.
        prefix: of the names of the files.
    """
    text, video = embeddings
    matrix = np.lib.format.open_memmap(
        run_dir / f"{prefix}similarity.npy", mode="w+", dtype=np.float32, shape=(len(text), len(video))
    )
    score = model.scorer(text, video)
    for start in range(0, len(text), BLOCK):
        rows = slice(start, start + BLOCK)
        matrix[rows] = score(text[rows], video).float().cpu().numpy()
    matrix.flush()
    owners = [part.videos[i].id for i in text.video_ids.tolist()]
    texts = [" ".join(part.captions[i].text.split()) for i in text.ids.tolist()]
    named = ["\t".join(row) for row in zip(caption_names(part, text), owners, texts, strict=True)]
    lists = {"videos.txt": [part.videos[i].id for i in video.ids.tolist()], "captions.txt": owners}
    for name, lines in {**lists, "captions.tsv": named}.items():
        (run_dir / f"{prefix}{name}").write_text("\n".join(lines) + "\n", encoding="utf-8")


class _Thumbnails:
    """JPEG of the middle frame of a video of the part, or None when it cannot be read."""

    def __init__(self, datamodule: RetrievalDataModule, part: SplitPart) -> None:
        self.datamodule = datamodule
        self.part = part

    def __call__(self, index: int) -> bytes | None:
        frames = self.datamodule.source.load(self.part.videos[index])
        if frames is None or frames.n_valid == 0:
            return None
        image = Image.fromarray(frames.frames_TCHW[frames.n_valid // 2].transpose(1, 2, 0))
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        return buffer.getvalue()


def optimized_value(cfg: DictConfig) -> float | None:
    """The metric that a sweep optimises: its best epoch, or the test's where there was no such validation.

    None for a recall where the test was a search by topics, and for a loss, which tests do not have;
    `test/topics/<edition>/all/infAP` names one of a search's metrics.
    Read from the files, since under a spawning strategy the work was done in other processes.
    """
    if cfg.optimized_metric is None:
        return None
    run_dir = Path(cfg.paths.run_dir)
    if (run_dir / "metrics.csv").is_file():
        with (run_dir / "metrics.csv").open(newline="") as file:
            values = [float(row[cfg.optimized_metric]) for row in csv.DictReader(file) if row.get(cfg.optimized_metric)]
        if values:
            return min(values) if better(cfg.optimized_metric) == "min" else max(values)
    if not (run_dir / "metrics.json").is_file():
        return None  # nothing was tested
    value: Any = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    keys = cfg.optimized_metric.split("/")[1:]
    if keys == ["loss"] or ("topics" in value and keys[:1] != ["topics"]):
        return None
    for key in keys:
        value = value[key]
    return float(value)
