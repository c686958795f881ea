"""Teachers' scores: published pickles to stores, stores to batches, and what a student refuses."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from src.batch import InputSpec
from src.data.annotation import CaptionRecord, VideoRecord
from src.data.caption_tokens import CaptionTokens
from src.data.datasets import CaptionCollate, Frames, PairCollate, PairItem, VideoCollate
from src.data.features.experts import cut_ids
from src.data.features.pickles import pickle_source
from src.data.features.source import import_source
from src.data.features.store import FeatureStore
from src.data.features.writer import StoreWriter
from src.data.splits import SplitPart
from src.data.teachers import TeacherSource, row_ids
from src.errors import UserError
from src.tasks.build import store_folders
from src.tasks.prepare_denoise import own_ranks

VIDEOS, CAPTIONS = ("a", "b", "c", "d"), 2


def part_of(videos: Sequence[str] = VIDEOS, captions: int = CAPTIONS) -> SplitPart:
    records = tuple(CaptionRecord(v, f"{v} {k}", (f"{v}#{k}",)) for v in videos for k in range(captions))
    index = tuple(v for v in range(len(videos)) for _ in range(captions))
    return SplitPart("train", tuple(map(VideoRecord, videos)), records, index)


def write(
    folder: Path, scores_TV: np.ndarray, *, videos: Any = VIDEOS, rows: Sequence[str] = (), **recipe: Any
) -> Path:
    """A store as task=extract writes it."""
    rows = rows or [f"{v}#{k}" for v in VIDEOS for k in range(CAPTIONS)]
    known: dict[str, Any] = {"videos": videos and list(videos), **recipe}
    writer = StoreWriter(
        folder, name="teacher.x", dim=scores_TV.shape[1], recipe=known, ids=list(rows), dtype="float16"
    )
    for shard in writer.pending():
        place = {row: n for n, row in enumerate(rows)}
        writer.write_shard(shard, ((i, scores_TV[place[i]], None, None) for i in writer.shard_ids(shard)))
    writer.finish()
    return folder


def source(folder: Path, part: SplitPart | None = None, **options: Any) -> TeacherSource:
    return TeacherSource(["x"], {"x": folder}, part or part_of(), split="mine", **options)


def numbers(rows: int, columns: int = len(VIDEOS)) -> np.ndarray:
    return np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)


@pytest.mark.parametrize("whole", [False, True])
def test_a_batch_gets_the_columns_of_its_videos(tmp_path: Path, whole: bool) -> None:
    """Columns are found by the ids of the videos, whatever their order in the store, and unused ones are harmless."""
    s_TV = numbers(8, 5)
    found = source(write(tmp_path / "x", s_TV, videos=["d", "z", "b", "a", "c"]), whole_rows=whole)
    found.check()
    batch = pickle.loads(pickle.dumps(found)).batch([7, 1, 6], [3, 0, 3])  # noqa: S301  as workers get it
    assert batch.video_ids.tolist() == ([0, 1, 2, 3] if whole else [0, 3])
    columns = [3, 2, 4, 0] if whole else [3, 0]
    assert batch.scores["x"].tolist() == s_TV[[7, 1, 6]][:, columns].tolist()
    assert batch.scores["x"].dtype == torch.float16


@pytest.mark.parametrize("share", [False, True])
def test_training_batches_carry_scores(tmp_path: Path, share: bool) -> None:
    part = part_of()
    teachers = source(write(tmp_path / "x", numbers(8)))
    videos = VideoCollate(part, InputSpec(None))
    captions = CaptionCollate(part, CaptionTokens([c.text for c in part.captions], None))
    nothing = Frames(np.zeros((0, 3, 0, 0), dtype=np.uint8), 0)
    batch = PairCollate(videos, captions, share, teachers)([PairItem(6, 3, nothing), None, PairItem(7, 3, nothing)])
    assert batch is not None
    assert batch.teachers is not None
    assert batch.teachers.scores["x"].tolist() == [[27.0], [31.0]]
    assert batch.to("cpu").teachers.video_ids.tolist() == [3]  # type: ignore[union-attr]
    without = PairCollate(videos, captions, share)([PairItem(6, 3, nothing)])
    assert without is not None
    assert without.teachers is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"recipe": {"split": "other"}}, "was made for the split 'other', expected 'mine'.*task=extract"),
        ({"recipe": {"videos": list("abce")}}, "has no scores of 1 of 4 training videos .first: 'd'.*task=extract"),
        ({"recipe": {"videos": list("abc")}}, "holds no scores of training videos; make them by"),
        ({"recipe": {"videos": None}}, "holds no scores of training videos"),
        ({"rows": [f"{v}#0" for v in VIDEOS]}, "has no scores of 4 of 8 training captions .first: 'a#1'"),
    ],
)
def test_scores_of_something_else_are_refused(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    rows = wrong.get("rows") or [f"{v}#{k}" for v in VIDEOS for k in range(CAPTIONS)]
    recipe = {"videos": list(VIDEOS)} | wrong.get("recipe", {})
    folder = write(tmp_path / "x", numbers(len(rows)), rows=rows, **recipe)
    with pytest.raises(UserError, match=said):
        source(folder).check()


def test_a_paragraph_goes_by_its_first_sentence_and_keys_must_differ() -> None:
    video = (VideoRecord("a"),)
    assert row_ids(SplitPart("train", video, (CaptionRecord("a", "x", ("a#0", "a#1")),), (0,))) == ["a#0"]
    with pytest.raises(UserError, match="that have no key"):
        row_ids(SplitPart("train", video, (CaptionRecord("a", "x"),), (0,)))
    with pytest.raises(UserError, match="that share the key 'a#0'"):
        row_ids(SplitPart("train", video, (CaptionRecord("a", "x", ("a#0",)),) * 2, (0, 0)))


def test_names_and_folders_of_teachers(tmp_path: Path) -> None:
    cfg: Any = OmegaConf.create(
        {
            **{"paths": {"data_dir": str(tmp_path)}, "dataset": {"name": "d"}, "experts": {}, "text": {}},
            "model": {"teachers": ["teacher.a", "runs/x/b"]},
        }
    )
    folders = store_folders(cfg)
    assert folders == {"teacher.a": tmp_path / "d" / "features" / "teacher.a", "runs/x/b": Path("runs/x/b")}


# ---- published pickles ------------------------------------------------------------------------------------------


def published(videos: Sequence[str], dims: dict[str, int], captions: int = CAPTIONS) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        video: {
            "vid_embds": {expert: rng.normal(size=dim).astype(np.float32) for expert, dim in dims.items()},
            "text_embds": {
                expert: [rng.normal(size=dim).astype(np.float32) for _ in range(captions)]
                for expert, dim in reversed(dims.items())
            },
        }
        for video in videos
    }


def imported(content: object, folder: Path, **options: Any) -> FeatureStore:
    (folder / "t.pkl").write_bytes(pickle.dumps(content))
    return import_source(pickle_source([folder / "t.pkl"], "t"), folder / "store", **options)


@pytest.mark.parametrize("dims", [{"audio": 4, "rgb": 4}, {"audio": 2, "rgb": 7, "face": 3}])
def test_published_embeddings_become_plain_sums_over_experts(tmp_path: Path, dims: dict[str, int]) -> None:
    """Also with the raw dimensions of MoEE; half precision unless asked otherwise."""
    content = published(VIDEOS, dims)
    store = imported(content, tmp_path, dtype="float32")
    assert store.recipe["videos"] == list(VIDEOS)
    assert store.recipe["experts"] == dims
    for video in VIDEOS:
        for k in range(CAPTIONS):
            texts = content[video]["text_embds"]
            expected = [
                sum(float(texts[expert][k] @ content[other]["vid_embds"][expert]) for expert in dims)
                for other in VIDEOS
            ]
            np.testing.assert_allclose(store.get(f"{video}#{k}")[0], expected, rtol=1e-5)
    (tmp_path / "half").mkdir()
    assert imported(content, tmp_path / "half").dtype == np.float16
    found = TeacherSource(["x"], {"x": store.path}, part_of(VIDEOS[::-1]), split="any name")
    found.check()
    assert found.batch([1], [0, 3]).scores["x"][0].tolist() == store.get("d#1")[0][[3, 0]].tolist()


def test_columns_are_renamed_with_the_rows(tmp_path: Path) -> None:
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(published(["1@a.mp4", "2@b.avi"], {"rgb": 2})))
    store = import_source(cut_ids(pickle_source([tmp_path / "t.pkl"], "t")), tmp_path / "store")
    assert store.recipe["videos"] == ["1@a", "2@b"]
    assert store.ids == ("1@a#0", "1@a#1", "2@b#0", "2@b#1")


def test_damaged_embeddings_are_refused(tmp_path: Path) -> None:
    content = published(VIDEOS, {"audio": 4, "rgb": 4})
    del content["c"]["vid_embds"]["rgb"]
    with pytest.raises(UserError, match="'c' has vid_embds of audio, expected audio, rgb"):
        imported(content, tmp_path)
    content = published(VIDEOS, {"audio": 4, "rgb": 4})
    content["b"]["text_embds"]["rgb"].pop()
    with pytest.raises(UserError, match=r"'b' has text_embds .*2 of audio, 1 of rgb, expected 1 of each"):
        imported(content, tmp_path)
    content = published(VIDEOS, {"audio": 4, "rgb": 4})
    content["b"]["vid_embds"]["rgb"] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match=r"'b' has vid_embds of rgb of shape \(3,\), expected dim 4"):
        imported(content, tmp_path)


# ---- ranks for denoising ----------------------------------------------------------------------------------------


def test_ranks_of_the_own_video_average_ties(tmp_path: Path) -> None:
    s_TV = np.array([[9, 1, 2, 3], [1, 5, 2, 3], [5, 5, 5, 5], [7, 6, 7, 8], [1, 1, 2, 2], [0, 1, 2, 3]])
    s_TV = np.concatenate([s_TV, [[3, 2, 1, 0], [0, 0, 0, 1]]]).astype(np.float32)
    found = own_ranks(source(write(tmp_path / "x", s_TV), whole_rows=True), (0, 0, 1, 1, 2, 2, 3, 3))
    assert found.tolist() == [1, 4, 2.5, 4, 1.5, 2, 4, 1]
