"""task=evaluate task.qb_norm.beta=20: text to video re-scored by the captions of another part (`src.metrics.qb_norm`).

Test captions and videos are encoded once, as in any test. Then the captions of the bank are encoded batch by batch,
each process its share, and scored against all videos; of a batch only the sums and the best videos are kept.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer

from src.batch import TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.data.datamodule import RetrievalDataModule
from src.errors import UserError
from src.metrics.qb_norm import QueryBank, Rescored, evaluate_with_bank
from src.models.base import RetrievalModule
from src.tasks.loaders import Loaders
from src.tasks.outcome import ResultWriter


def test(trainer: Trainer, model: RetrievalModule, datamodule: RetrievalDataModule, writer: ResultWriter) -> None:
    """Test the model with QB-Norm, where `writer.cfg.task.qb_norm` says how.

    Raises:
        UserError: beta or k cannot be used, the split has no such part, or the data set is searched by topics.
    """
    settings = writer.cfg.task.qb_norm
    if datamodule.annotation.topics:
        raise UserError(
            "task.qb_norm re-scores captions, found a data set that is searched by topics; drop task.qb_norm.beta"
        )
    QueryBank(
        len(datamodule.part("test").videos), settings.beta, settings.k
    )  # mistakes show before anything is encoded
    datamodule.part(settings.bank)
    trainer.test(BankedTest(model, writer), datamodule=Loaders(datamodule), verbose=False)


class BankedTest(LightningModule):
    """A model whose test is re-scored by a query bank.

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
        settings = self.writer.cfg.task.qb_norm
        with torch.no_grad():
            bank = self._bank(datamodule, text, video)
            found = self._evaluate(text, video, bank)
        self.log_dict(found.result.scalars("test"), sync_dist=True)  # equal on all processes
        self.model.results["test"], self.model.embeddings["test"] = found.result, (text, video)
        if self.trainer.is_global_zero:
            source = f"captions of {settings.bank}"
            self.writer.rescoring, self.writer.details["qb_norm"] = found.words(source), found.details(source)
            self.writer.write(datamodule, self.model)

    def _evaluate(self, text: TextEmbedding, video: VideoEmbedding, bank: QueryBank) -> Rescored:
        with torch.autocast(self.device.type, enabled=False):
            score = self.model.scorer(text, video)
            return evaluate_with_bank(text, video, score, bank, ties=self.writer.cfg.ties, topk=10)

    def _bank(self, datamodule: RetrievalDataModule, text: TextEmbedding, video: VideoEmbedding) -> QueryBank:
        """The bank of all processes; videos in the order of their ids, as `collected` returns them."""
        settings = self.writer.cfg.task.qb_norm
        score = self.model.bank_scorer(text, video)
        bank = QueryBank(len(video), settings.beta, settings.k)
        _, captions = datamodule.eval_dataloaders(settings.bank)
        for batch in captions:
            with self.trainer.precision_plugin.test_step_context():
                encoded = self.model.encode_queries(batch.to(self.device))
            encoded = encoded.map(lambda t: t.float() if t.is_floating_point() else t)
            with torch.autocast(self.device.type, enabled=False):
                bank.add(score(encoded, video))
        if self.trainer.world_size > 1:
            everyone: list[QueryBank | None] = [None] * self.trainer.world_size
            dist.all_gather_object(everyone, bank)
            bank = QueryBank(len(video), settings.beta, settings.k)
            for piece in everyone:
                if piece is not None:
                    bank.merge(piece)
        return bank
