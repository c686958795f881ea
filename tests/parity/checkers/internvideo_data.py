"""InternVideo's data pipeline: rows of its loaders, the frames they decode, and token ids."""

from __future__ import annotations

import itertools
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml

from src.batch import FrameSpec, InputSpec
from src.data.annotation import VideoRecord
from src.data.benchmarks.activitynet import ActivityNetDataModule
from src.data.benchmarks.didemo import DidemoDataModule
from src.data.benchmarks.lsmdc import LsmdcDataModule
from src.data.benchmarks.msrvtt import MsrvttDataModule
from src.data.benchmarks.msvd import MsvdDataModule
from src.data.benchmarks.published import PublishedDataModule
from src.data.benchmarks.vatex import VatexDataModule
from src.data.datasets import FrameSource, TrainPairs
from src.data.sampling import clip4clip_picks, clip4clip_seconds, clip4clip_slice, frame_indices, internvideo_picks
from src.data.splits import SplitPart, SplitSpec
from src.errors import UserError
from src.models.tokenizer import ClipTokenizer
from tests.parity.cases import ROOT, Case

# Which of our rules reads as the reference's two readers do.
RULES = {"decord": "internvideo", "cv2": "clip4clip"}


@dataclass(frozen=True)
class Layout:
    """How one data set of the case is laid out for our reader.

    Attributes:
        reader: the DataModule.
        split: yaml in conf/split that names lists and caption policies.
        part: of that split.
        folder: prefix of its files in the case's `annotation_files`.
        rename: name of a file in the case -> published name, where they differ.
        shown_id: our video id -> the reference's.
    """

    reader: type[PublishedDataModule]
    split: str
    part: str = "test"
    folder: str = ""
    rename: dict[str, str] = field(default_factory=dict)
    shown_id: Callable[[str], str] = str


MSRVTT_FILES = {"train.csv": "MSRVTT_train.9k.csv", "test.csv": "MSRVTT_JSFUSION_test.csv"}
LAYOUTS = {
    "msrvtt_test": Layout(MsrvttDataModule, "msrvtt", rename=MSRVTT_FILES),
    "msrvtt_train_expand": Layout(MsrvttDataModule, "msrvtt", "train", rename=MSRVTT_FILES),
    "msrvtt_train_noexpand": Layout(MsrvttDataModule, "msrvtt", "train", rename=MSRVTT_FILES),
    "msvd_test": Layout(MsvdDataModule, "msvd", folder="msvd/"),
    # A clip named again is a row of its own: ours needs another id, <clip id>@2.
    "lsmdc_test": Layout(LsmdcDataModule, "lsmdc", folder="lsmdc/", shown_id=lambda name: name.partition("@")[0]),
    "anet_val": Layout(ActivityNetDataModule, "activitynet", folder="anet/"),
    # The reference appends the extension to ids without one; ours have none.
    "didemo_test": Layout(DidemoDataModule, "didemo", folder="didemo/", shown_id=lambda name: f"{name}.mp4"),
    "vatex_test": Layout(VatexDataModule, "vatex", folder="vatex/"),
}


class FakeReader:
    """A video of the case's length and rate; keeps what is read of it."""

    def __init__(self, facts: dict[str, Any], size: int) -> None:
        self.facts, self.size = facts, size
        self.fps: float = facts["fps"]
        self.indices: list[int] = []

    def __len__(self) -> int:
        return int(self.facts["n_frames"])

    def __enter__(self) -> FakeReader:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def read(self, indices: Sequence[int]) -> np.ndarray:
        self.indices = list(indices)
        return np.zeros((len(indices), self.size, self.size, 3), dtype=np.uint8)


@contextmanager
def fake_videos(case: Case) -> Iterator[dict[str, FakeReader]]:
    """Decoding gives the case's videos; yields file name -> what was read."""
    readers = {
        name: FakeReader(facts, case.meta["image_resolution"]) for name, facts in case.meta["video_files"].items()
    }
    with mock.patch("src.data.frame_cache.open_video", lambda path, *_: readers[Path(path).name]):
        yield readers


