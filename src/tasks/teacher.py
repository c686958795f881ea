"""task=extract extractor=teacher: scores of a trained model for all pairs of a training caption and video.

Videos are encoded once, by all processes together, and kept; captions are encoded shard by shard, so neither the whole
matrix nor all captions are ever in memory, and an interrupted run goes on with the shards that are left.

Shape suffixes: B captions, V videos.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import LightningModule
from torch import Tensor

from src.batch import VideoBatch, VideoEmbedding
from src.data.datamodule import RetrievalDataModule
from src.data.datasets import CaptionCollate
from src.data.features.store import StoreDtype, file_sha256
from src.data.features.writer import Item, StoreWriter
from src.data.loader import BatchLoader
from src.data.teachers import row_ids
from src.errors import UserError
from src.extractors.teacher import Teacher
from src.models.base import RetrievalModule, gather_items
from src.tasks.build import build_datamodule, build_model, build_trainer, empty_model, plain
from src.tasks.checkpoint import load_weights, read_checkpoint, resolve_checkpoint, without_start
from src.tasks.loaders import Loaders

SHARD_BYTES = 32 * 2**20
CAPTIONS_PER_BATCH = 256
VIDEOS_PER_TILE = 4096  # columns that are scored at once
OWN_GROUPS = ("model", "experts", "text")  # of the configuration that come from the checkpoint


@dataclass(frozen=True)
class Plan:
    """What one run is to do.

    Attributes:
        cfg: configuration of the run, with the groups of the teacher's own.
        writer: of the store.
        datamodule: of the training part.
        checkpoint: the teacher's.
        teacher: name of the store, and the factor.
    """

    cfg: DictConfig
    writer: StoreWriter
    datamodule: RetrievalDataModule
    checkpoint: Path
    teacher: Teacher

    def pending(self) -> list[int]:
        """Shards that this job of an array still has to do."""
        job, jobs = self.cfg.task.shard_of
        return [shard for shard in self.writer.pending() if shard % jobs == job]


def fill(cfg: DictConfig, teacher: Teacher) -> tuple[StoreWriter, int] | None:
    """Write the shards that are left; returns the writer, and how many were there before.

    Returns:
        None in all processes but the first.

    Raises:
        UserError: no checkpoint, one trained on what tests the student, data that cannot be read, or the folder holds
            another store.
    """
    plan = make_plan(cfg, teacher)
    before = plan.writer.num_shards - len(plan.writer.pending())
    if not plan.pending():
        return plan.writer, before
    model = build_model(without_start(plan.cfg))
    load_weights(model, plan.checkpoint)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "precision": "32-true", "max_epochs": None}
    changed: dict[str, Any] = {"logger": {}, "callbacks": {}, "trainer": {**plain(cfg.trainer), **quiet}}
    trainer = build_trainer(OmegaConf.create(plain(cfg) | changed), [])
    trainer.test(Scoring(model, plan), datamodule=TrainVideos(plan.datamodule), verbose=False)
    trainer.strategy.barrier()
    return (plan.writer, before) if trainer.is_global_zero else None


def make_plan(cfg: DictConfig, teacher: Teacher) -> Plan:
    """Check everything that can be checked before the model is loaded. For errors see `fill`."""
    if cfg.ckpt_path is None:
        raise UserError("extractor=teacher found no ckpt_path=, expected a trained model; give ckpt_path=RUN_FOLDER")
    checkpoint = resolve_checkpoint(cfg.ckpt_path, Path(cfg.paths.run_dir))
    said = read_checkpoint(checkpoint).get("videotext")
    trained = OmegaConf.create(said["config"]) if said else None
    own = {group: plain(trained)[group] for group in OWN_GROUPS} if isinstance(trained, DictConfig) else {}
    merged = OmegaConf.create(plain(cfg) | own)
    datamodule = build_datamodule(merged, empty_model(merged).input_spec)
    datamodule.setup()
    facts = {"model": str(merged.model._target_).rsplit(".", 1)[-1], "text": merged.text.get("name")}
    facts |= {"checkpoint_sha256": file_sha256(checkpoint)}
    if isinstance(trained, DictConfig):
        _check_leak(trained, datamodule)
        facts |= {"dataset": trained.dataset.name, "split": trained.split.name, "seed": trained.seed}
    name = teacher.name or f"teacher.{facts['text'] or facts['model'].lower()}"
    writer = _writer(cfg, Teacher(name, teacher.factor), datamodule, facts)
    return Plan(merged, writer, datamodule, checkpoint, Teacher(name, teacher.factor))


class TrainVideos(Loaders):
    """The videos of the train part."""

    def test_dataloader(self) -> list[BatchLoader[Any]]:
        return self.benchmark.eval_dataloaders("train")[:1]


class Scoring(LightningModule):
    """Collects the videos, then scores the captions of one shard after another.

    A test and not a prediction, for which Lightning would make the loaders anew with batches of its own.

    Args:
        model: the teacher.
        plan: what to do.
    """

    def __init__(self, model: RetrievalModule, plan: Plan) -> None:
        super().__init__()
        self.model = model
        self.plan = plan
        self._videos: list[VideoEmbedding] = []

    def test_step(self, batch: VideoBatch, batch_idx: int) -> None:
        if len(batch):
            self._videos.append(self.model.encode_video(batch))

    @torch.no_grad()
    def on_test_epoch_end(self) -> None:
        """Score and write this process's shards."""
        plan = self.plan
        part = plan.datamodule.part("train")
        video: VideoEmbedding | None = gather_items(list(self._videos))
        found = [] if video is None else video.ids.tolist()
        if video is None or len(found) < len(part.videos):
            lost = sorted(set(range(len(part.videos))) - set(found))
            raise UserError(
                f"{len(lost)} of {len(part.videos)} training videos could not be read (first: "
                f"{part.videos[lost[0]].id!r}), expected all of them; remove these files and give "
                "split.subset=available, here and for the student"
            )
        collate = plan.datamodule.caption_collate(part)
        # One process looks, or another one might see shards that were finished meanwhile.
        pending = self.trainer.strategy.broadcast(plan.pending())
        for shard in pending[self.trainer.global_rank :: self.trainer.world_size]:
            plan.writer.write_shard(shard, self._items(shard, collate, video))

    def _items(self, shard: int, collate: CaptionCollate, video: VideoEmbedding) -> Iterator[Item]:
        writer = self.plan.writer
        ids = writer.shard_ids(shard)
        first = shard * writer.plan.items_per_shard
        size = self.plan.cfg.task.batch_size or CAPTIONS_PER_BATCH
        for start in range(0, len(ids), size):
            own = ids[start : start + size]
            s_BV = self._scores(collate, range(first + start, first + start + len(own)), video)
            for key, row_V in zip(own, s_BV.cpu().numpy(), strict=True):
                yield key, row_V, None, None

    def _scores(self, collate: CaptionCollate, captions: range, video: VideoEmbedding) -> Tensor:
        text = self.model.encode_text(collate(captions).to(self.device))
        tiles = [slice(start, start + VIDEOS_PER_TILE) for start in range(0, len(video), VIDEOS_PER_TILE)]
        s_BV = torch.cat([self.model.similarity(text, video[tile]).float() for tile in tiles], 1)
        return self.plan.teacher.factor * s_BV


