"""Every file that Collaborative Experts publishes, by the place where each data set has it."""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from src.data.features.experts import find_experts
from src.data.features.source import import_source
from src.data.features.store import FeatureStore
from src.errors import UserError
from src.tasks.convert_features import convert_features

TAIL = "offset0_inner_stride1"
# (data set, place below its folder, name of the store)
PUBLISHED = (
    ("MSRVTT", "aggregated_audio_feats/Audio_MSRVTT_new.pickle", "audio"),
    ("MSRVTT", "aggregated_speech/speech-w2v.pickle", "speech"),
    ("MSRVTT", "aggregated_ocr_feats/ocr-raw.pickle", "ocr"),
    ("MSRVTT", "aggregated_face_feats/facefeats-avg.pickle", "face"),
    ("MSRVTT", "antoine/facefeats-clone.pickle", "antoine-face"),
    ("MSRVTT", "antoine/resnet_features.pickle", "antoine-rgb"),
    ("MSRVTT", "antoine/flow_features.pickle", "antoine-flow"),
    ("MSRVTT", "antoine/audio_features.pickle", "antoine-audio"),
    ("MSRVTT", "aggregated_text_feats/w2v_MSRVTT_openAIGPT.pickle", "text.openai"),
    ("MSRVTT", "aggregated_text_feats/gpt2-xl-finetune.pkl", "text.gpt2-xl-finetune"),
    ("MSVD", "aggregated_face_feats/face-avg.pickle", "face"),
    ("MSVD", "aggregated_ocr_feats/ocr-w2v.pickle", "ocr"),
    (
        "MSVD",
        f"aggregated_r2p1d_30fps_256px_stride8_{TAIL}/r2p1d-ig65m-kinetics-avg.pickle",
        "r2p1d.r2p1d-ig65m-kinetics.1",
    ),
    ("DiDeMo", "aggregated_audio_feats/vggish-audio-raw.pickle", "audio"),
    ("DiDeMo", "aggregated_speech_feats/stt_w2v.pickle", "speech"),
    ("DiDeMo", "aggregated_ocr_feats/ocr-feats.pkl", "ocr"),
    ("DiDeMo", "aggregated_facefeats_25fps_256px_stride1/face-avg.pickle", "face"),
    ("DiDeMo", "aggregated_text_feats/openai-feats.pkl", "text.openai"),
    ("LSMDC", "aggregated_audio/vggish-raw.pickle", "audio"),
    ("LSMDC", "aggregated_speech/speech-w2v.pickle", "speech"),
    ("LSMDC", "aggregated_ocr_feats/ocr-w2v.pkl", "ocr"),
    ("LSMDC", "antoine/face-max-with-blank-val.pickle", "face"),
    ("LSMDC", "aggregated_text_feats/openai-text.pickle", "text.openai"),
    ("activity-net", "aggregated_audio/vggish-audio-raw.pickle", "audio"),
    ("activity-net", "aggregated_speech/goog_w2v-speech-raw.pickle", "speech"),
    ("activity-net", "aggregated_ocr_feats/ocr-w2v.pkl", "ocr"),
    ("activity-net", "aggregated_facefeats_25fps_256px_stride1/face-avg.pickle", "face"),
    ("QuerYD", "aggregated_audio/vggish-raw.hickle", "audio"),
    ("QuerYD", "text_embeddings/w2v.pkl", "text.w2v"),
    ("VaTeX", "text-embeddings/w2v.pkl", "text.w2v"),
    ("YouCook2", "aggregated_audio/vggish-raw.pickle", "audio"),
    ("YouCook2", "aggregated_ocr_feats/ocr-w2v.pkl", "ocr"),
    ("YouCook2", "aggregated_text_feats/openai.pkl", "text.openai"),
    ("YouCook2", "aggregated_imagenet_25fps_256px_stride5_offset0/senet154-avg.pickle", "imagenet.senet154.0"),
    ("YouCook2", "aggregated_scene_25fps_256px_stride5_offset0/densenet161-avg.pickle", "scene.densenet161.0"),
    ("any", "aggregated_scene_25fps_256px_stride1_offset0/densenet161-avg.pickle", "scene.densenet161.0"),
    ("any", "aggregated_imagenet_25fps_256px_stride1_offset0/senet154-avg.pickle", "imagenet.senet154.0"),
    (
        "any",
        "aggregated_imagenet_25fps_256px_stride1_offset0/resnext101_32x48d-avg.pickle",
        "imagenet.resnext101_32x48d.0",
    ),
    (
        "any",
        "aggregated_imagenet_25fps_256px_stride1_offset0/resnext101_32x48d-std.pickle",
        "imagenet.resnext101_32x48d.0.std",
    ),
    ("any", f"aggregated_i3d_25fps_256px_stride25_{TAIL}/i3d-avg.pickle", "i3d.i3d.0"),
    ("any", f"aggregated_i3d_25fps_256px_stride4_{TAIL}/i3d-avg.pickle", "i3d.i3d.1"),
    ("any", f"aggregated_r2p1d_30fps_256px_stride32_{TAIL}/r2p1d-ig65m-avg.pickle", "r2p1d.r2p1d-ig65m.0"),
    (
        "any",
        f"aggregated_r2p1d_30fps_256px_stride32_{TAIL}/r2p1d-ig65m-kinetics-avg.pickle",
        "r2p1d.r2p1d-ig65m-kinetics.0",
    ),
    ("any", f"aggregated_s3dg_10fps_256px_stride16_{TAIL}/s3dg-avg.pickle", "s3dg.s3dg.0"),
    ("any", f"aggregated_s3dg_10fps_256px_stride16_{TAIL}/s3dg-avg-logits.pickle", "s3dg.s3dg.0-logits"),
    ("any", f"aggregated_s3dg_10fps_224px_stride8_{TAIL}_num_segments4/s3dg-avg.pickle", "s3dg.s3dg.1"),
    (
        "any",
        "aggregated_moments_3d_25fps_256px_stride8_offset0_inner_stride5/moments-resnet3d50-avg.pickle",
        "moments_3d.moments-resnet3d50.0",
    ),
    ("any", "aggregated_moments_2d_25fps_256px_stride1_offset0/resnet50-avg.pickle", "moments_2d.resnet50.0"),
    ("any", "aggregated_trn_25fps_256px_stride8_offset0_inner_stride5/moments-trn-max.pickle", "trn.moments-trn.0.max"),
)


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, 2))
    return path