def write_files(case: Case, layout: Layout, root: Path) -> None:
    """The annotation files of one data set as published, and an empty file for each video."""
    annotations, videos = root / "annotations", root / "vatex_videos"
    annotations.mkdir(parents=True)
    videos.mkdir()
    for name, content in case.meta["annotation_files"].items():
        if not name.startswith(layout.folder) or "/" in name.removeprefix(layout.folder):
            continue
        name = name.removeprefix(layout.folder)
        if name.endswith(".pkl (as JSON)"):
            (annotations / name.removesuffix(" (as JSON)")).write_bytes(pickle.dumps(content))
        else:
            (annotations / layout.rename.get(name, name)).write_text(content.replace("ROOT", str(root)))
    for name in case.meta["video_files"]:
        (videos / name).touch()


def module_of(case: Case, layout: Layout, root: Path, backend: str) -> PublishedDataModule:
    values = yaml.safe_load((ROOT / "conf" / "split" / f"{layout.split}.yaml").read_text())
    part = layout.part
    split = SplitSpec(
        layout.split,
        parts={part: values["parts"][part]},
        captions={part: values["captions"][part]},
        subset="available",
    )
    frames = FrameSpec(
        case.meta["max_frames"],
        image_size=case.meta["image_resolution"],
        sampling=RULES[backend],  # type: ignore[arg-type]
        framerate=case.meta["feature_framerate"],
    )
    # VATEX finds its files by the "path" of its entries.
    videos = root / ("nowhere" if layout.reader is VatexDataModule else "vatex_videos")
    return layout.reader(
        name=layout.split,
        split=split,
        inputs=InputSpec(ClipTokenizer(case.meta["max_words"]), frames),
        annotations_dir=str(root / "annotations"),
        videos_dir=str(videos),
    )


def check_datasets(case: Case) -> None:
    assert LAYOUTS.keys() == case.meta["expected"].keys()
    for name, expected in case.meta["expected"].items():
        layout = LAYOUTS[name]
        with tempfile.TemporaryDirectory() as folder, fake_videos(case) as readers:
            write_files(case, layout, Path(folder))
            rows = expected.get("rows", [])
            module = module_of(case, layout, Path(folder), rows[0]["backend"] if rows else "decord")
            part = module.part(layout.part)
            if rows:
                assert len(rows) == expected["length"] == len(part.captions), name
                check_rows(module, layout, rows, readers)
            else:
                check_one_per_video(part, expected["length"])
            if "cut_off_points" in expected:
                assert [*itertools.accumulate(part.captions_per_video())] == expected["cut_off_points"], name
            if "start_end" in expected:
                assert [[video.start_s, video.end_s] for video in part.videos] == expected["start_end"], name


def check_rows(
    module: PublishedDataModule, layout: Layout, rows: list[dict[str, Any]], readers: dict[str, FakeReader]
) -> None:
    """Every caption with its tokens, and its video with the frames that are read.

    The reference's training rows follow the annotation file, where captions of one video stand apart; ours stand side
    by side, in the order of the file for each video. Test rows already do.
    """
    part = module.part(layout.part)
    order = list(dict.fromkeys(row["video_id"] for row in rows))
    if layout.part == "train":
        rows = sorted(rows, key=lambda row: order.index(row["video_id"]))
    videos, captions = module.eval_dataloaders(layout.part)
    (text,) = captions
    (video,) = videos
    words = rows[0]["input_ids"]
    tokens = torch.nn.functional.pad(text.tokens_BL, (0, len(words) - text.tokens_BL.shape[1]))
    mask = torch.nn.functional.pad(text.mask_BL, (0, len(words) - text.mask_BL.shape[1]))
    for number, row in enumerate(rows):
        position = part.video_index[number]
        record = part.videos[position]
        assert layout.shown_id(record.id) == row["video_id"], row
        assert part.captions[number].text == row["caption"], row
        assert tokens[number].tolist() == row["input_ids"], row
        assert mask[number].int().tolist() == row["attention_mask"], row
        assert video.mask_BT[position].int().tolist() == row["video_mask"], row
        batch, frames, clips, *pixels = row["video_shape"]
        assert (batch, clips, [frames, *pixels]) == (1, 1, list(video.frames_BTCHW[position].shape)), row
        assert record.path is not None
        reader = readers[record.path.name]
        check_frames(record, reader, row, module.inputs.frames)


