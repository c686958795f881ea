"""Windows: the frames that are read, their number, and that a video's embedding is the mean over them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from src.batch import FrameSpec, InputSpec, TextBatch, TextEmbedding, VideoBatch, VideoEmbedding, WindowSpec
from src.data import windowed_videos
from src.data.annotation import VideoRecord
from src.data.benchmarks.folder import FolderDataModule
from src.data.splits import SplitSpec
from src.data.transforms import to_square
from src.data.video import VideoError
from src.data.windowed_videos import load_windows, offsets
from src.errors import UserError
from src.models import windows as averaging
from src.models.base import RetrievalModule
from src.models.windows import mean_of_windows
from src.tasks.evaluate import with_windows
from tests.clips import make_clip, true_frames
from tests.tiny_textvr import tiny_textvr

SPEC = FrameSpec(num_frames=3, image_size=16)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("windows")
    lines = ["video,caption,split"]
    for name, length in (("a", 31), ("b", 2), ("c", 14)):
        make_clip(root / f"{name}.mp4", length, 10, audio=False)
        lines.append(f"{name}.mp4,clip {name},test")
    (root / "captions.csv").write_text("\n".join(lines) + "\n")
    return root


def frames_by_hand(
    path: Path, spec: FrameSpec, stride: int, first: int = 0, last: int | None = None
) -> list[np.ndarray]:
    """Every window as the definition has it: the first frame of each equal interval, shifted within the interval."""
    frames = true_frames(path)[first:last]
    parts = min(spec.num_frames, len(frames))
    edges = [int(k * len(frames) / parts) for k in range(parts)]
    shifts = range(0, max(1, len(frames) // parts), stride)
    return [
        to_square(np.stack([frames[min(edge + shift, len(frames) - 1)] for edge in edges]), spec) for shift in shifts
    ]


@pytest.mark.parametrize("name", ["a", "b", "c"])
@pytest.mark.parametrize("stride", [1, 4, 50])
def test_windows_hold_the_shifted_frames(clips: Path, name: str, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windowed_videos, "READ", 4)
    path = clips / f"{name}.mp4"
    expected = frames_by_hand(path, SPEC, stride)
    found = load_windows(VideoRecord(name, path), SPEC, WindowSpec(stride))
    assert len(found) == len(expected)
    for window, frames in zip(found, expected, strict=True):
        assert window.n_valid == len(frames)
        assert np.array_equal(window.frames_TCHW[: window.n_valid], frames)
        assert not window.frames_TCHW[window.n_valid :].any()


def test_windows_of_a_segment(clips: Path) -> None:
    record = VideoRecord("a", clips / "a.mp4", start_s=1.0, end_s=2.5)
    expected = frames_by_hand(clips / "a.mp4", SPEC, 2, 10, 25)
    found = load_windows(record, SPEC, WindowSpec(2))
    assert [window.frames_TCHW.tolist() for window in found] == [frames.tolist() for frames in expected]


def test_number_of_windows() -> None:
    assert offsets(4, 100, WindowSpec(5)) == [0, 5, 10, 15, 20]
    assert offsets(4, 100, WindowSpec(5, "upstream")) == [0, 5, 10, 15]  # one fifth of the video, not a quarter
    assert offsets(4, 100, WindowSpec(5, most=3)) == [0, 10, 20]
    assert offsets(4, 1_000_000, WindowSpec(1, most=64))[-1] == 249_999
    assert len(offsets(4, 1_000_000, WindowSpec(1, most=64))) == 64
    assert len(offsets(4, 1000, WindowSpec(1, most=None))) == 250


def tokenize(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    tokens_NL = torch.tensor([[sum(map(ord, caption)) % 100] for caption in captions])
    return tokens_NL, torch.ones_like(tokens_NL, dtype=torch.bool)


class _Model(RetrievalModule):
    """A video is its frames' mean colours through something that is not linear, so that a mean of means shows."""

    rows: list[int]

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec(tokenize, SPEC)

    def encode_text(self, batch: TextBatch) -> TextEmbedding:
        words_B3 = batch.tokens_BL.float().expand(-1, 3)
        return TextEmbedding(ids=batch.ids, parts={"x": words_B3}, video_ids=batch.video_ids)

    def encode_video(self, batch: VideoBatch) -> VideoEmbedding:
        assert batch.frames_BTCHW is not None
        self.rows.append(len(batch))
        means_B3 = batch.frames_BTCHW.double().mean(dim=(1, 3, 4))
        return VideoEmbedding(ids=batch.ids, parts={"x": means_B3.square().float()})

    def similarity(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        return text.parts["x"] @ video.parts["x"].T


def make(clips: Path, windows: WindowSpec | None, **options: Any) -> FolderDataModule:
    inputs = options.pop("inputs", InputSpec(tokenize, SPEC, windows=windows))
    split = SplitSpec("folder", parts={"test": "test"})
    module = FolderDataModule(name="folder", data_dir=str(clips), inputs=inputs, split=split, **options)
    module.trainer = SimpleNamespace(global_rank=0, world_size=1)
    return module


@pytest.mark.parametrize("workers", [0, 1])
def test_embedding_is_the_mean_over_windows(clips: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaging, "ROWS", 4)
    monkeypatch.setattr("src.models.base.ROWS", 4)
    module, model = make(clips, WindowSpec(2), num_workers=workers), _Model()
    model.rows = []
    loaders = module.test_dataloader()
    with torch.inference_mode():
        for kind, loader in enumerate(loaders):
            for number, batch in enumerate(loader):
                model.test_step(batch, number, kind)
    _, video = model.collected("test")
    assert video.ids.tolist() == [0, 1, 2]
    assert max(model.rows) <= 4  # a video's windows are encoded in pieces
    assert sum(model.rows) == 5 + 1 + 2
    for row, name in enumerate(("a", "b", "c")):
        shown = [
            np.concatenate([frames, np.zeros((3 - len(frames), *frames.shape[1:]))])
            for frames in frames_by_hand(clips / f"{name}.mp4", SPEC, 2)
        ]
        expected = np.mean([frames.mean(axis=(0, 2, 3)) ** 2 for frames in shown], axis=0)
        np.testing.assert_allclose(video.parts["x"][row].numpy(), expected, rtol=1e-5)
    assert module.describe("test")["windows"] == "every 2 frames (intervals, at most 64)"


def test_every_window_is_given_the_words_of_its_video(clips: Path, tmp_path: Path) -> None:
    box = [4, 4, 30, 4, 30, 12, 4, 12]
    track = {"text": "exit now", "score": 0.9, "tracks": {"2": box, "5": box}}
    (tmp_path / "a.mp4.json").write_text(json.dumps({"0": track}))
    model = tiny_textvr(mode="fusion").eval()
    inputs = replace(model.input_spec, windows=WindowSpec(3))
    module = make(clips, None, inputs=inputs, ocr_dir=str(tmp_path))
    assert inputs.frames is not None
    assert module.words is not None
    with torch.inference_mode():
        found = torch.cat([model.encode_gallery(batch).parts["video"] for batch in module.test_dataloader()[0]])
        for row, name in enumerate(("a", "b", "c")):
            record, windows = module.part("test").videos[row], []
            shown = frames_by_hand(clips / f"{name}.mp4", inputs.frames, 3)
            for frames in shown:
                words = module.words.batch([record])
                assert words.words_BW.sum() == (2 if name == "a" else 0)
                frames_BTCHW = torch.from_numpy(frames)[None]
                mask_BT = torch.ones(frames_BTCHW.shape[:2], dtype=torch.bool)
                windows.append(model.encode_video(VideoBatch(torch.tensor([row]), frames_BTCHW, mask_BT, words=words)))
            assert len(shown) > 1 or name == "b"
            expected = torch.cat([window.parts["video"] for window in windows]).mean(dim=0)
            torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-6)


