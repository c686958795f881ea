"""The parts of task=bench that read video: decoding beside the bare decoder, and the frame cache beside decoding."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from src.batch import FrameSpec
from src.data.annotation import VideoRecord
from src.data.cache_writer import begin, write_shard
from src.data.frame_cache import FrameCache, Recipe, load_frames
from src.data.sampling import frame_indices
from src.data.video import open_video, resolve_backend
from src.errors import UserError
from src.tasks.build import build_datamodule, empty_model

Numbers = dict[str, float]
ROUNDS = 3


def bench_decode(cfg: DictConfig) -> Numbers:
    """Uniform frames of the data set's videos: our reader and the bare library call in turn, CPU seconds.

    Raises:
        UserError: the bare call is decord's, which is not installed, or reads none of the files exactly.
    """
    resolve_backend("decord")
    import decord

    spec = FrameSpec(cfg.task.num_frames, 224)

    def ours(record: VideoRecord) -> object:
        assert record.path is not None
        with open_video(record.path, "auto", cfg.dataset.timeout_s) as reader:
            return reader.read(frame_indices(len(reader), reader.fps, spec))

    def bare(record: VideoRecord) -> object:
        reader = decord.VideoReader(str(record.path), ctx=decord.cpu(0), num_threads=1)
        indices = frame_indices(len(reader), reader.get_avg_fps(), spec)
        return reader.get_batch(indices).asnumpy()

    records = [record for record in _videos(cfg, spec) if _backend(record) == "decord"]
    if not records:
        raise UserError("task.parts: decode compares with decord, which reads none of these files; leave this part out")
    seconds = _in_turn(records, {"ours": ours, "bare": bare})
    return {
        "videos": len(records),
        "frames": spec.num_frames,
        "ours ms": 1e3 * seconds["ours"],
        "bare decord ms": 1e3 * seconds["bare"],
        "ours / bare": seconds["ours"] / seconds["bare"],
    }


def bench_cache(cfg: DictConfig) -> Numbers:
    """Frames as the configured model wants them: from the frame cache and from the files in turn, CPU seconds."""
    spec = empty_model(cfg).input_spec.frames
    if spec is None:
        raise UserError("task.parts: cache needs a model that reads frames; give model=clip2video")
    records = _videos(cfg, spec)
    backend = resolve_backend(cfg.dataset.backend)
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(spec, backend=backend)
        begin(Path(folder), recipe)
        write_shard(Path(folder), "shard-bench", records, recipe, cfg.dataset.timeout_s)
        cache = FrameCache.open(Path(folder), spec)
        seconds = _in_turn(
            records,
            {
                # Summed: a mapped page is read when it is used.
                "cache": lambda record: load_frames(record, spec, backend, cache=cache)[0].sum(dtype=np.int64),
                "files": lambda record: load_frames(record, spec, backend)[0].sum(dtype=np.int64),
            },
        )
    return {
        "videos": len(records),
        "frames": spec.num_frames,
        "image size": spec.image_size,
        "from files ms": 1e3 * seconds["files"],
        "from cache ms": 1e3 * seconds["cache"],
        "files / cache": seconds["files"] / seconds["cache"],
    }


def _videos(cfg: DictConfig, spec: FrameSpec) -> list[VideoRecord]:
    """The first videos of the test part, opened once, so that every reading finds them in the page cache."""
    inputs = empty_model(cfg).input_spec
    datamodule = build_datamodule(cfg, inputs)
    records = datamodule.part("test").videos[: cfg.task.videos]
    for record in records:
        load_frames(record, spec, cfg.dataset.backend, cfg.dataset.timeout_s)
    return list(records)


def _backend(record: VideoRecord) -> str:
    assert record.path is not None
    with open_video(record.path, "auto") as reader:
        return reader.backend


def _in_turn(records: list[VideoRecord], readers: dict[str, Callable[[VideoRecord], object]]) -> dict[str, float]:
    """Mean CPU seconds per video of each reader; they take turns, for the speed of a machine changes all the time."""
    spent = dict.fromkeys(readers, 0.0)
    for _ in range(ROUNDS):
        for record in records:
            for name, read in readers.items():
                started = time.process_time()
                read(record)
                spent[name] += time.process_time() - started
    return {name: seconds / (ROUNDS * len(records)) for name, seconds in spent.items()}
