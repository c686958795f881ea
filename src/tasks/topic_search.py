"""The test of data sets that are searched by topics: TRECVID run files, and inferred AP where there are judgements.

A topic describes no video, several shots answer it, and only a sample of the shots was judged: ranks and recall have no
meaning here. The shots are encoded once for the topics of all editions.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer

from src.batch import TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.data.datamodule import BatchLoader, Loaders, RetrievalDataModule
from src.errors import UserError
from src.metrics.infap import SearchResult, evaluate_run
from src.models.base import RetrievalModule
from src.reports.protocol import PROTOCOL_KEYS, protocol_line
from src.reports.report import excluded_counts
from src.reports.topic_table import editions_table
from src.reports.trecvid import perf_text, write_run
from src.tasks.build import build_submission
from src.tasks.outcome import ResultWriter, print_problems

RUN_FILE = "id.sent.score.txt"
TOPICS, SHOTS = 16, 16384  # scored at a time: a measure that compares every dimension needs much memory per pair


def test(trainer: Trainer, model: RetrievalModule, datamodule: RetrievalDataModule, writer: ResultWriter) -> None:
    """Test the model: by topics where the data set has some, else by captions."""
    if not datamodule.annotation.topics:
        trainer.test(model, datamodule=Loaders(datamodule), verbose=False)
        return
    trainer.test(TopicSearch(model, writer), datamodule=_SearchLoaders(datamodule), verbose=False)


class _SearchLoaders(Loaders):
    """Shots and topics in place of videos and captions."""

    def test_dataloader(self) -> list[BatchLoader[Any]]:
        return self.benchmark.search_dataloaders()


class TopicSearch(LightningModule):
    """A model whose test is a search by topics; it writes what the run leaves behind.

    Args:
        model: encodes and scores.
        writer: knows the run.
    """

    def __init__(self, model: RetrievalModule, writer: ResultWriter) -> None:
        super().__init__()
        self.model = model
        self.writer = writer

    def test_step(self, batch: TextBatch | VideoBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.model.test_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        text, video = self.model.collected("test")
        if not self.trainer.is_global_zero:
            return
        datamodule: RetrievalDataModule = self.trainer.datamodule.benchmark  # type: ignore[attr-defined]
        with torch.autocast(self.device.type, enabled=False):
            results = search(self.model, text, video, datamodule, self.writer)
        write_outcome(self.writer, datamodule, results, len(video))


def search(
    model: RetrievalModule,
    text: TextEmbedding,
    video: VideoEmbedding,
    datamodule: RetrievalDataModule,
    writer: ResultWriter,
) -> dict[str, SearchResult | None]:
    """Write `topics/<edition>/` of the run folder: run files, evaluation, scores.

    Args:
        model: its `scorer` sees one edition at a time, as scores that depend on the whole matrix were published so.
        text: the topics of all editions, one after another.
        video: the shots.
        datamodule: topics, judgements and the shots' names.
        writer: the run.

    Returns:
        Edition -> its metrics; None where it has no judgements.
    """
    submission = build_submission(writer.cfg)
    part = datamodule.part("test")
    names = np.array([part.videos[index].id for index in video.ids.tolist()])
    results: dict[str, SearchResult | None] = {}
    start = 0
    for edition, topics in datamodule.annotation.topics.items():
        ids = [topic.id for topic in topics]
        scores_QV = score_topics(model, text[start : start + len(ids)], video, ids)
        start += len(ids)
        folder = writer.run_dir / "topics" / edition
        run = write_run(folder / RUN_FILE, _ranked(ids, names, scores_QV, submission.depth), submission)
        qrels = datamodule.annotation.qrels.get(edition, ())
        results[edition] = result = evaluate_run(run, qrels) if qrels else None
        if result is not None:
            (folder / "perf.txt").write_text(perf_text(result, prefix="1"), encoding="utf-8")
        if writer.cfg.save_similarity:
            np.save(folder / "similarity.npy", scores_QV)
            (folder / "topics.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
            (folder / "videos.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return results


def score_topics(model: RetrievalModule, text: TextEmbedding, video: VideoEmbedding, names: list[str]) -> np.ndarray:
    """float32 scores_QV, topics by shots.

    Raises:
        UserError: a score is not a number.
    """
    score = model.scorer(text, video)
    scores_QV = torch.empty(len(text), len(video))
    for row in range(0, len(text), TOPICS):
        rows = slice(row, row + TOPICS)
        for column in range(0, len(video), SHOTS):
            columns = slice(column, column + SHOTS)
            scores_QV[rows, columns] = score(text[rows], video[columns]).float().cpu()
    broken = scores_QV.isnan().any(dim=1).tolist()
    if any(broken):
        raise UserError(
            f"found NaN in the scores of topics {', '.join(n for n, bad in zip(names, broken, strict=True) if bad)}, "
            "expected finite numbers; look for a diverged checkpoint (NaN weights) or empty features"
        )
    return scores_QV.numpy()


def _ranked(
    ids: list[str], names: np.ndarray, scores_QV: np.ndarray, depth: int | None
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(topic, its (shot, score), best first); shots of equal score stand in the order of the gallery."""
    for topic, scores_V in zip(ids, scores_QV, strict=True):
        order = np.argsort(-scores_V, kind="stable")[:depth]
        # The shortest text that reads back as the same float32.
        yield topic, list(zip(names[order].tolist(), scores_V[order].astype(str).tolist(), strict=True))


def write_outcome(
    writer: ResultWriter, datamodule: RetrievalDataModule, results: dict[str, SearchResult | None], num_shots: int
) -> None:
    """Write metrics.json and print the table and what was excluded."""
    known = {**writer.protocol(datamodule), "num_videos": num_shots, "num_captions": None, "captions_per_video": None}
    judged = {edition: len(result.topics) if result else 0 for edition, result in results.items()}
    protocol = {key: known.get(key) for key in PROTOCOL_KEYS} | {"judged_topics": judged}
    problems = datamodule.problems
    content = {
        "protocol": protocol,
        "topics": {edition: result.to_json() for edition, result in results.items() if result is not None},
        "timing": {"total_s": round(time.perf_counter() - writer.started, 2)},
        "excluded": {"by_part": excluded_counts(problems)},
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    (writer.run_dir / "metrics.json").write_text(text + "\n", encoding="utf-8")
    editions_table(protocol_line(protocol), results).print()
    print_problems(problems)
    sys.stdout.write(f"run files: {writer.run_dir / 'topics'}\n")
