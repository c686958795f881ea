"""The test of data sets that are searched by topics: TRECVID run files, and inferred AP where there are judgements.

A topic describes no video, several shots answer it, and only a sample of the shots was judged: ranks and recall have no
meaning here. The shots are encoded once for the topics of all editions.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from pytorch_lightning import LightningModule, Trainer

from src.batch import TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.data.annotation import Judgement
from src.data.datamodule import BatchLoader, RetrievalDataModule
from src.errors import UserError
from src.metrics.infap import SearchResult, evaluate_run
from src.models.base import RetrievalModule
from src.reports.protocol import PROTOCOL_KEYS, protocol_line
from src.reports.report import excluded_counts
from src.reports.topic_page import SHOWN, Edition, edition_of, write_topic_page
from src.reports.topic_table import editions_table
from src.reports.trecvid import perf_text, write_run
from src.tasks.build import build_submission
from src.tasks.loaders import Loaders
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
        for one in self._by_edition(batch) if isinstance(batch, TextBatch) else (batch,):
            self.model.test_step(one, batch_idx, dataloader_idx)

    def _by_edition(self, batch: TextBatch) -> Iterator[TextBatch]:
        """The topics of each edition, padded to the longest of them: each was published as a batch of its own."""
        datamodule: RetrievalDataModule = self.trainer.datamodule.benchmark  # type: ignore[attr-defined]
        sizes = torch.tensor([len(topics) for topics in datamodule.annotation.topics.values()])
        edition_B = torch.bucketize(batch.ids.cpu(), sizes.cumsum(0), right=True).to(batch.ids.device)
        for edition in edition_B.unique():
            rows_B = edition_B == edition
            longest = int(batch.mask_BL[rows_B].sum(1).max())
            yield TextBatch(
                batch.tokens_BL[rows_B, :longest],
                batch.mask_BL[rows_B, :longest],
                batch.ids[rows_B],
                batch.video_ids[rows_B],
            )

    def on_test_epoch_end(self) -> None:
        text, video = self.model.collected("test")
        if not self.trainer.is_global_zero:
            return
        datamodule: RetrievalDataModule = self.trainer.datamodule.benchmark  # type: ignore[attr-defined]
        with torch.autocast(self.device.type, enabled=False):
            found = search(self.model, text, video, datamodule, self.writer)
        about = {"num_videos": len(video), "search": self.model.topic_score_words or None}
        write_outcome(self.writer, datamodule, found, about)


def search(
    model: RetrievalModule,
    text: TextEmbedding,
    video: VideoEmbedding,
    datamodule: RetrievalDataModule,
    writer: ResultWriter,
) -> dict[str, tuple[SearchResult | None, Edition]]:
    """Write `topics/<edition>/` of the run folder: run files, evaluation, scores.

    Args:
        model: its `topic_scorer` sees one edition at a time, as scores that depend on the whole matrix were published
            so.
        text: the topics of all editions, one after another.
        video: the shots.
        datamodule: topics, judgements and the shots' names.
        writer: the run.

    Returns:
        Edition -> its metrics, None where it has no judgements; and what the report shows of it.
    """
    part = datamodule.part("test")
    names = np.array([part.videos[index].id for index in video.ids.tolist()])
    found: dict[str, tuple[SearchResult | None, Edition]] = {}
    start = 0
    for edition, topics in datamodule.annotation.topics.items():
        texts = {topic.id: topic.text for topic in topics}
        scores_QV = score_topics(model, text[start : start + len(topics)], video, list(texts))
        start += len(topics)
        folder = writer.run_dir / "topics" / edition
        qrels = datamodule.annotation.qrels.get(edition, ())
        result = _write_edition(folder, list(texts), names, scores_QV, qrels, cfg=writer.cfg)
        best = dict(_ranked(list(texts), names, scores_QV, SHOWN))
        found[edition] = result, edition_of(edition, texts, best, result, qrels)
    return found


def _write_edition(
    folder: Path,
    ids: list[str],
    names: np.ndarray,
    scores_QV: np.ndarray,
    qrels: Sequence[Judgement],
    *,
    cfg: DictConfig,
) -> SearchResult | None:
    """The files of one edition, and its metrics if there are judgements."""
    submission = build_submission(cfg)
    run = write_run(folder / RUN_FILE, _ranked(ids, names, scores_QV, submission.depth), submission)
    result = evaluate_run(run, qrels) if qrels else None
    if result is not None:
        (folder / "perf.txt").write_text(perf_text(result, prefix="1"), encoding="utf-8")
    if cfg.save_similarity:
        np.save(folder / "similarity.npy", scores_QV)
        (folder / "topics.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
        (folder / "videos.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return result


def score_topics(model: RetrievalModule, text: TextEmbedding, video: VideoEmbedding, names: list[str]) -> np.ndarray:
    """float32 scores_QV, topics by shots.

    Raises:
        UserError: a score is not a number.
    """
    score = model.topic_scorer(text, video)
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
    writer: ResultWriter,
    datamodule: RetrievalDataModule,
    found: Mapping[str, tuple[SearchResult | None, Edition]],
    about: Mapping[str, object],
) -> None:
    """Write metrics.json and the report, and print the table and what was excluded.

    Args:
        writer: the run.
        datamodule: what was searched.
        found: what `search` returned.
        about: what else belongs into the protocol.
    """
    results = {edition: result for edition, (result, _) in found.items()}
    known = {**writer.protocol(datamodule), "num_captions": None, "captions_per_video": None, **about}
    judged = {edition: len(result.topics) if result else 0 for edition, result in results.items()}
    protocol = {key: known.get(key) for key in PROTOCOL_KEYS} | {"judged_topics": judged, "search": about.get("search")}
    problems = datamodule.problems
    content = {
        "protocol": protocol,
        "topics": {edition: result.to_json() for edition, result in results.items() if result is not None},
        "timing": {"total_s": round(time.perf_counter() - writer.started, 2)},
        "excluded": {"by_part": excluded_counts(problems)},
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    (writer.run_dir / "metrics.json").write_text(text + "\n", encoding="utf-8")
    table = editions_table(protocol_line(protocol), results)
    page = write_topic_page(writer.run_dir, [edition for _, edition in found.values()], table, protocol, problems)
    table.print()
    print_problems(problems)
    sys.stdout.write(f"run files: {writer.run_dir / 'topics'}\nreport: {page}\n")
