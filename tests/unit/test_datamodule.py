"""The loaders: same batches for any number of workers and processes, unpadded evaluation, broken files survived."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from src.batch import FrameSpec, InputSpec, PairBatch, TextBatch, VideoBatch
from src.data.benchmarks.folder import FolderDataModule
from src.data.datamodule import RetrievalDataModule
from src.data.fill_cache import FillOptions, fill
from src.data.frame_cache import Recipe
from src.data.splits import SplitSpec
from src.errors import UserError

SPEC = FrameSpec(num_frames=4, image_size=16)


def tokenize(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    tokens_NL = torch.tensor([[len(caption), sum(map(ord, caption)) % 1000] for caption in captions])
    return tokens_NL, torch.ones_like(tokens_NL, dtype=torch.bool)


def write_clip(path: Path, num_frames: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (num_frames, 4, 4, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(8))
        stream.width = stream.height = 32
        for frame in pixels.repeat(8, axis=1).repeat(8, axis=2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 train, 3 val, 7 test clips (11 test captions); test3 has fewer frames than the model asks for."""
    root = tmp_path_factory.mktemp("clips")
    lines = ["video,caption,split"]
    numbers = {"train": 16, "val": 3, "test": 7}
    for part, count in numbers.items():
        for k in range(count):
            name = f"{part}{k}.mp4"
            write_clip(root / name, 2 if name == "test3.mp4" else 12, seed=len(lines))
            captions = 2 if part == "train" or (part == "test" and k < 4) else 1
            lines += [f"{name},caption {j} of {part} {k},{part}" for j in range(captions)]
    (root / "captions.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def broken_clips(clips: Path, tmp_path: Path) -> Path:
    """The same, with train0-3 and test0 truncated."""
    root = tmp_path / "broken"
    root.mkdir()
    for path in clips.iterdir():
        data = path.read_bytes()
        is_broken = path.name in {"train0.mp4", "train1.mp4", "train2.mp4", "train3.mp4", "test0.mp4"}
        (root / path.name).write_bytes(data[:60] if is_broken else data)
    return root


def make(root: Path, *, rank: int = 0, world_size: int = 1, **options: Any) -> RetrievalDataModule:
    defaults: dict[str, Any] = {"batch_size": 4, "eval_batch_size": 4, "split": SplitSpec("folder")}
    module = FolderDataModule(name="folder", data_dir=str(root), inputs=InputSpec(tokenize, SPEC), **defaults | options)
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
    return module


def train_batches(module: RetrievalDataModule, epoch: int = 0) -> list[PairBatch]:
    loader = module.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(epoch)  # what Lightning does
    found = list(loader)
    assert len(found) == len(loader)
    return found


def fingerprint(batches: list[PairBatch]) -> list[tuple[list[int], list[int], bytes]]:
    return [
        (batch.text.ids.tolist(), batch.video.ids.tolist(), batch.video.frames_BTCHW.numpy().tobytes())  # type: ignore[union-attr]
        for batch in batches
    ]


def test_workers_change_nothing(clips: Path) -> None:
    options: dict[str, Any] = {"train_samples": "one_per_video", "seed": 3}
    module = make(clips, num_workers=2, **options)
    loader = module.train_dataloader()
    reference = make(clips, **options)
    for epoch in (0, 1):  # persistent workers must notice the second epoch
        loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        assert fingerprint(list(loader)) == fingerprint(train_batches(reference, epoch))
    assert fingerprint(train_batches(reference, 0)) != fingerprint(train_batches(reference, 1))


@pytest.mark.parametrize("options", [{}, {"unique_videos_in_batch": True}, {"train_samples": "one_per_video"}])
def test_processes_share_the_global_batches(clips: Path, options: dict[str, Any]) -> None:
    reference = train_batches(make(clips, **options), epoch=2)
    for world_size in (2, 4):
        shards = [train_batches(make(clips, rank=r, world_size=world_size, **options), 2) for r in range(world_size)]
        for whole, *parts in zip(reference, *shards, strict=True):
            assert torch.equal(torch.cat([part.text.ids for part in parts]), whole.text.ids)
            frames = torch.cat([part.video.frames_BTCHW for part in parts])
            assert torch.equal(frames, whole.video.frames_BTCHW)
        assert make(clips, **options).batches_per_epoch(world_size) == len(reference)


def test_batch_size_must_be_divisible_by_the_processes(clips: Path) -> None:
    with pytest.raises(UserError, match=r"dataset.batch_size=4 cannot be divided among 3 processes; .*batch_size=3"):
        make(clips, world_size=3).train_dataloader()


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_evaluation_sees_every_item_once_for_odd_counts(clips: Path, world_size: int) -> None:
    videos, captions = [], []
    for rank in range(world_size):
        video_loader, caption_loader = make(clips, rank=rank, world_size=world_size).test_dataloader()
        videos += [k for batch in video_loader for k in batch.ids.tolist()]
        captions += [k for batch in caption_loader for k in batch.ids.tolist()]
    assert sorted(videos) == list(range(7))
    assert sorted(captions) == list(range(11))


def test_short_clips_are_padded_and_masked(clips: Path) -> None:
    batches = list(make(clips, eval_batch_size=7).test_dataloader()[0])
    mask_BT, frames_BTCHW = batches[0].mask_BT, batches[0].frames_BTCHW
    assert mask_BT[3].tolist() == [True, True, False, False]
    assert mask_BT.sum() == 6 * 4 + 2
    assert frames_BTCHW[3, 2:].abs().sum() == 0
    assert frames_BTCHW[3, :2].float().std() > 10


def test_loaders_leave_the_global_random_state_alone(clips: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    module = make(clips)
    train_batches(module)
    for loader in module.test_dataloader():
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_broken_videos_are_dropped_counted_and_listed(broken_clips: Path, tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    module = make(broken_clips, problems_file=file, train_samples="one_per_video", num_workers=2)
    batches = train_batches(module)
    assert sum(len(batch) for batch in batches) == 12
    assert all(torch.equal(batch.text.video_ids, batch.video.ids) for batch in batches)
    videos, captions = module.test_dataloader()
    assert sorted(k for batch in videos for k in batch.ids.tolist()) == [1, 2, 3, 4, 5, 6]
    assert sum(len(batch) for batch in captions) == 11  # the evaluator drops and counts those of the broken video
    assert sorted({problem.video_id for problem in module.problems}) == [
        "test0.mp4",
        "train0.mp4",
        "train1.mp4",
        "train2.mp4",
        "train3.mp4",
    ]
    assert len(module.problems) == 5
    assert all(problem.reason for problem in module.problems)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_batch_of_broken_videos_keeps_the_number_of_steps(broken_clips: Path, world_size: int) -> None:
    steps = set()
    for rank in range(world_size):
        module = make(broken_clips, batch_size=world_size, world_size=world_size, rank=rank)
        batches = train_batches(module)
        steps.add(len(batches))
        assert all(len(batch) == 1 for batch in batches)
        assert not {k for batch in batches for k in batch.video.ids.tolist()} & {0, 1, 2, 3}
    assert steps == {32 // world_size}


def test_nothing_readable_in_training(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_bytes((clips / "captions.csv").read_bytes())
    for path in clips.glob("*.mp4"):
        (tmp_path / path.name).write_bytes(b"no video")
    with pytest.raises(UserError, match=r"no training video that can be read.*task=check_data"):
        train_batches(make(tmp_path))
    videos, _ = make(tmp_path).test_dataloader()
    assert list(videos) == []


class Counting(LightningModule):
    """Counts what the trainer hands over."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[int]] = {"train": [], "videos": [], "captions": []}

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        self.seen["train"] += batch.text.ids.tolist()
        return self.weight.sum()

    def validation_step(self, batch: VideoBatch | TextBatch, batch_idx: int, dataloader_idx: int) -> None:
        assert isinstance(batch, VideoBatch if dataloader_idx == 0 else TextBatch)
        self.seen["captions" if dataloader_idx else "videos"] += batch.ids.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*")
def test_trainer_announces_epochs_and_validates_after_each(broken_clips: Path, tmp_path: Path) -> None:
    module = make(broken_clips, batch_size=1, train_samples="one_per_video")
    module.trainer = None
    module.select_on("test")
    model = Counting()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, datamodule=module)
    assert trainer.global_step == 32
    assert model.seen["train"][:16] != model.seen["train"][16:]
    assert model.seen["videos"] == [1, 2, 3, 4, 5, 6] * 2
    assert model.seen["captions"] == list(range(11)) * 2


def test_impossible_options_are_refused_at_once(clips: Path) -> None:
    with pytest.raises(UserError, match=r"cache=memory with dataset.num_workers=2 .*; set dataset.num_workers=0"):
        make(clips, cache="memory", num_workers=2)
    with pytest.raises(UserError, match=r"set dataset.cache_dir=FOLDER"):
        make(clips, cache="disk")
    with pytest.raises(UserError, match=r"dataset.eval_batch_size=0"):
        make(clips, eval_batch_size=0)


def test_setup_reads_once_and_the_part_names_the_split(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(clips)
    module.setup("fit")
    monkeypatch.setattr(module, "read", lambda: pytest.fail("read again"))
    module.setup("test")
    facts = module.describe()
    assert (facts["num_videos"], facts["num_captions"], facts["captions_per_video"]) == (7, 11, 1.57)
    with pytest.raises(UserError, match="split 'folder' has no dev part"):
        module.part("dev")


def test_disk_cache_replaces_the_files_and_is_checked_first(clips: Path, tmp_path: Path) -> None:
    root, cache = tmp_path / "data", tmp_path / "cache"
    root.mkdir()
    for path in clips.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    options: dict[str, Any] = {"cache": "disk", "cache_dir": str(cache)}
    with pytest.raises(UserError, match=r"no frame cache there .*task=prepare"):
        make(root, **options).setup()
    records = make(root).part("test").videos
    fill(cache, records, Recipe(SPEC), FillOptions(workers=0, timeout_s=10.0, videos_per_shard=4), lambda done: None)
    reference = list(make(root).test_dataloader()[0])
    for record in records:
        assert record.path is not None
        record.path.unlink()
    split = SplitSpec("folder", parts={"test": "test"})
    for workers in (0, 1):
        cached = list(make(root, split=split, num_workers=workers, **options).test_dataloader()[0])
        assert [batch.ids.tolist() for batch in cached] == [batch.ids.tolist() for batch in reference]
        for mine, theirs in zip(cached, reference, strict=True):
            assert torch.equal(mine.frames_BTCHW, theirs.frames_BTCHW)
    other = InputSpec(tokenize, FrameSpec(num_frames=5, image_size=16))
    module = FolderDataModule(name="folder", data_dir=str(root), inputs=other, split=split, **options)
    with pytest.raises(UserError, match=r"num_frames=4, expected num_frames=5"):
        module.setup()


def test_samples_that_fit_in_no_batch_are_counted(
    clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"train{k % 4 if k < 40 else k - 40}.mp4,text {k},train" for k in range(56)]
    (tmp_path / "captions.csv").write_text("\n".join(["video,caption,split", *rows]))
    for path in clips.glob("train*.mp4"):
        (tmp_path / path.name).symlink_to(path)
    module = make(tmp_path, batch_size=8, unique_videos_in_batch=True, split=SplitSpec("f", parts={"train": "train"}))
    with caplog.at_level("INFO", logger="src.data.datamodule"):
        loader = module.train_dataloader()
    assert f"an epoch trains on {8 * len(loader)} of 56 samples" in caplog.text
