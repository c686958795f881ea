"""Batches of precomputed features: padding, truncation, means, gaps, paragraphs, and the check of the stores."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.batch import ExpertSpec, InputSpec
from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.datamodule import RetrievalDataModule
from src.data.feature_checks import find_in_features
from src.data.feature_source import FeatureSource
from src.data.features.writer import StoreWriter
from src.data.splits import SplitSpec
from src.errors import UserError

Items = Mapping[str, np.ndarray | None]


def write_store(path: Path, items: Items, dim: int) -> Path:
    writer = StoreWriter(path, name=path.name, dim=dim, recipe={}, ids=list(items), items_per_shard=2)
    for shard in writer.pending():
        writer.write_shard(shard, ((i, items[i], None, None) for i in writer.shard_ids(shard)))
    writer.finish()
    return path


def rows(count: int, dim: int, start: float = 1.0) -> np.ndarray:
    return (start + np.arange(count * dim, dtype=np.float32)).reshape(count, dim)


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, Path]:
    audio = {"a": rows(3, 2), "b": None, "c": rows(1, 2, 50)}
    scene = {"a": rows(1, 4), "b": rows(1, 4, 9), "c": rows(2, 4, 20)}
    return {"audio": write_store(tmp_path / "audio", audio, 2), "scene": write_store(tmp_path / "scene", scene, 4)}


AUDIO = ExpertSpec("audio", 2, temporal=True)
SCENE = ExpertSpec("scene", 4)


def test_temporal_experts_are_padded_and_masked_and_others_averaged(stores: dict[str, Path]) -> None:
    features = FeatureSource((AUDIO, SCENE), stores).batch([("c",), ("a",), ("b",)])
    assert features.values["audio"].tolist() == [
        [[50, 51], [0, 0], [0, 0]],
        [[1, 2], [3, 4], [5, 6]],
        [[0, 0], [0, 0], [0, 0]],
    ]
    assert features.masks["audio"].tolist() == [[True, False, False], [True, True, True], [False, False, False]]
    assert features.values["scene"].tolist() == [[22, 23, 24, 25], [1, 2, 3, 4], [9, 10, 11, 12]]
    assert features.present_BE.tolist() == [[True, True], [True, True], [False, True]]
    assert list(features.values) == ["audio", "scene"]


def test_steps_are_cut_and_padding_may_be_fixed(stores: dict[str, Path]) -> None:
    cut = ExpertSpec("first", 2, temporal=True, max_steps=2, store="audio")
    fixed = ExpertSpec("fixed", 2, temporal=True, max_steps=5, pad="max", store="audio")
    features = FeatureSource((cut, fixed), stores).batch([("a",), ("c",)])
    assert features.values["first"].shape == (2, 2, 2)
    assert features.masks["first"].tolist() == [[True, True], [True, False]]
    assert features.values["fixed"].shape == (2, 5, 2)
    assert features.masks["fixed"].sum(1).tolist() == [3, 1]
    assert FeatureSource((cut, fixed), stores).lengths([("a",), ("b",), ("c",)]).tolist() == [3, 0, 1]


def test_a_batch_without_any_feature_still_has_its_shape(stores: dict[str, Path]) -> None:
    features = FeatureSource((AUDIO,), stores).batch([("b",), ("stranger",)])
    assert features.values["audio"].shape == (2, 1, 2)
    assert not features.masks["audio"].any()
    assert not features.present_BE.any()


def test_the_vectors_of_a_paragraph_follow_each_other(stores: dict[str, Path]) -> None:
    features = FeatureSource((AUDIO,), stores, "caption").batch([("c", "b", "a"), ("a",)])
    assert features.values["audio"][0].tolist() == [[50, 51], [1, 2], [3, 4], [5, 6]]
    assert features.masks["audio"].sum(1).tolist() == [4, 3]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_batches_agree_with_one_item_at_a_time(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=6))
    items = {f"v{i}": rows(n, 3, 10 * i + 1) if n else None for i, n in enumerate(lengths)}
    path = write_store(tmp_path_factory.mktemp("store") / "x", items, 3)
    limit = data.draw(st.none() | st.integers(1, 3))
    specs = (ExpertSpec("x", 3, temporal=True, max_steps=limit), ExpertSpec("mean", 3, store="x"))
    chosen = data.draw(st.lists(st.sampled_from(sorted(items)), min_size=1, max_size=8))
    features = FeatureSource(specs, {"x": path}).batch([(key,) for key in chosen])
    for index, key in enumerate(chosen):
        whole = items[key]
        kept = np.zeros((0, 3), np.float32) if whole is None else whole[:limit]
        found = features.values["x"][index][features.masks["x"][index]]
        np.testing.assert_array_equal(found.numpy(), kept)
        assert not features.values["x"][index][~features.masks["x"][index]].any()
        mean = np.zeros(3) if whole is None else whole.mean(0)
        np.testing.assert_allclose(features.values["mean"][index].numpy(), mean, rtol=1e-6)
        assert features.present_BE[index].tolist() == [whole is not None] * 2


def test_wrong_dimension_names_both_numbers_and_the_remedy(stores: dict[str, Path]) -> None:
    source = FeatureSource((ExpertSpec("audio", 300, temporal=True),), stores)
    with pytest.raises(UserError, match=r"dim 300 in the configuration, but 2 in .*experts\.audio\.dim=2"):
        source.check()


def test_a_store_that_nobody_configured_is_named(stores: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"reads the video features 'ocr'.*audio, scene.*conf/experts"):
        FeatureSource((ExpertSpec("ocr", 2),), stores).check()
    with pytest.raises(UserError, match="max_steps is not given"):
        FeatureSource((ExpertSpec("ocr", 2, temporal=True, pad="max"),), stores)


def test_the_source_travels_to_a_worker(stores: dict[str, Path]) -> None:
    source = FeatureSource((AUDIO,), stores)
    source.check()
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert torch.equal(copy.batch([("a",)]).values["audio"], source.batch([("a",)]).values["audio"])


def test_check_lists_gaps_strangers_and_broken_stores(stores: dict[str, Path], tmp_path: Path) -> None:
    specs = (AUDIO, ExpertSpec("scene", 5), ExpertSpec("face", 2))
    source = FeatureSource(specs, stores | {"face": tmp_path / "nothing"})
    findings = find_in_features(source, {"train": [("a",), ("b",), ("z",)], "test": [("q",)]}, read_all=True)
    assert [(f.severity, f.kind, f.where) for f in findings] == [
        ("note", "item without the expert", "train, expert audio"),
        ("note", "item that was never extracted", "train, expert audio"),
        ("error", "other ids than the store", "test, expert audio"),
        ("error", "wrong dimension", "expert scene"),
        ("note", "item that was never extracted", "train, expert scene"),
        ("error", "other ids than the store", "test, expert scene"),
        ("error", "no usable feature store", "expert face"),
    ]
    assert findings[0].items[0].startswith("b: ")
    shard = next((stores["audio"]).glob("shard-*.npy"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 0xFF
    shard.write_bytes(content)
    kinds = [f.kind for f in find_in_features(FeatureSource((AUDIO,), stores), {"train": [("a",)]}, read_all=True)]
    assert "altered file" in kinds


def test_check_lists_items_with_rows_that_are_no_numbers(tmp_path: Path) -> None:
    """Writers refuse them; a store may come from elsewhere, or be damaged."""
    source = FeatureSource((AUDIO,), {"audio": write_store(tmp_path / "audio", {"a": rows(2, 2), "b": rows(1, 2)}, 2)})
    (shard,) = (tmp_path / "audio").glob("shard-*.npy")
    shard.write_bytes(shard.read_bytes()[:-4] + np.array(np.nan, "<f4").tobytes())
    parts = {"train": [("a",), ("b",)]}
    assert find_in_features(source, parts) == []
    altered, nan = find_in_features(source, parts, read_all=True)
    assert (altered.severity, altered.kind) == ("error", "altered file")
    assert (nan.severity, nan.kind, nan.where) == ("error", "NaN or infinite feature", "expert audio")
    assert len(nan.items) == 1
    assert nan.items[0].startswith("b")


class Featured(RetrievalDataModule):
    """Three videos without files, of which stores know something."""

    def read(self) -> Annotation:
        videos = tuple(VideoRecord(i) for i in ("a", "b", "c", "z"))
        captions = tuple(CaptionRecord(v.id, f"caption {n} of {v.id}") for v in videos for n in range(2))
        return Annotation(videos, captions, {"train": ("a", "b", "c", "z")})


def featured(stores: dict[str, Path], experts: Sequence[ExpertSpec], **options: object) -> Featured:
    spec = SplitSpec("s", parts={"train": "train"}, subset="available")
    return Featured(name="f", split=spec, inputs=InputSpec(None, experts=tuple(experts)), stores=stores, **options)  # type: ignore[arg-type]


def test_a_data_set_of_features_needs_no_files(stores: dict[str, Path]) -> None:
    data = featured(stores, (AUDIO, SCENE), batch_size=2)
    data.setup()
    facts = data.describe("train")
    assert facts["num_videos"] == 3
    assert facts["excluded"] == {"missing video": 1}
    assert facts["without_expert"] == {"audio": 1}
    batches = list(data.train_dataloader())
    assert len(batches) == 3
    for batch in batches:
        assert batch.video.frames_BTCHW is None
        assert set(batch.video.features) == {"audio", "scene"}
        assert batch.text.tokens_BL.shape == (2, 0)
        for row, video in enumerate(batch.video.ids.tolist()):
            assert batch.video.features["scene"][row, 0] == [1, 9, 22][video]


def test_videos_of_a_batch_can_be_encoded_once(stores: dict[str, Path]) -> None:
    plain, once = (featured(stores, (SCENE,), batch_size=6, encode_videos_once=flag) for flag in (False, True))
    (repeated,), (distinct,) = list(plain.train_dataloader()), list(once.train_dataloader())
    assert repeated.rows is None
    assert distinct.rows is not None
    assert len(distinct.video) == 3
    assert distinct.video.ids[distinct.rows].tolist() == repeated.video.ids.tolist()
    assert torch.equal(distinct.video.features["scene"][distinct.rows], repeated.video.features["scene"])
    assert torch.equal(distinct.text.ids, repeated.text.ids)


def test_precomputed_text_is_found_by_the_key_of_the_caption(stores: dict[str, Path], tmp_path: Path) -> None:
    text = {f"{video}#{n}": rows(n + 1, 2, 100 * n) for video in "abc" for n in range(2)}
    stores = stores | {"w2v": write_store(tmp_path / "w2v", text, 2)}
    data = featured(stores, (SCENE,), batch_size=6)
    data.inputs = InputSpec(None, experts=(SCENE,), text_features=(ExpertSpec("w2v", 2, temporal=True),))
    (batch,) = list(data.train_dataloader())
    assert batch.text.feature_masks["w2v"].sum(1).tolist() == [1 + int(i) % 2 for i in batch.text.ids]
    assert batch.text.present_BE is not None
    assert batch.text.present_BE.all()


def test_captions_without_a_feature_are_not_trained_on(
    stores: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = ["a#0", "b#0", "b#1"]
    stores = stores | {"w2v": write_store(tmp_path / "w2v", {key: rows(1, 2) for key in known}, 2)}
    for samples, expected in (("all_captions", [0, 2, 3]), ("one_per_video", [0, 2])):
        data = featured(stores, (SCENE,), batch_size=len(expected), train_samples=samples)
        data.inputs = InputSpec(None, experts=(SCENE,), text_features=(ExpertSpec("w2v", 2, temporal=True),))
        (batch,) = list(data.train_dataloader())
        ids = sorted(batch.text.ids.tolist())
        assert ids in (expected, [0, 3]) if samples == "one_per_video" else ids == expected
        assert batch.text.present_BE is not None
        assert batch.text.present_BE.all()
        assert "3 of 6 training captions have no feature in w2v: left out" in caplog.text
    data = featured(stores, (SCENE,))
    data.inputs = InputSpec(None, experts=(SCENE,), text_features=(ExpertSpec("audio", 2, temporal=True),))
    with pytest.raises(UserError, match="none of the 6 training captions has a feature in audio"):
        data.train_dataloader()