def _writer(cfg: DictConfig, teacher: Teacher, datamodule: RetrievalDataModule, facts: dict[str, Any]) -> StoreWriter:
    part, split = datamodule.part("train"), datamodule.split
    dtype: StoreDtype = cfg.task.dtype or "float16"
    row_bytes = len(part.videos) * (2 if dtype == "float16" else 4)
    recipe = {
        "teacher": facts,
        "factor": teacher.factor,
        "dataset": datamodule.name,
        "split": split.name,
        "captions": split.captions.get("train", "all"),
        "videos": [video.id for video in part.videos],
    }
    assert teacher.name is not None
    default = Path(cfg.paths.data_dir) / cfg.dataset.name / "features" / teacher.name
    try:
        return StoreWriter(
            Path(cfg.task.output).expanduser() if cfg.task.output else default,
            name=teacher.name,
            dim=len(part.videos),
            dtype=dtype,
            recipe=recipe,
            ids=row_ids(part),
            items_per_shard=cfg.task.items_per_shard or max(64, SHARD_BYTES // row_bytes),
        )
    except UserError as error:
        advice = "give another one: task.output=FOLDER or extractor.name=NAME"
        raise UserError(str(error).replace("give another folder", advice)) from None


def _check_leak(trained: DictConfig, datamodule: RetrievalDataModule) -> None:
    """A teacher that saw the test videos would tell the student about them."""
    if trained.dataset.name != datamodule.name:
        return
    lists, parts = datamodule.annotation.splits, datamodule.split.parts
    seen = set(lists.get(str(trained.split.parts.get("train")), ()))
    shared = [video for video in lists.get(parts.get("test", ""), ()) if video in seen]
    if shared:
        raise UserError(
            f"the teacher was trained on split {trained.split.name!r}, which holds {len(shared)} test videos of "
            f"{datamodule.split.name!r} (first: {shared[0]!r}), expected none; train a teacher on this split"
        )