def rows(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("dataset", "place", "name"), PUBLISHED)
@pytest.mark.parametrize("root", ["high-quality/structured-symlinks", "symlinked-feats", "challenge-release-1", ""])
def test_published_places(tmp_path: Path, dataset: str, place: str, name: str, root: str) -> None:
    path = write(tmp_path / dataset / root / place, {"video0": rows(1, 2)})
    (expert,) = find_experts(tmp_path / dataset).experts
    assert (expert.name, expert.files) == (name, (path,))
    assert expert.cut_ids == (dataset == "DiDeMo")


def test_ids_of_didemo_are_cut_behind_a_link(tmp_path: Path) -> None:
    """The folder may be a link to one of another name, as on a shared disk."""
    write(tmp_path / "disk7" / "ocr-feats.pkl", {"1@N08_2_a.mp4": rows(2, 3)})
    (tmp_path / "DiDeMo").symlink_to(tmp_path / "disk7")
    (expert,) = find_experts(tmp_path / "DiDeMo").experts
    assert expert.load().ids == ("1@N08_2_a",)


def test_captions_of_activitynet_are_in_two_files(tmp_path: Path) -> None:
    folder = tmp_path / "aggregated_text_feats"
    write(folder / "openai-train.pkl", {"v_a": [rows(3, 2), rows(1, 2)]})
    write(folder / "openai-val1.pkl", {"v_b": [rows(2, 2)]})
    (expert,) = find_experts(tmp_path).experts
    assert expert.name == "text.openai"
    assert expert.load().ids == ("v_a#0", "v_a#1", "v_b#0")


