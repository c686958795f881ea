"""The one idea that carries everything: a model is `encode_text`, `encode_video`, `similarity`.

A new model subclasses `RetrievalModule`, implements these three methods and states its `input_spec`.
Training, validation, testing, distributed gathering, optimisation and checkpointing are inherited.

Shape suffixes: B batch, T text items, V video items.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from src.batch import (
    Embedding,
    InputSpec,
    PairBatch,
    TeacherScores,
    TextBatch,
    TextEmbedding,
    VideoBatch,
    VideoEmbedding,
)
from src.errors import UserError
from src.losses.distillation import Distillation
from src.losses.infonce import SymmetricInfoNCE
from src.metrics.order import better
from src.metrics.retrieval import RetrievalResult, evaluate
from src.models.gradient_cache import encode_in_chunks
from src.models.validation_loss import validation_loss
from src.models.windows import ROWS, mean_of_windows

Stage = Literal["val", "test"]
Similarity = Callable[[TextEmbedding, VideoEmbedding], Tensor]
Ties = Literal["optimistic", "average", "pessimistic"]


class OptimizerFactory(Protocol):
    """Builds the optimiser once the parameters and the length of the run are known (`src.optim`)."""

    def build(self, named_parameters: Iterable[tuple[str, Tensor]], total_steps: int) -> Optimizer: ...


class SchedulerFactory(Protocol):
    """Builds the learning-rate schedule, or None for a constant rate (`src.optim`).

    Schedules advance by steps; one whose attribute `every` is "epoch" advances once per epoch, after the validation,
    and is told the metric that its attribute `monitor` names, where it has one.
    """

    def build(self, optimizer: Optimizer, total_steps: int) -> LRScheduler | None: ...


class RetrievalModule(LightningModule, ABC):
    """Base of every text-video retrieval model.

    Args:
        gather: how embeddings of other processes enter the loss: "exact" gives the gradient of the whole
            batch in one process, "upstream" that of CLIP4Clip's AllGather (1/world size of it).
        same_video_positives: remove other captions of the same video from the negatives.
    """

    similarity_is_pairwise = False
    """True when `similarity` runs trained layers on every (text, video) pair, so that it needs small blocks."""

    starts_random = ""
    """Why the weights are random although `pretrained` was given; empty where they are not."""

    distillation = Distillation()
    """Added to the loss where batches come with teachers (`InputSpec.teachers`)."""

    def __init__(self, gather: Literal["exact", "upstream"] = "exact", same_video_positives: bool = False) -> None:
        super().__init__()
        self.contrastive = SymmetricInfoNCE(gather=gather, same_video_positives=same_video_positives)
        self.results: dict[Stage, RetrievalResult] = {}
        self.embeddings: dict[Stage, tuple[TextEmbedding, VideoEmbedding]] = {}
        self._collected: dict[type, list[Embedding]] = {TextEmbedding: [], VideoEmbedding: []}
        self._optimizer: OptimizerFactory | None = None
        self._scheduler: SchedulerFactory | None = None
        self._total_steps = 0
        self._seed = 0
        self._ties: Ties = "optimistic"
        self._topk = 10
        self._loss_batch = 0
        self._cache_chunks = 1

    # ---- what a model implements -------------------------------------------------------------

    @property
    @abstractmethod
    def input_spec(self) -> InputSpec:
        """Tokeniser, frames and experts that the model wants from the data."""

    @abstractmethod
    def encode_text(self, batch: TextBatch) -> TextEmbedding:
        """Encode captions; every tensor of the result has the caption as first dimension."""

    @abstractmethod
    def encode_video(self, batch: VideoBatch) -> VideoEmbedding:
        """Encode videos; every tensor of the result has the video as first dimension."""

    @abstractmethod
    def similarity(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        """Score every pair: s_TV, rows text, columns video, higher is better."""

    def scorer(self, text: TextEmbedding, video: VideoEmbedding) -> Similarity:
        """What an evaluation of these captions and videos calls block by block.

        Models whose scores depend on the whole gallery look at it here; for all others it is `similarity`.
        """
        return self.similarity

    def bank_scorer(self, text: TextEmbedding, video: VideoEmbedding) -> Similarity:
        """As `scorer`, for captions or videos of another part, whose ids mean others (`src.metrics.rescoring`)."""
        return self.scorer(text, video)

    def topic_scorer(self, text: TextEmbedding, video: VideoEmbedding) -> Similarity:
        """As `scorer`, of a search by topics: some models are published with another score for it."""
        return self.scorer(text, video)

    @property
    def topic_score_words(self) -> str:
        """What `topic_scorer` weighs and how, for the protocol; empty where it is all that the model can do."""
        return ""

    def loss(self, text: TextEmbedding, video: VideoEmbedding) -> dict[str, Tensor]:
        """Training loss of this process's rows; "loss" is minimised, other entries are logged."""
        return {"loss": self.contrastive(self.similarity, text, video)}

    def depends_on_batch(self) -> str:
        """What makes an item's embedding depend on the other items of a training batch; empty where nothing does."""
        names = [name for name, module in self.named_modules() if isinstance(module, _BatchNorm)]
        return f"batch normalisation ({names[0]})" if names else ""

    def after_step(self) -> None:
        """Called after each optimiser step, for constraints such as the logit-scale clamp."""

    # ---- what a task sets ----------------------------------------------------------------------

    def configure(
        self, optimizer: OptimizerFactory, scheduler: SchedulerFactory | None, total_steps: int, seed: int
    ) -> None:
        """Attach the optimisation; `total_steps` counts optimiser steps of the whole run."""

        self._optimizer, self._scheduler, self._total_steps, self._seed = optimizer, scheduler, total_steps, seed

    def configure_loss(self, cache_chunks: int) -> None:
        """Choose into how many chunks a batch is cut while it is encoded; see `src.models.gradient_cache`.

        Raises:
            UserError: less than one chunk, or chunks of a model whose embeddings depend on the batch.
        """
        if cache_chunks < 1:
            raise UserError(f"loss.cache_chunks={cache_chunks}, expected at least 1; 1 encodes the batch in one piece")
        reason = self.depends_on_batch()
        if cache_chunks > 1 and reason:
            raise UserError(
                f"loss.cache_chunks={cache_chunks} needs embeddings that do not depend on the rest of the batch, found "
                f"{reason}, which would see one chunk only; set loss.cache_chunks=1"
            )
        self._cache_chunks = cache_chunks

    def configure_evaluation(self, ties: Ties, topk: int, loss_batch: int = 0) -> None:
        """Choose the tie rule of the ranks, how many neighbours a report lists, and whether validations have a loss.

        Args:
            ties: rank of a tied true match.
            topk: neighbours per query.
            loss_batch: pairs per batch of `val/loss`; 0: there is no such value.
        """
        self._ties = ties
        self._topk = topk
        self._loss_batch = loss_batch

    # ---- Lightning -----------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        if self._optimizer is None:
            raise RuntimeError("RetrievalModule.configure() was not called before fit")
        parameters = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        optimizer = self._optimizer.build(parameters, self._total_steps)
        scheduler = self._scheduler.build(optimizer, self._total_steps) if self._scheduler is not None else None
        if scheduler is None:
            return optimizer
        monitor = getattr(scheduler, "monitor", None)
        if monitor is not None and better(monitor) == "min":
            raise UserError(
                f"scheduler.monitor={monitor} is best when it is low, the schedule expects a metric that is best when "
                "it is high; give scheduler.monitor=val/t2v/R1 or scheduler=none"
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if not _is_by_epoch(scheduler):
            super().lr_scheduler_step(scheduler, metric)

    def on_train_epoch_end(self) -> None:
        """Schedules by epochs advance here: after the validation, and before the checkpoint is written.

        Lightning does it after the checkpoint and not again on resuming, so a resumed run would miss one epoch.
        """
        for config in self.trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            if not _is_by_epoch(scheduler):
                continue
            monitor = getattr(scheduler, "monitor", None)
            if monitor is None:
                scheduler.step()
                continue
            if monitor not in self.trainer.callback_metrics:
                known = ", ".join(name for name in self.trainer.callback_metrics if name.startswith("val/")) or "none"
                raise UserError(
                    f"the schedule follows {monitor}, found of the validation: {known}; "
                    "give scheduler.monitor one of these, or scheduler=none when there is no validation"
                )
            scheduler.step(float(self.trainer.callback_metrics[monitor]))

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        # Dropout must not depend on how often the run was interrupted: the stream of each step is a
        # function of (seed, epoch, step, rank), so a resumed run continues bit for bit.
        step_seed = torch.tensor([self._seed, self.current_epoch, batch_idx, self.global_rank])
        mixed = int((step_seed * torch.tensor([1_000_003, 7_919, 104_729, 15_485_863])).sum()) % (2**31)
        torch.manual_seed(mixed)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        text = encode_in_chunks(self.encode_text, batch.text, self._cache_chunks)
        video = encode_in_chunks(self.encode_video, batch.video, self._cache_chunks)
        if batch.rows is not None:  # each video was encoded once; its captions share the embedding
            video = video[batch.rows]
        # Normalisation, logits and log-sum-exp stay in float32 or better whatever the trainer's precision.
        with torch.autocast(self.device.type, enabled=False):
            losses = self._losses(_full_precision(text), _full_precision(video), batch.teachers)
        if not torch.isfinite(losses["loss"]):
            raise UserError(
                f"the loss became {losses['loss'].item()} at epoch {self.current_epoch}, batch {batch_idx} "
                f"(video ids {batch.video.ids[:8].tolist()}…), expected a finite number; "
                "lower optimizer.lr, use trainer.precision=32-true, or inspect these videos with task=check_data"
            )
        for name, value in losses.items():
            self.log(f"train/{name}", value, on_step=True, on_epoch=True, batch_size=len(batch), sync_dist=True)
        return losses["loss"]

    def _losses(self, text: TextEmbedding, video: VideoEmbedding, teachers: TeacherScores | None) -> dict[str, Tensor]:
        losses = self.loss(text, video)
        if teachers is None:
            return losses
        distance = self.distillation(self.similarity, text, video, teachers)
        return {**losses, "loss": losses["loss"] + distance, "ranking": losses["loss"], "distillation": distance}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.after_step()

    def validation_step(self, batch: TextBatch | VideoBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._collect(batch)

    def test_step(self, batch: TextBatch | VideoBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._collect(batch)

    def on_validation_epoch_end(self) -> None:
        self._evaluate("val")

    def on_test_epoch_end(self) -> None:
        self._evaluate("test")

    # ---- evaluation ------------------------------------------------------------------------------

    def _collect(self, batch: TextBatch | VideoBatch) -> None:
        if len(batch) == 0:  # every video of the batch was unreadable
            return
        embedding = self.encode_queries(batch) if isinstance(batch, TextBatch) else self.encode_gallery(batch)
        self._collected[type(embedding)].append(_as_float32(embedding))

    def encode_queries(self, batch: TextBatch) -> TextEmbedding:
        """Captions to rank by, without those of which the model knows nothing: neither words nor a feature."""
        text = self.encode_text(batch)
        if batch.present_BE is None or batch.tokens_BL.shape[1]:
            return text
        return text[batch.present_BE.any(dim=1)]

    def encode_gallery(self, batch: VideoBatch) -> VideoEmbedding:
        """Videos to rank; of one that comes as several windows the mean of their embeddings."""
        if len(torch.unique_consecutive(batch.ids)) == len(batch):
            return self.encode_video(batch)
        return mean_of_windows(encode_in_chunks(self.encode_video, batch, -(-len(batch) // ROWS)))

    def collected(self, stage: Stage) -> tuple[TextEmbedding, VideoEmbedding]:
        """What all processes encoded since the last call, ordered by id.

        Raises:
            UserError: there is no caption or no readable video.
        """
        pieces, self._collected = self._collected, {TextEmbedding: [], VideoEmbedding: []}
        text = gather_items(pieces[TextEmbedding])
        video = gather_items(pieces[VideoEmbedding])
        if text is None or video is None:
            raise UserError(
                f"the {stage} part has {0 if text is None else len(text)} captions and "
                f"{0 if video is None else len(video)} readable videos, expected at least one of each; "
                "run task=check_data to see what is missing"
            )
        return text, video

    def _evaluate(self, stage: Stage) -> None:
        """Rank, log and keep the result on every process."""
        text, video = self.collected(stage)
        with torch.autocast(self.device.type, enabled=False):
            result = evaluate(text, video, self.scorer(text, video), ties=self._ties, topk=self._topk)
            loss = {}
            if stage == "val" and self._loss_batch:
                loss = {"val/loss": validation_loss(self.loss, text, video, self._loss_batch)}
        self.results[stage] = result
        self.embeddings[stage] = (text, video)
        self.log_dict({**result.scalars(stage), **loss}, sync_dist=True)  # equal on all processes


def _is_by_epoch(scheduler: Any) -> bool:
    return getattr(scheduler, "every", "step") == "epoch"


def _as_float32(embedding: Embedding) -> Any:
    return embedding.map(lambda t: t.float() if t.is_floating_point() else t)


def _full_precision(embedding: Embedding) -> Any:
    """Half precision becomes float32; float64 stays."""
    return embedding.map(lambda t: t.to(torch.promote_types(t.dtype, torch.float32)) if t.is_floating_point() else t)


def gather_items(pieces: list[Embedding]) -> Any:
    """All processes' embeddings, without duplicates, ordered by id; None when there are none. Empties the list.

    Sizes differ between processes (shards are not padded), hence objects rather than tensors travel.
    """
    local = type(pieces[0]).cat(pieces) if pieces else None
    pieces.clear()  # of all captions of a benchmark they are gigabytes
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        everyone: list[Embedding | None] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, local.to("cpu") if local is not None else None)
        present = [piece for piece in everyone if piece is not None]
        device = local.ids.device if local is not None else "cpu"
        local = type(present[0]).cat(present).to(device) if present else None
    if local is None:
        return None
    if bool((local.ids[1:] > local.ids[:-1]).all()):  # as one process encodes them: no need for a copy
        return local
    order = torch.argsort(local.ids, stable=True)
    ids = local.ids[order]
    first = torch.ones_like(ids, dtype=torch.bool)
    first[1:] = ids[1:] != ids[:-1]
    return local[order[first]]
