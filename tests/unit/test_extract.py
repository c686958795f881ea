"""task=extract: what becomes of each item, and how shards are shared out, repeated and reported."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer

from src.batch import InputSpec
from src.clip import Clip, Medium, Unusable
from src.data.annotation import Annotation, CaptionRecord, TopicRecord, VideoRecord
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
