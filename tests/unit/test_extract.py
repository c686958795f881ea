"""Decoding for extraction, the pool that does it, and what becomes of each item."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer

from src.batch import InputSpec
from src.clip import Clip, Medium, Request, Unusable
from src.data.annotation import Annotation, CaptionRecord, TopicRecord, VideoRecord
from src.data.clip_pool import CRASHED, decode_all
from src.data.clips import ClipDecoder, frame_grid, short_side_size
from src.data.datamodule import RetrievalDataModule
from src.data.features.store import FeatureStore
from src.data.features.writer import FAILED, StoreWriter
from src.data.splits import SplitSpec
from src.data.video import read_problems
from src.errors import UserError
from src.extractors.base import Extractor
from src.tasks import extract
from src.tasks.build import quiet
from src.tasks.extraction import Extraction, Work, WorkData, items_of
from tests.clips import make_clip, make_truncated, true_frames
from tests.odd_decoder import odd_decode


class Lengths(Extractor):
    """Two numbers of a text; refuses, finds nothing or goes wrong where the text says so."""

    medium: ClassVar[Medium] = "text"
    nothing: ClassVar[str] = "no words"
    name = "lengths"
    dim = 2  # type: ignore[assignment]

    def __init__(self) -> None:
        self.companies: list[list[str]] = []

    def recipe(self) -> Mapping[str, Any]:
        return {"version": 1}

    def extract(self, clip: Clip) -> np.ndarray | None:
        if clip.text == "refuse":
            raise UserError("it does not like this")
        if clip.text == "nothing":
            return None
        value = {"nan": np.nan, "large": 1e6}.get(clip.text, float(len(clip.text)))
        return np.full((1, 3 if clip.text == "wide" else 2), value, np.float32)

    def extract_many(self, clips: list[Clip]) -> list[np.ndarray | None]:
        self.companies.append([clip.id for clip in clips])
        return super().extract_many(clips)

    def details(self, clip: Clip) -> Mapping[str, Any] | None:
        return {"text": clip.text}


# ----------------------------------------------------------------------------- frames


@pytest.mark.parametrize(
    ("num_frames", "fps", "request_", "expected"),
    [
        (30, 10.0, Request(fps=1.0), [5, 15, 25]),
        (34, 10.0, Request(fps=1.0), [5, 15, 25]),
        (36, 10.0, Request(fps=1.0), [5, 15, 25, 35]),
        (3, 10.0, Request(fps=1.0), [2]),
        (30, 10.0, Request(fps=5.0), list(range(1, 30, 2))),
        (5, 2.0, Request(fps=3.0), [0, 1, 2, 3, 4]),
        (4, 10.0, Request(fps=None), [0, 1, 2, 3]),
        (100, 10.0, Request(fps=1.0, max_frames=2), [25, 75]),
        (100, 10.0, Request(fps=1.0, max_frames=10), list(range(5, 100, 10))),
    ],
)
def test_frames_lie_in_the_middle_of_equal_times(
    num_frames: int, fps: float, request_: Request, expected: list[int]
) -> None:
    assert frame_grid(num_frames, fps, request_) == expected


def test_the_grid_of_a_segment_starts_with_it() -> None:
    assert frame_grid(100, 10.0, Request(fps=1.0), start=40, stop=60) == [45, 55]


def test_sides_are_truncated_as_torchvision_does() -> None:
    assert short_side_size(240, 427, 224) == (224, 398)
    assert short_side_size(427, 240, 224) == (398, 224)
    assert short_side_size(427, 240, None) == (427, 240)


def test_decoded_frames_are_those_of_the_file(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 30, 10, audio=False)
    record = VideoRecord("a", path, start_s=1.0, end_s=3.0)
    clip = ClipDecoder("frames", Request(fps=2.0))(record)
    assert isinstance(clip, Clip)
    assert clip.frame_indices == (12, 17, 22, 27)
    assert clip.fps == 10
    assert clip.size_hw == (48, 64)
    assert np.array_equal(clip.frames_THWC, true_frames(path)[[12, 17, 22, 27]])
    small = ClipDecoder("frames", Request(fps=2.0, short_side=24, max_frames=2))(record)
    assert isinstance(small, Clip)
    assert small.frames_THWC is not None
    assert small.frames_THWC.shape == (2, 24, 32, 3)
    assert small.size_hw == (48, 64)


def test_chunks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = VideoRecord("a", make_clip(tmp_path / "a.mp4", 30, 10, audio=False))
    decode = ClipDecoder("frames", Request(fps=None, short_side=32))
    whole = decode(record)
    monkeypatch.setattr("src.data.clips._CHUNK_BYTES", 7 * 48 * 64 * 3)
    parts = decode(record)
    assert isinstance(whole, Clip)
    assert isinstance(parts, Clip)
    assert np.array_equal(whole.frames_THWC, parts.frames_THWC)


def test_unusable_files_say_why(tmp_path: Path) -> None:
    decode = ClipDecoder("frames", Request())
    broken = make_truncated(tmp_path / "truncated.mp4", share=0.3)
    assert decode(VideoRecord("a", tmp_path / "a.mp4")) == Unusable("a", "file not found", failed=True)
    assert decode(VideoRecord("a")) == Unusable("a", "the data set knows no file of it", failed=True)
    truncated = decode(VideoRecord("a", broken))
    assert isinstance(truncated, Unusable)
    assert truncated.reason.startswith("truncated: ")
    outside = decode(VideoRecord("a", make_clip(tmp_path / "b.mp4", 10, 10), start_s=5.0))
    assert isinstance(outside, Unusable)
    assert "found a segment from 5.0 s" in outside.reason


# ----------------------------------------------------------------------------- sound


def make_tone(path: Path, seconds: float = 2.0, rate: int = 8000) -> Path:
    """A wav file: left channel a sine, right channel its half."""
    times = np.arange(int(seconds * rate)) / rate
    left = np.sin(2 * np.pi * 440 * times).astype(np.float32) * 0.5
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="stereo")
        samples = (np.stack([left, left / 2], axis=1) * 32767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_sound_is_averaged_resampled_and_cut(tmp_path: Path) -> None:
    path = make_tone(tmp_path / "a.wav")
    mono = ClipDecoder("audio", Request())(VideoRecord("a", path))
    assert isinstance(mono, Clip)
    assert mono.wave_CN is not None
    assert mono.wave_CN.shape == (1, 16000)
    assert mono.wave_CN.dtype == np.float32
    assert np.abs(mono.wave_CN).max() == pytest.approx(0.5 * 0.75, abs=1e-3)  # the mean of both channels, not louder
    part = ClipDecoder("audio", Request(sample_rate=4000, mono=False))(VideoRecord("a", path, start_s=0.5, end_s=1.5))
    assert isinstance(part, Clip)
    assert part.wave_CN is not None
    assert part.wave_CN.shape == (2, 4000)
    assert part.sample_rate == 4000
    expected = 0.5 * np.sin(2 * np.pi * 440 * (0.5 + np.arange(4000) / 4000))
    assert np.abs(part.wave_CN[0, 50:-50] - expected[50:-50]).max() < 0.02


def test_no_sound_is_missing_and_no_failure(tmp_path: Path) -> None:
    decode = ClipDecoder("audio", Request())
    silent = make_clip(tmp_path / "silent.mp4", 5, 10, audio=False)
    assert decode(VideoRecord("a", silent)) == Unusable("a", "no audio", failed=False)
    late = make_clip(tmp_path / "late.mp4", 5, 10)
    assert decode(VideoRecord("a", late, start_s=60.0)) == Unusable("a", "no audio", failed=False)
    (tmp_path / "text.mp4").write_text("no video")
    text = decode(VideoRecord("a", tmp_path / "text.mp4"))
    assert isinstance(text, Unusable)
    assert text.failed


def test_sound_that_takes_too_long_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.data.clips._decode_audio", lambda path, request, stop: stop.wait(30))
    path = make_clip(tmp_path / "a.mp4", 5, 10)
    late = ClipDecoder("audio", Request(), timeout_s=0.1)(VideoRecord("a", path))
    assert late == Unusable("a", "no answer from the decoder within 0.1 s", failed=True)


# ----------------------------------------------------------------------------- pool


def test_a_crash_is_listed_and_the_order_is_kept() -> None:
    ids = [str(i) for i in range(12)]
    ids[5:5] = ["deadly"]
    results = list(decode_all(map(VideoRecord, ids), odd_decode, workers=2))
    assert [result.id for result in results] == ids
    assert results[5] == Unusable("deadly", CRASHED, failed=True)
    assert all(isinstance(result, Clip) for result in results if result.id != "deadly")


def test_without_workers_it_decodes_here() -> None:
    results = decode_all(map(VideoRecord, "012"), lambda record: Clip(record.id, text=str(os.getpid())), workers=0)
    assert [result.id for result in results] == ["0", "1", "2"]


# ----------------------------------------------------------------------------- items and shards


def texts(*words: str) -> list[Clip | Unusable]:
    return [Clip(str(i), text=word) for i, word in enumerate(words)]


def test_each_item_gets_vectors_or_a_reason() -> None:
    clips = [*texts("abc", "nothing", "refuse", "nan", "large"), Unusable("5", "no audio", failed=False)]
    clips.append(Unusable("6", "truncated", failed=True))
    items = {item[0]: item for item in items_of(Lengths(), clips, np.dtype("float16"))}
    assert list(items) == ["0", "1", "2", "3", "4", "5", "6"]
    assert items["0"][1] is not None
    assert items["0"][1].tolist() == [[3.0, 3.0]]
    assert items["0"][1].dtype == np.float16
    assert items["0"][3] == {"text": "abc"}
    assert [items[i][2] for i in "123456"] == [
        "no words",
        f"{FAILED}it does not like this",
        f"{FAILED}the extractor gave NaN or infinite numbers",
        f"{FAILED}the extractor gave numbers too large for float16; give task.dtype=float32",
        "no audio",
        f"{FAILED}truncated",
    ]
    with pytest.raises(UserError, match=r"gave shape \(1, 3\) for '0', expected \(steps, 2\)"):
        items_of(Lengths(), texts("wide"), np.dtype("float32"))


SENTENCES = {str(i): Clip(str(i), text="x" * (i + 1)) for i in range(11)}


def work_on(path: Path, **options: Any) -> Work:
    writer = StoreWriter(path, name="lengths", dim=2, recipe={}, ids=list(SENTENCES), items_per_shard=4)
    return Work(writer, options.pop("source", SENTENCES), None, 0, batch_size=3, **options)


def run(work: Work) -> Lengths:
    extractor = Lengths()
    quiet()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    module = Extraction(extractor, work.writer)
    trainer.predict(module, datamodule=WorkData(work), return_predictions=False)
    return extractor


def digests(store: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in store.iterdir()}


def test_batches_keep_to_their_shard_and_jobs_share_them(tmp_path: Path) -> None:
    whole = work_on(tmp_path / "whole")
    extractor = run(whole)
    assert extractor.companies == [["0", "1", "2"], ["3"], ["4", "5", "6"], ["7"], ["8", "9", "10"]]
    whole.writer.finish()
    store = FeatureStore.open(tmp_path / "whole")
    assert store.get("10").tolist() == [[11.0, 11.0]]
    assert store.details("3") == {"text": "xxxx"}

    second = work_on(tmp_path / "parts", share=(1, 2))
    assert run(second).companies == [["4", "5", "6"], ["7"]]
    assert second.writer.pending() == [0, 2]
    first = work_on(tmp_path / "parts", share=(0, 2))
    run(first)
    first.writer.finish()
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")


def test_failed_items_are_tried_again_with_their_shard(tmp_path: Path) -> None:
    whole = work_on(tmp_path / "whole")
    run(whole)
    whole.writer.finish()
    refusing = SENTENCES | {"5": replace(SENTENCES["5"], text="refuse")}
    broken = work_on(tmp_path / "mended", source=refusing)
    run(broken)
    broken.writer.finish()
    assert broken.writer.failed() == {"5": f"{FAILED}it does not like this"}
    mended = work_on(tmp_path / "mended", retry=True)
    assert run(mended).companies == [["4", "5", "6"], ["7"]]
    mended.writer.finish()
    assert digests(tmp_path / "mended") == digests(tmp_path / "whole")


def settings(tmp_path: Path, **task: Any) -> DictConfig:
    defaults = {"dtype": "float32", "batch_size": None, "items_per_shard": None, "shard_of": [0, 1]}
    paths = {"run_dir": str(tmp_path / "run"), "data_dir": str(tmp_path)}
    task = {"retry_failed": False, "output": None, **defaults, **task}
    return OmegaConf.create({"task": task, "paths": paths, "dataset": {"name": "folder"}})


def test_nothing_readable_is_a_mistake_that_lists_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = {key: replace(clip, text="refuse") for key, clip in SENTENCES.items()}
    work = work_on(tmp_path / "store", source=refused)
    run(work)
    with pytest.raises(UserError, match=r"none of 11 items gave features \(first: 0: it does not like this\)"):
        extract.report(settings(tmp_path), work.writer, refused, 0)
    printed = capsys.readouterr().out
    assert "11 failed:" in printed
    assert "  7: it does not like this" in printed
    assert len(read_problems(tmp_path / "run" / "problems.jsonl")) == 11


def test_a_finished_store_is_reported_and_an_unfinished_one_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = {key: replace(clip, text="nothing") if key in "012" else clip for key, clip in SENTENCES.items()}
    work = work_on(tmp_path / "store", source=some)
    extract.report(settings(tmp_path), work.writer, some, 0)
    assert "3 of 3 shards are left to other jobs" in capsys.readouterr().out
    run(work)
    extract.report(settings(tmp_path), work.writer, some, 1)
    printed = capsys.readouterr().out
    assert "8 items, 8 vectors of 2 numbers" in printed
    assert "(1 of 3 shards were there before)" in printed
    assert "3 without features: no words" in printed


def test_a_folder_with_another_recipe_is_refused(tmp_path: Path) -> None:
    cfg = settings(tmp_path)
    extract.make_writer(cfg, Lengths(), SENTENCES)
    assert (tmp_path / "folder" / "features" / "lengths").is_dir()
    other = Lengths()
    other.recipe = lambda: {"version": 2}  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"'version': 1.*'version': 2.*task\.output=FOLDER"):
        extract.make_writer(cfg, other, SENTENCES)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"shard_of": [2, 2]}, r"task\.shard_of=\[2, 2\], expected \[i,n\]"),
        ({"shard_of": [1]}, r"expected \[i,n\]"),
        ({"shard_of": [0, 2], "retry_failed": True}, "an array of jobs would redo shards twice"),
        ({"dtype": "float8"}, "task.dtype=float8, expected float32 or float16"),
        ({"items_per_shard": 0}, "task.items_per_shard=0, expected a positive number"),
    ],
)
def test_mistakes_in_the_settings(task: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        extract.check(settings(tmp_path, **task))


# ----------------------------------------------------------------------------- videos


@dataclass(eq=False, kw_only=True, repr=False)
class Made(RetrievalDataModule):
    """A data set as the test writes it."""

    made: Annotation

    def read(self) -> Annotation:
        return self.made


def test_videos_of_the_parts_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "b.mp4").touch()
    records = tuple(VideoRecord(name, tmp_path / f"{name}.mp4") for name in "abcd")
    annotation = Annotation(records, (), splits={"train": ("c", "b"), "test": ("a",)})
    split = SplitSpec("own", {"train": "train", "test": "test", "val": "absent"})
    data = Made(name="made", split=split, inputs=InputSpec(None), made=annotation)
    assert list(extract.videos(data, ["train"])) == ["b", "c"]  # in the order of the annotation
    assert list(extract.videos(data, ["train", "val", "test"])) == ["a", "b", "c"]
    assert list(extract.videos(data, [])) == ["a", "b", "c", "d"]
    with pytest.raises(UserError, match=r"has no videos in val; give task\.parts="):
        extract.videos(data, ["val"])
    with pytest.raises(UserError, match=r"found task\.parts with tset"):
        extract.videos(data, ["tset"])
    with pytest.raises(UserError, match=r"none of the 1 video files of data set 'made' exists \(first: .*a\.mp4\)"):
        extract.videos(data, ["test"])


# ----------------------------------------------------------------------------- captions


def test_captions_of_lists_and_topics_have_their_own_keys() -> None:
    annotation = Annotation(
        (VideoRecord("v"),),
        (CaptionRecord("v", "one"), CaptionRecord("v", "two")),
        paired={"test": (CaptionRecord("v", "three", ("v@test#0",)), CaptionRecord("v", "one"))},
        topics={"tv16": (TopicRecord("501", "a man"),)},
    )
    assert {key: clip.text for key, clip in extract.captions(annotation).items()} == {
        "v#0": "one",
        "v#1": "two",
        "v@test#0": "three",
        "501": "a man",
    }
    clash = replace(annotation, paired={"test": (CaptionRecord("v", "three", ("v#0",)),)})
    with pytest.raises(UserError, match="the key 'v#0' stands for two captions"):
        extract.captions(clash)
