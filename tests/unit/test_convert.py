"""Foreign checkpoints: names both ways, strictness, and files that could run code."""

from __future__ import annotations

import json
import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from src.convert.clip4clip import CLIP2VIDEO_NAMES, NAMES, from_upstream, to_upstream
from src.errors import UserError
from src.models.clip2video import Clip2Video
from src.models.clip4clip import Clip4Clip
from src.models.heads.mean import MeanHead
from src.models.heads.seq_lstm import SeqLstmHead
from src.models.heads.seq_transf import SeqTransfHead
from src.models.heads.tab import TabHead
from src.models.heads.tight import TightTransfHead
from src.models.heads.wti import WeightedTokenInteractionHead
from src.models.weights import load_strictly, read_state_dict
from src.tasks import convert
from tests.tiny_clip import tiny_arch

ARCH = tiny_arch()
MODELS: dict[str, tuple[type, dict[str, Any]]] = {
    "clip2video": (Clip2Video, {"temporal_layers": 2}),
    "clip2video_mlp": (Clip2Video, {"temporal_layers": 2, "difference": "mlp", "head": MeanHead}),
    "clip2video_wti": (Clip2Video, {"temporal_layers": 2, "head": WeightedTokenInteractionHead}),
    "meanP": (Clip4Clip, {"linear_patch": "3d"}),
    "seqLSTM": (Clip4Clip, {"head": SeqLstmHead}),
    "seqTransf": (Clip4Clip, {"head": partial(SeqTransfHead, temporal_layers=2)}),
    "tightTransf": (Clip4Clip, {"head": partial(TightTransfHead, temporal_layers=2)}),
    "wti after seqTransf": (Clip4Clip, {"head": partial(WeightedTokenInteractionHead, order="seqTransf")}),
}


def make(name: str) -> Any:
    kind, options = MODELS[name]
    torch.manual_seed(0)
    return kind(arch=ARCH, num_frames=4, max_words=6, **options)


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name: str) -> None:
    state = make(name).state_dict()
    upstream = to_upstream(state)
    assert not any(key.startswith("tower.") for key in upstream)
    back = from_upstream(upstream)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_published_keys() -> None:
    with torch.device("meta"):
        keys = to_upstream(Clip2Video(arch="ViT-B-32-quickgelu").state_dict())
    shapes = {key: tuple(value.shape) for key, value in keys.items()}
    assert shapes["weight_center"] == (5, 512)
    assert shapes["frame_position_embeddings.weight"] == (77, 512)
    assert shapes["clip.visual.conv1.weight"] == (768, 3, 32, 32)
    assert shapes["frame2t_attention.resblocks.0.attn.in_proj_weight"] == (1536, 512)
    assert shapes["actionClip.resblocks.0.mlp.c_fc.weight"] == (2048, 512)
    assert {key.split(".")[0] for key in keys} == {
        *("weight_center", "emb_center", "clip", "frame_position_embeddings", "type_position_embeddings"),
        *("transformerClip", "frame2t_attention", "actionClip", "trans_layernorm"),
    }


def test_name_table_is_one_to_one() -> None:
    for table in (NAMES, CLIP2VIDEO_NAMES):
        assert len({ours for _, ours in table}) == len({upstream for upstream, _ in table}) == len(table)


def test_wrappers_precision_and_old_names() -> None:
    state = to_upstream(make("seqTransf").state_dict())
    old = {}
    for name, value in state.items():
        name = name.replace("ln_1.weight", "ln_1.gamma").replace("ln_1.bias", "ln_1.beta")
        old[f"module.{name}"] = value.half()
    old["module.input_resolution"] = torch.tensor(16)
    model = make("seqTransf")
    load_strictly(model, from_upstream(old), "old checkpoint")
    assert all(p.dtype is torch.float32 for p in model.parameters())


def test_wrong_size_is_an_error_not_a_random_centre() -> None:
    state = from_upstream(to_upstream(make("clip2video").state_dict()))
    kind, _ = MODELS["clip2video"]
    head = partial(TabHead, num_centers=7)
    seven = kind(arch=ARCH, num_frames=4, max_words=6, temporal_layers=2, head=head)
    before = seven.head.assignment.clone()
    with pytest.raises(UserError, match=r"2 wrongly shaped: head.assignment \(5, 32\) instead of \(7, 32\)"):
        load_strictly(seven, state, "K=5")
    assert torch.equal(seven.head.assignment, before)


