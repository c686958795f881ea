"""The part of task=bench that reads features: our store beside BigFile read frame by frame, and pairs a second."""

from __future__ import annotations

import array
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from src.batch import ExpertSpec, InputSpec
from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.datamodule import RetrievalDataModule
from src.data.feature_source import FeatureSource
from src.data.features.bigfile import FEATURES, export_bigfile
from src.data.features.store import FeatureStore, StoreDtype
from src.data.features.writer import Item, StoreWriter
from src.data.splits import SplitSpec

Numbers = dict[str, float]
T = TypeVar("T")
ROUNDS = 3
BATCH = 128  # pairs of one batch
PAIR_VIDEOS = 2000
CAPTIONS = 10  # of each video
TOKENS = 32  # of each caption
FLOAT = 4  # bytes of a number in a BigFile


def bench_store(cfg: DictConfig) -> Numbers:
    """Read the same features from both formats, in turn, CPU seconds of one thread, everything in the page cache.

    "BigFile by frame" opens the file for every frame and makes lists of Python numbers, as the data loader of Dual
    Encoding does. "rows" are batches of 128 random videos through `FeatureStore.rows`, "batch" those padded and
    masked for a model, "training loader" whole batches of pairs with their captions. Synthetic numbers in a temporary
    folder.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-store-") as name:
            folder = Path(name)
            found = _against_bigfile(folder, (cfg.task.store_videos, cfg.task.store_frames, cfg.task.store_dim))
            found |= _pairs(folder, "12x512 float16", (12, 512), "float16")
            found |= _pairs(folder, "1x2048 float32", (1, 2048), "float32")
    finally:
        torch.set_num_threads(threads)
    return found


def _against_bigfile(folder: Path, sizes: tuple[int, int, int]) -> Numbers:
    videos, frames, dim = sizes
    store = _make(folder / "ours", videos, (frames, dim), "float32")
    export_bigfile(store, folder / "bigfile")
    position = {f"{video}_{n}": v * frames + n for v, video in enumerate(store.ids) for n in range(frames)}

    def by_frame(video: str) -> Tensor:
        rows = []
        for n in range(frames):
            numbers = array.array("f")
            with (folder / "bigfile" / FEATURES).open("rb") as file:
                file.seek(position[f"{video}_{n}"] * dim * FLOAT)
                numbers.fromfile(file, dim)
            rows.append(numbers.tolist())
        return torch.tensor(rows)

    def ours(video: str) -> Tensor:
        return torch.from_numpy(store.rows([video])[0])

    if not torch.equal(by_frame(store.ids[-1]), ours(store.ids[-1])):
        raise AssertionError("the two formats hold different numbers")
    seconds = _in_turn(store.ids, {"by frame": by_frame, "ours": ours})
    return {
        "videos": videos,
        "frames": frames,
        "dim": dim,
        "BigFile by frame ms": 1e3 * seconds["by frame"],
        "ours ms": 1e3 * seconds["ours"],
        "BigFile / ours": seconds["by frame"] / seconds["ours"],
    }


def _pairs(folder: Path, title: str, shape: tuple[int, int], dtype: StoreDtype) -> Numbers:
    store = _make(folder / title, PAIR_VIDEOS, shape, dtype)
    spec = ExpertSpec("x", dim=shape[1], temporal=shape[0] > 1, max_steps=shape[0], store=title)
    source = FeatureSource([spec], {title: folder / title})
    order = np.random.default_rng(0).permutation(PAIR_VIDEOS).tolist()
    batches = [[store.ids[i] for i in order[at : at + BATCH]] for at in range(0, PAIR_VIDEOS, BATCH)]

    def rows(batch: list[str]) -> Tensor:
        return torch.from_numpy(store.rows(batch)[0]).reshape(len(batch), *shape)

    def whole(batch: list[str]) -> object:
        return source.batch([(video,) for video in batch])

    seconds = _in_turn(batches, {"rows": rows, "batch": whole})
    each = PAIR_VIDEOS / len(batches)
    found = {f"pairs/s/core {title}, {name}": each / spent for name, spent in seconds.items()}
    return found | {f"pairs/s/core {title}, training loader": _loader(spec, folder / title, store.ids)}


@dataclass(eq=False, kw_only=True, repr=False)
class _MadeUp(RetrievalDataModule):
    """Videos that exist as features only, each with the same captions."""

    ids: tuple[str, ...]

    def read(self) -> Annotation:
        captions = tuple(CaptionRecord(i, f"caption {n}") for i in self.ids for n in range(CAPTIONS))
        return Annotation(tuple(VideoRecord(i) for i in self.ids), captions, {"train": self.ids})


class _NoWords:
    """Token ids without the work of a tokeniser: a run does that once, before the first batch."""

    fingerprint = "none"

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens_NL = torch.ones(len(captions), TOKENS, dtype=torch.int64)
        return tokens_NL, tokens_NL.bool()


def _loader(spec: ExpertSpec, store: Path, ids: tuple[str, ...]) -> float:
    """Pairs per CPU second of whole training batches, ids, tokens, masks and features, loaded in this process."""
    data = _MadeUp(
        name="bench",
        split=SplitSpec("bench", parts={"train": "train"}),
        inputs=InputSpec(_NoWords(), experts=(spec,)),
        stores={spec.store or spec.name: store},
        batch_size=BATCH,
        ids=ids,
    )
    data.setup()
    loader = data.train_dataloader()
    seconds = _in_turn([loader], {"epoch": lambda batches: sum(len(batch) for batch in batches)})
    return len(loader) * BATCH / seconds["epoch"]


def _make(folder: Path, videos: int, shape: tuple[int, int], dtype: StoreDtype) -> FeatureStore:
    rng = np.random.default_rng(0)
    ids = [f"video{n}" for n in range(videos)]
    writer = StoreWriter(folder, name="bench", dim=shape[1], dtype=dtype, recipe={}, ids=ids)

    def items(shard: int) -> Iterator[Item]:
        return ((item, rng.random(shape, dtype=np.float32), None, None) for item in writer.shard_ids(shard))

    for shard in writer.pending():
        writer.write_shard(shard, items(shard))
    return writer.finish()


def _in_turn(items: Sequence[T], readers: dict[str, Callable[[T], object]]) -> dict[str, float]:
    """Mean CPU seconds per item of each reader, best of the rounds; they take turns, as a machine's speed changes."""
    best = dict.fromkeys(readers, float("inf"))
    for _ in range(ROUNDS + 1):  # the first warms up
        for name, read in readers.items():
            started = time.process_time()
            for item in items:
                read(item)
            best[name] = min(best[name], (time.process_time() - started) / len(items))
    return best