def check_frames(record: VideoRecord, reader: FakeReader, row: dict[str, Any], spec: FrameSpec | None) -> None:
    """What was read is what the reference decodes; its cv2 reader decodes more and then picks from that."""
    assert spec is not None
    wanted = row["frames_decoded"]
    if row["backend"] == "cv2":
        seconds = None
        if record.start_s is not None:
            seconds = clip4clip_seconds((record.start_s, record.end_s), len(reader), reader.fps)
        assert clip4clip_picks(len(reader), reader.fps, spec.framerate, seconds) == wanted, row
        if len(wanted) > spec.num_frames:
            wanted = [wanted[i] for i in np.linspace(0, len(wanted) - 1, spec.num_frames, dtype=int)]
    assert reader.indices == wanted, row


def check_one_per_video(part: SplitPart, length: int) -> None:
    """Training without expansion: one sample per video, its caption drawn anew each epoch from all it has."""
    pairs = TrainPairs(part, FrameSource(None), seed=0, samples="one_per_video")
    assert len(pairs) == length == len(part.videos)
    for index in range(length):
        drawn = [item.caption for epoch in range(90) if (item := pairs[epoch, index]) is not None]
        own = {number for number, video in enumerate(part.video_index) if video == index}
        assert set(drawn) == own
        assert min(map(drawn.count, own)) > 90 / len(own) / 2


def check_frame_sampling(case: Case) -> None:
    for row in case.meta["decord"]:
        segment = (row["start"], row["end"])
        facts = (row["n_frames"], row["fps"])
        spec = FrameSpec(row["max_frames"], 8, sampling="internvideo", framerate=row["feature_framerate"])
        if "error" in row:
            # A stride of 0 is an error of the reference; ours reads every frame of the segment.
            picked = internvideo_picks(*facts, spec.framerate, segment)
            assert [*np.diff(picked)] == [1] * (len(picked) - 1), row
            assert len(frame_indices(*facts, spec, None, segment)) == min(len(picked), spec.num_frames), row
        elif row["positions"] is None:
            # A segment behind the end gives the reference no frame; ours names the video as unreadable.
            assert row["valid"] == len(internvideo_picks(*facts, spec.framerate, segment)) == 0, row
            try:
                frame_indices(*facts, spec, None, segment)
            except UserError:
                continue
            raise AssertionError(f"expected an error: {row}")
        else:
            found = frame_indices(*facts, spec, None, segment)
            assert (found, len(found)) == (row["positions"], row["valid"]), row
    for row in case.meta["cv2"]:
        seconds = None if row["start"] is None else (row["start"], row["end"])
        decoded = clip4clip_picks(row["n_frames"], row["fps"], row["framerate"], seconds)
        assert decoded == row["decoded"], row
        assert row["shape"][0] == max(1, len(decoded)), row
    for row in case.meta["slice_framepos2_linspace"]:
        assert clip4clip_slice(range(row["available"]), row["max_frames"], 2) == row["picked"], row


def check_tokenize(case: Case) -> None:
    for row in case.meta["rows"]:
        tokens, mask = ClipTokenizer(row["max_words"])([row["text"]])
        count = row["n_tokens"]
        assert tokens[0, :count].tolist() == row["ids"], row
        assert not tokens[0, count:].any(), row
        assert mask[0].tolist() == [True] * count + [False] * (row["max_words"] - count), row


CHECKERS = {
    "internvideo": {
        "datasets": check_datasets,
        "frame_sampling": check_frame_sampling,
        "tokenize": check_tokenize,
    }
}