def test_foreign_tensors_are_listed() -> None:
    with pytest.raises(UserError, match=r"1 of 2 tensors.*resnet\.weight"):
        from_upstream({"weight_center": torch.zeros(1), "resnet.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="no name in CLIP4Clip"):
        to_upstream({"decoder.weight": torch.zeros(1)})


def test_a_model_that_nobody_published_has_no_published_names() -> None:
    twice = Clip2Video(arch=ARCH, num_frames=4, max_words=6, head=SeqTransfHead).state_dict()
    with pytest.raises(UserError, match=r"the name of another one \(frame_position_embeddings.weight\).*format=ours"):
        to_upstream(twice)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["MALICIOUS_FOLDER"],)


def test_a_pickle_runs_no_code_without_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALICIOUS_FOLDER", str(tmp_path / "made"))
    torch.save({"w": torch.zeros(1), "x": Malicious()}, tmp_path / "bad.bin")
    with pytest.raises(UserError, match=r"task.trust=true"):
        read_state_dict(tmp_path / "bad.bin")
    assert not (tmp_path / "made").exists()
    assert list(read_state_dict(tmp_path / "bad.bin", trust=True)) == ["w"]


def test_trust_does_not_open_what_the_restricted_reader_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "plain.bin")
    asked, load = [], torch.load

    def recording(*args: Any, **options: Any) -> Any:
        asked.append(options["weights_only"])
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", recording)
    assert list(read_state_dict(tmp_path / "plain.bin", trust=True)) == ["w"]
    assert asked == [True]


@pytest.mark.parametrize("name", ["x.bin", "x.safetensors", "x.pt"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no weight file"):
        read_state_dict(tmp_path / name)
    (tmp_path / name).write_bytes(b"\x80\x02not weights")
    with pytest.raises(UserError, match="x\\."):
        read_state_dict(tmp_path / name)
    (tmp_path / "list.pt").write_bytes(pickle.dumps([1]))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds no tensors"):
        read_state_dict(tmp_path / "list.pt")


def config(tmp_path: Path, source: Path, **task: Any) -> Any:
    model = {"_target_": "src.models.clip2video.Clip2Video", "arch": ARCH, "pretrained": "openai", "num_frames": 4}
    model |= {"max_words": 6, "temporal_layers": 2, "needs": ["frames"]}
    task = {"name": "convert", "source": str(source), "output": None, "format": "ours", "trust": False} | task
    return OmegaConf.create({"model": model, "task": task, "paths": {"run_dir": str(tmp_path / "run")}})


def test_task_there_and_back(tmp_path: Path) -> None:
    state = to_upstream(make("clip2video").state_dict())
    source = tmp_path / "pytorch_model.bin.2"
    torch.save(state, source)
    convert.run(config(tmp_path, source, output=str(tmp_path / "ours.safetensors")))
    facts = json.loads((tmp_path / "ours.json").read_text())
    assert facts["kind"] == "videotext"
    assert facts["model"]["num_frames"] == 4
    assert facts["parameters"] == sum(value.numel() for value in state.values())
    load_strictly(make("clip2video"), load_file(tmp_path / "ours.safetensors"), "ours")
    back = config(tmp_path, tmp_path / "ours.safetensors", format="upstream")
    convert.run(back)
    written = load_file(tmp_path / "run" / "ours.safetensors")
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)


def test_task_on_a_bare_clip(tmp_path: Path) -> None:
    clip = make("meanP").tower.clip
    save_file({name: value.half() for name, value in clip.state_dict().items()}, tmp_path / "clip.safetensors")
    convert.run(config(tmp_path, tmp_path / "clip.safetensors"))
    written = load_file(tmp_path / "run" / "clip.safetensors")
    assert written.keys() == clip.state_dict().keys()
    assert all(value.dtype is torch.float32 for value in written.values())


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"source": None}, "add task.source=FILE"),
        ({"format": "theirs"}, "expected one of ours, upstream"),
        ({"output": "x.bin"}, "ends in .safetensors"),
    ],
)
def test_task_mistakes(tmp_path: Path, task: dict[str, Any], message: str) -> None:
    cfg = config(tmp_path, tmp_path / "x.bin")
    cfg.task.update(task)
    with pytest.raises(UserError, match=message):
        convert.run(cfg)


def test_task_never_overwrites_its_source(tmp_path: Path) -> None:
    source = tmp_path / "x.safetensors"
    save_file({"weight_center": torch.zeros(1)}, source)
    with pytest.raises(UserError, match="source itself"):
        convert.run(config(tmp_path, source, output=str(source)))
