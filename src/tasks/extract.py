"""task=extract: features of the videos or captions of a data set into a feature store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer
from rich.console import Console

from src.batch import InputSpec
from src.clip import Clip
from src.data.annotation import Annotation, VideoRecord, number_captions
from src.data.clips import ClipDecoder
from src.data.datamodule import RetrievalDataModule
from src.data.features.store import FeatureStore
from src.data.features.writer import FAILED, StoreWriter
from src.data.splits import PARTS
from src.data.video import Problem, append_problem
from src.errors import UserError
from src.extractors.base import Extractor
from src.extractors.teacher import Teacher
from src.tasks import teacher
from src.tasks.build import build_datamodule, build_extractor, build_trainer, extractor_class, plain
from src.tasks.extraction import Extraction, ItemProgress, Source, Work, WorkData

SHOWN_PROBLEMS = 20
VIDEOS_PER_SHARD, CAPTIONS_PER_SHARD, CAPTIONS_PER_BATCH = 64, 4096, 256


def run(cfg: DictConfig) -> None:
    """Fill the store, or the share of it that this job of an array has.

    Raises:
        UserError: nothing to read, nothing could be read, or the folder holds another store.
    """
    check(cfg)
    if issubclass(extractor_class(cfg), Teacher):
        filled = teacher.fill(cfg, build_extractor(cfg))
        if filled is not None:
            report(cfg, filled[0], {}, filled[1])
            called = filled[0].path if cfg.task.output else filled[0].plan.name
            _say(f"let a student imitate it by model.teachers=[{called}]")
        return
    datamodule = build_datamodule(cfg, InputSpec(tokenizer=None))
    annotation = datamodule.annotation  # data before weights: what is missing shows before anything large is fetched
    extractor = build_extractor(cfg)
    is_text = extractor.medium == "text"
    source: Source = captions(annotation) if is_text else videos(datamodule, list(cfg.task.parts))
    writer = make_writer(cfg, extractor, source)
    work = Work(
        writer,
        source,
        None if is_text else _decoder(cfg, extractor),
        cfg.dataset.num_workers,
        cfg.task.batch_size or (CAPTIONS_PER_BATCH if is_text else 1),
        tuple(cfg.task.shard_of),
        cfg.task.retry_failed,
    )
    before = len(writer.pending())
    if work.pending() or (work.retry and writer.failed()):
        trainer = _predict(cfg, extractor, work)
        if not trainer.is_global_zero:
            return
    report(cfg, writer, source, writer.num_shards - before)


def captions(annotation: Annotation) -> dict[str, Clip]:
    """Key -> sentence: every caption of the annotation, and those that the files of single lists add under own keys.

    Raises:
        UserError: there is none, or one key stands for two sentences.
    """
    listed = [caption for of_list in annotation.paired.values() for caption in of_list]
    found: dict[str, Clip] = {}
    for caption in (*number_captions(annotation.captions), *listed):
        if len(caption.keys) != 1:
            continue  # without a key of its own it has that of the same sentence in the annotation
        key = caption.keys[0]
        if found.setdefault(key, Clip(key, text=caption.text)).text != caption.text:
            raise UserError(
                f"the key {key!r} stands for two captions ({found[key].text!r} and {caption.text!r}), expected one; "
                "the reader of the data set has to give distinct keys"
            )
    for topic in (topic for of_edition in annotation.topics.values() for topic in of_edition):
        found.setdefault(topic.id, Clip(topic.id, text=topic.text))
    if not found:
        raise UserError("the data set has no captions, expected some for this extractor; choose another dataset")
    return found


def videos(datamodule: RetrievalDataModule, parts: list[str]) -> dict[str, VideoRecord]:
    """Id -> video of the parts, of all when none is named.

    Raises:
        UserError: an unknown part, no video, or not one of the files is there.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise UserError(f"found task.parts with {', '.join(unknown)}, expected some of {', '.join(PARTS)}")
    annotation, split = datamodule.annotation, datamodule.split
    lists = [annotation.splits.get(split.parts[part], ()) for part in parts if part in split.parts]
    chosen = {video_id for of_list in lists for video_id in of_list} if parts else None
    used = (video for video in annotation.videos if chosen is None or video.id in chosen)
    # Items that show the same clip share its features.
    found = {video.key: replace(video, id=video.key) for video in used}
    if not found:
        raise UserError(f"split {split.name!r} has no videos in {', '.join(parts) or 'any part'}; give task.parts=[]")
    files = [video.path for video in found.values() if video.path is not None]
    if not any(file.is_file() for file in files):
        first = f" (first: {files[0]})" if files else ""
        raise UserError(
            f"none of the {len(found)} video files of data set {datamodule.name!r} exists{first}; "
            "add the files, or see task=prepare for how to get them"
        )
    return found


