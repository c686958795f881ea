"""rescoring=…: what a test says besides its plain result (`src.metrics.rescoring`), for any model.

Test captions and videos are encoded once, as in any test, and their scores are kept as the plain ranking asks for them.
Then the captions of a bank are encoded batch by batch, each process its share, and scored against all videos; of a
batch only what the method needs is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from omegaconf import DictConfig
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from src.batch import TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.data.datamodule import RetrievalDataModule
from src.errors import UserError
from src.metrics.kept import Recorder
from src.metrics.legacy import check_captions
from src.metrics.rescoring import Banks, Rescoring, rescore
from src.metrics.result import RetrievalResult
from src.metrics.retrieval import MatrixScore, evaluate
from src.metrics.score_blocks import Scores
from src.models.base import RetrievalModule
from src.reports.rescored import Further, by_published_rules
from src.tasks import topic_search
from src.tasks.build import build_rescoring
from src.tasks.loaders import Loaders
from src.tasks.outcome import ResultWriter

log = logging.getLogger(__name__)


def is_asked(cfg: DictConfig) -> bool:
    """Whether a test has to say more than its plain result."""
    return bool(cfg.get("rescoring")) or cfg.get("compatibility", "none") != "none"


def check(cfg: DictConfig, datamodule: RetrievalDataModule) -> None:
    """Find out before anything is encoded or trained that a test cannot be re-scored as asked.

    Raises:
        UserError: settings mean nothing, the split has no such part, or the data set is searched by topics.
    """
    if not is_asked(cfg) or "test" not in datamodule.applied.parts:
        return
    method = build_rescoring(cfg)
    if datamodule.annotation.topics:
        key = f"rescoring={method.name}" if method is not None else f"compatibility={cfg.compatibility}"
        raise UserError(f"{key} is for captions, found a data set that is searched by topics; drop it")
    part = datamodule.part("test")
    if method is not None:
        method.check(len(part.videos))
        datamodule.part(bank_of(method))
    if cfg.get("compatibility", "none") != "none":
        check_captions(np.array(part.captions_per_video()))


def bank_of(method: Rescoring) -> str:
    """The part whose queries are the bank."""
    return method.bank or method.default_bank


def test(trainer: Trainer, model: RetrievalModule, datamodule: RetrievalDataModule, writer: ResultWriter) -> None:
    """Test the model, with what the run's `rescoring` and `compatibility` add.

    Raises:
        UserError: see `check`.
    """
    check(writer.cfg, datamodule)
    if not is_asked(writer.cfg):
        topic_search.test(trainer, model, datamodule, writer)
        return
    trainer.test(RescoredTest(model, writer), datamodule=Loaders(datamodule), verbose=False)


def further_results(cfg: DictConfig, scores: Scores, plain: RetrievalResult, banks: Banks | None) -> Further:
    """What `rescoring` and `compatibility` ask for, from the scores of a plain result."""
    method = build_rescoring(cfg)
    rescored = rescore(method, scores, plain, banks) if method is not None else None
    if cfg.get("compatibility", "none") == "none":
        return Further(rescored)
    try:
        return Further(rescored, by_published_rules(scores, rescored))
    except UserError as error:  # captions without a feature, of all captions of a video: no reason to lose the result
        log.warning("%s", error)
        return Further(rescored)


class RescoredTest(LightningModule):
    """A model whose test has further results.

    Args:
        model: encodes and scores.
        writer: knows the settings, and writes what the run leaves behind.
    """

    def __init__(self, model: RetrievalModule, writer: ResultWriter) -> None:
        super().__init__()
        self.model = model
        self.writer = writer

    def test_step(self, batch: TextBatch | VideoBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.model.test_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Rank, log and, in the first process, write."""
        text, video = self.model.collected("test")
        datamodule: RetrievalDataModule = self.trainer.datamodule.benchmark  # type: ignore[attr-defined]
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            plain, further = self._results(datamodule, text, video)
        added = further.rescored.scalars("test") if further.rescored is not None else {}
        self.log_dict({**plain.scalars("test"), **added}, sync_dist=True)  # equal on all processes
        self.model.results["test"], self.model.embeddings["test"] = plain, (text, video)
        if self.trainer.is_global_zero:
            self.writer.further = further
            self.writer.write(datamodule, self.model)

    def _results(
        self, datamodule: RetrievalDataModule, text: TextEmbedding, video: VideoEmbedding
    ) -> tuple[RetrievalResult, Further]:
        recorder = Recorder(self.model.scorer(text, video), text, video)
        plain = evaluate(text, video, recorder, ties=self.writer.cfg.ties, topk=10)
        ranked = torch.isin(text.ids.cpu(), plain.caption_ids)  # others describe videos that could not be read
        owner = torch.searchsorted(recorder.video_ids, text.video_ids.cpu()).clamp(max=len(video) - 1)
        scores = Scores(MatrixScore(recorder.matrix), owner, len(video), None if ranked.all() else ranked)
        method = build_rescoring(self.writer.cfg)
        banks = None
        if method is not None and bank_of(method) != "test":
            source = _Bank(self, datamodule, bank_of(method))
            shown = source.videos(text[ranked.to(text.ids.device)], video) if method.video_bank else None
            banks = Banks(f"captions of {bank_of(method)}", source.captions(text, video), shown, _everyone)
        return plain, further_results(self.writer.cfg, scores, plain, banks)


@dataclass(frozen=True)
class _Bank:
    """The queries of another part, encoded and scored by this process as they are asked for."""

    test: RescoredTest
    datamodule: RetrievalDataModule
    part: str

    def captions(self, text: TextEmbedding, video: VideoEmbedding) -> Iterator[Tensor]:
        """Blocks s_NV of its captions with the videos of the test."""
        score = self.test.model.bank_scorer(text, video)
        for batch in self.datamodule.eval_dataloaders(self.part)[1]:
            yield score(self._encoded(batch), video)

    def videos(self, text: TextEmbedding, video: VideoEmbedding) -> Iterator[Tensor]:
        """Blocks s_NK of its videos with captions of the test."""
        score = self.test.model.bank_scorer(text, video)
        for batch in self.datamodule.eval_dataloaders(self.part)[0]:
            if len(batch):
                yield score(text, self._encoded(batch)).T.contiguous()

    def _encoded(self, batch: TextBatch | VideoBatch) -> Any:
        model, plugin = self.test.model, self.test.trainer.precision_plugin
        moved = batch.to(self.test.device)
        with plugin.test_step_context():
            encoded: Any = model.encode_queries(moved) if isinstance(moved, TextBatch) else model.encode_gallery(moved)
        return encoded.map(lambda t: t.float() if t.is_floating_point() else t)


def _everyone(own: object) -> list[Any]:
    """The objects of all processes, in their order."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [own]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found