def test_without_windows_nothing_changes(clips: Path) -> None:
    module, model = make(clips, None), _Model()
    model.rows = []
    (batch,) = module.test_dataloader()[0]
    assert torch.equal(model.encode_gallery(batch).parts["x"], model.encode_video(batch).parts["x"])
    assert model.rows == [3, 3]
    assert "windows" not in module.describe("test")


def test_unreadable_videos_are_reported(clips: Path, tmp_path: Path) -> None:
    for path in clips.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 60 if path.name == "b.mp4" else None])
    module = make(tmp_path, WindowSpec(2))
    assert [sorted(set(batch.ids.tolist())) for batch in module.test_dataloader()[0]] == [[0], [2]]
    assert [problem.video_id for problem in module.problems] == ["b.mp4"]
    with pytest.raises(VideoError, match="names no file"):
        load_windows(VideoRecord("x"), SPEC, WindowSpec(2))


def test_masks_cannot_be_averaged() -> None:
    video = VideoEmbedding(ids=torch.tensor([0, 0]), parts={"mask": torch.ones(2, 3, dtype=torch.bool)})
    with pytest.raises(UserError, match=r"has the part 'mask'.*cannot be averaged over windows"):
        mean_of_windows(video)


def test_options() -> None:
    inputs = InputSpec(None, SPEC)

    def asked(cache: str = "none", given: InputSpec = inputs, **task: object) -> InputSpec:
        keys = {"window_stride": None, "window_count": "intervals", "max_windows": 64} | task
        return with_windows(OmegaConf.create({"task": keys, "dataset": {"cache": cache}}), given)

    assert asked() == inputs
    assert asked(window_stride=12, window_count="upstream").windows == WindowSpec(12, "upstream", 64)
    for options, reason in (
        ({"window_stride": 0}, "task.window_stride=0, expected a whole number of at least 1"),
        ({"window_stride": 2, "max_windows": "x"}, "task.max_windows=x"),
        ({"window_stride": 2, "window_count": "all"}, "task.window_count=all, expected one of intervals, upstream"),
        ({"window_stride": 2, "cache": "disk"}, r"add dataset\.cache=none"),
        ({"window_stride": 2, "given": InputSpec(None)}, "this one reads none"),
    ):
        with pytest.raises(UserError, match=reason):
            asked(**options)  # type: ignore[arg-type]