def check(cfg: DictConfig) -> None:
    """The task's own settings.

    Raises:
        UserError: for the first one that cannot be.
    """
    task = cfg.task
    job, jobs = task.shard_of if len(task.shard_of) == 2 else (-1, 0)
    if not 0 <= job < jobs:
        raise UserError(f"task.shard_of={list(task.shard_of)}, expected [i,n] with 0 <= i < n, as [0,4] to [3,4]")
    if jobs > 1 and task.retry_failed:
        raise UserError(
            "task.retry_failed=true with an array of jobs would redo shards twice; give task.shard_of=[0,1]"
        )
    if task.dtype not in (None, "float32", "float16"):
        raise UserError(f"task.dtype={task.dtype}, expected float32 or float16")
    for key in ("batch_size", "items_per_shard"):
        if task[key] is not None and task[key] < 1:
            raise UserError(f"task.{key}={task[key]}, expected a positive number, or null")


def _decoder(cfg: DictConfig, extractor: Extractor) -> ClipDecoder:
    return ClipDecoder(extractor.medium, extractor.request, cfg.dataset.backend, cfg.dataset.timeout_s)


def make_writer(cfg: DictConfig, extractor: Extractor, source: Source) -> StoreWriter:
    """The store to fill, with the recipe of everything that its numbers depend on.

    Raises:
        UserError: the folder holds another store.
    """
    default = Path(cfg.paths.data_dir) / cfg.dataset.name / "features" / extractor.name
    is_text = extractor.medium == "text"
    recipe: dict[str, Any] = {"extractor": dict(extractor.recipe()), "medium": extractor.medium}
    if not is_text:
        recipe["decoding"] = asdict(extractor.request)
    try:
        return StoreWriter(
            Path(cfg.task.output).expanduser() if cfg.task.output else default,
            name=extractor.name,
            dim=extractor.dim,
            dtype=cfg.task.dtype or "float32",
            recipe=recipe,
            ids=list(source),
            items_per_shard=cfg.task.items_per_shard or (CAPTIONS_PER_SHARD if is_text else VIDEOS_PER_SHARD),
        )
    except UserError as error:
        raise UserError(str(error).replace("give another folder", "give another one: task.output=FOLDER")) from None


def _predict(cfg: DictConfig, extractor: Extractor, work: Work) -> Trainer:
    """Do the pending shards on all devices of the trainer."""
    quiet: dict[str, Any] = {"enable_progress_bar": False, "precision": "32-true", "max_epochs": None}
    changed: dict[str, Any] = {"logger": {}, "callbacks": {}, "trainer": {**plain(cfg.trainer), **quiet}}
    trainer = build_trainer(OmegaConf.create(plain(cfg) | changed), [ItemProgress(extractor.name)])
    module = Extraction(extractor, work.writer)
    trainer.predict(module, datamodule=WorkData(work), return_predictions=False)
    trainer.strategy.barrier()
    return trainer


def report(cfg: DictConfig, writer: StoreWriter, source: Source, done_before: int) -> None:
    """Finish the store where nothing is pending; print and list what failed."""
    pending = writer.pending()
    failed = {item: reason.removeprefix(FAILED) for item, reason in writer.failed().items()}
    file = Path(cfg.paths.run_dir) / "problems.jsonl"
    for item, reason in failed.items():
        append_problem(file, Problem(item, str(source[item].path), reason, "not extracted"))
    if pending:
        _say(f"{len(pending)} of {writer.num_shards} shards are left to other jobs; the last one ends {writer.path}")
        _list(failed, file)
        return
    store = writer.finish()
    before = f" ({done_before} of {writer.num_shards} shards were there before)" if done_before else ""
    _say(f"{len(store.ids)} items, {store.num_rows} vectors of {store.dim} numbers in {writer.path}{before}")
    _list(failed, file)
    for reason, count in _absent(store).items():
        _say(f"{count} without features: {reason}")
    if not store.ids:
        reason = next(iter(store.missing.values()), "").removeprefix(FAILED)
        raise UserError(
            f"none of {len(store.missing)} items gave features (first: {next(iter(store.missing), '')}: {reason}); "
            "run task=check_data, mend the files and add task.retry_failed=true"
        )


def _absent(store: FeatureStore) -> Mapping[str, int]:
    return Counter(reason for reason in store.missing.values() if not reason.startswith(FAILED))


def _list(failed: Mapping[str, str], file: Path) -> None:
    if not failed:
        return
    _say(f"{len(failed)} failed:")
    for item, reason in list(failed.items())[:SHOWN_PROBLEMS]:
        _say(f"  {item}: {reason}")
    if len(failed) > SHOWN_PROBLEMS:
        _say(f"  … and {len(failed) - SHOWN_PROBLEMS} more")
    _say(f"all of them in {file}; once mended, add task.retry_failed=true")


def _say(text: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
