"""The toy benchmark as a data module: the shipped configuration, its split, and pairs that share batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from src.batch import FrameSpec, InputSpec, PairBatch
from src.data.benchmarks.toy import ToyDataModule
from src.data.splits import SplitSpec
from src.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def count_words(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([[len(caption.split())] for caption in captions])
    return lengths, torch.ones_like(lengths, dtype=torch.bool)


def make(folder: Path, **options: object) -> ToyDataModule:
    """The shipped settings at a tenth of the size."""
    settings = yaml.safe_load((ROOT / "conf" / "dataset" / "toy.yaml").read_text())
    for key in ("_target_", "provides", "recipe", "batch_size", "data_dir", "cache_dir"):
        settings.pop(key)
    small = {"num_train": 60, "num_val": 10, "num_test": 20, "batch_size": 20, "data_dir": str(folder)}
    inputs = InputSpec(tokenizer=count_words, frames=FrameSpec(8, 64))
    return ToyDataModule(**{**settings, **small, **options}, split=SplitSpec("toy"), inputs=inputs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy_data")


def test_parts_have_the_configured_sizes(folder: Path) -> None:
    datamodule = make(folder)
    datamodule.setup()
    for part, size in (("train", 60), ("val", 10), ("test", 20)):
        assert len(datamodule.part(part).videos) == size
        assert len(datamodule.part(part).captions) == 5 * size
    facts = datamodule.describe()
    assert (facts["dataset"], facts["num_videos"], facts["captions_per_video"]) == ("toy", 20, 5)
    assert not any(facts["excluded"].values())


def test_the_shipped_settings_put_pairs_into_the_same_batch(folder: Path) -> None:
    datamodule = make(folder)
    videos = datamodule.part("train").videos
    seen = set()
    batches: list[PairBatch] = list(datamodule.train_dataloader())
    assert batches
    for batch in batches:
        groups = [videos[video].group for video in batch.video.ids.tolist()]
        assert all(groups.count(group) == 2 for group in groups)
        assert len(set(batch.video.ids.tolist())) == len(batch)
        assert batch.video.frames_BTCHW is not None
        assert batch.video.frames_BTCHW.shape[1:] == (8, 3, 64, 64)
        seen.update(groups)
    assert len(seen) == 30


def test_other_options_make_another_benchmark_beside_the_first(folder: Path) -> None:
    first, second = make(folder), make(folder, content_seed=1, num_train=10)
    scenes = [{caption.text for caption in module.part("test").captions} for module in (first, second)]
    assert scenes[0] != scenes[1]
    assert len([path for path in folder.iterdir() if path.is_dir()]) >= 2


def test_impossible_sizes_are_the_users_mistake(folder: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.num_test=7, expected a multiple of 10"):
        make(folder, num_test=7).setup()