def test_one_array_instead_of_a_list_is_the_first_caption(tmp_path: Path) -> None:
    write(tmp_path / "text_embeddings" / "w2v.pkl", {"a": rows(3, 2), "b": [rows(1, 2), rows(2, 2)]})
    (expert,) = find_experts(tmp_path).experts
    store = import_source(expert.load(), tmp_path / "store")
    assert store.ids == ("a#0", "b#0", "b#1")
    np.testing.assert_array_equal(store.get("a#0"), rows(3, 2))


@pytest.mark.parametrize("module", ["datastructures", "zsvision.zs_data_structures", "utils.datastructures"])
def test_expert_store_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Besides its matrix it holds the class of its numbers, `numpy.float16`."""
    fake = types.ModuleType(module)
    fake.ExpertStore = kind = type("ExpertStore", (), {"__module__": module})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.partition(".")[0], types.ModuleType(module.partition(".")[0]))
    monkeypatch.setitem(sys.modules, module, fake)
    found = kind()
    found.keys, found.dim, found.store_dtype, found.missing = ["a", "b"], 3, np.float16, {"b"}
    found.keymap, found.store = {"a": 0, "b": 1}, np.array([[1, 2, 3], [np.nan] * 3], np.float16)
    write(tmp_path / "aggregated_i3d_25fps_256px_stride25_offset0" / "i3d-avg.pickle", found)
    monkeypatch.undo()
    (expert,) = find_experts(tmp_path).experts
    store = import_source(expert.load(), tmp_path / "store")
    assert (store.ids, set(store.missing), store.dtype) == (("a",), {"b"}, np.float16)
    assert store.get("a").tolist() == [[1, 2, 3]]


def test_the_class_of_numbers_cannot_be_called(tmp_path: Path) -> None:
    (tmp_path / "aggregated_audio").mkdir()
    (tmp_path / "aggregated_audio" / "vggish-raw.pickle").write_bytes(b"cnumpy\nfloat16\n(K\x01tR.")
    (expert,) = find_experts(tmp_path).experts
    with pytest.raises(UserError, match="cannot be unpickled"):
        expert.load()


def convert(source: Path, output: Path, **task: object) -> None:
    given = {"source": str(source), "output": str(output), "format": "ours", "trust": False, "dtype": None}
    given |= {"nan": "error", "cut_ids": False, "suffix": None, "append": [], "also": []} | task
    convert_features(OmegaConf.create({"task": given, "paths": {"run_dir": str(output.parent)}}))


def test_two_aggregations_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """temporal "avg-std" reads both files; a video that one of them lacks is missing."""
    folder = tmp_path / "QuerYD" / "aggregated_imagenet_25fps_256px_stride1_offset0"
    mean, deviation = {"a": rows(1, 2), "b": float("nan")}, {"a": rows(1, 3), "b": rows(1, 3)}
    write(folder / "x-avg.pickle", mean)
    write(folder / "x-std.pickle", deviation)
    convert(tmp_path / "QuerYD", tmp_path / "stores")
    stores = [tmp_path / "stores" / name for name in ("imagenet.x.0", "imagenet.x.0.std")]
    convert(stores[0], tmp_path / "both", append=[str(stores[1])])
    convert(folder / "x-avg.pickle", tmp_path / "direct", append=[str(folder / "x-std.pickle")])
    for name in ("both", "direct"):
        store = FeatureStore.open(tmp_path / name)
        assert (store.dim, store.ids, set(store.missing)) == (5, ("a",), {"b"})
        np.testing.assert_array_equal(store.get("a"), np.concatenate([mean["a"], deviation["a"]], 1))
    capsys.readouterr()
