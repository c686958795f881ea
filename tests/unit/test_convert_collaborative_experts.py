"""Checkpoints and configurations of Collaborative Experts, MoEE and HowTo100M."""

from __future__ import annotations

import argparse
import json
import logging
import os
import pathlib
import random
import re
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from src.convert import collaborative_experts as ce
from src.convert import howto100m
from src.convert.collaborative_experts_config import read_config, settings_of
from src.convert.formats import family_of
from src.errors import UserError
from src.models.collaborative_experts import CollaborativeExperts
from src.models.concat_experts import ConcatExperts
from src.models.howto100m import HowTo100M
from src.models.weights import load_strictly, read_weights
from src.tasks import convert
from src.tasks.checkpoint import load_weights
from src.tasks.convert_config import command_of
from tests.config.test_collaborative_experts_recipes import composed, documented, published
from tests.tiny_ce import EXPERTS, OPTIONS, TEXT, make, scores, texts, videos

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "collaborative_experts"
ONE_TOKEN = {"text": TEXT | {"max_steps": 1}, "vlad_clusters": {"text": 0, "ocr": 2}, "text_ghost_clusters": 0}
PAIRWISE: dict[str, Any] = {"gating": "pairwise"}
WIRINGS: dict[str, dict[str, Any]] = {
    "pairwise": PAIRWISE,
    "layers": PAIRWISE | {"g_layers": 4, "h_layers": 2, "reason_norm": False},
    "norm": PAIRWISE | {"g_layers": 3, "h_layers": 1},
    "one layer": PAIRWISE | {"g_layers": 1},
    "triplet": {"gating": "triplet"},
    "star": {"gating": "pairwise-star"},
    "specific": {"gating": "pairwise-star-specific"},
    "tensor": {"gating": "pairwise-star-tensor"},
    "CE-CG": {"gating": "none"},
    "MoEE": {"gating": "none", "project": False},
    "CE-MW,P,CG": {"gating": "none", "project": False, "mixture_weights": False},
    "one token": PAIRWISE | ONE_TOKEN,
}
STATE_DICTS = json.loads((GOLDEN / "state_dicts.json").read_text())
CONCAT = {name: OPTIONS[name] for name in ("experts", "text", "vlad_clusters", "max_tokens", "text_ghost_clusters")}


class Malicious:
    """Unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch) -> type:
    """The class of the reference's options, importable only while a file is written."""
    module = types.ModuleType("parse_config")
    kind = type("ConfigParser", (), {"__module__": "parse_config"})
    module.ConfigParser = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "parse_config", module)
    return kind


def write(path: Path, kind: type, state: dict[str, Tensor], config: dict[str, Any], **more: Any) -> Path:
    """A trained_model.pth as the reference's trainer writes it."""
    options = kind()
    options._config = OrderedDict(config)
    options.resume, options.cfg_fname = None, pathlib.PosixPath("/home/x/configs/msrvtt/train-full-ce.json")
    options._args, options.log_levels = argparse.Namespace(device=None, seeds="1"), {0: 30, 1: 20}
    for name, value in more.pop("attributes", {}).items():
        setattr(options, name, value)
    content = {
        "arch": "CENet",
        "epoch": 7,
        "state_dict": OrderedDict(state),
        "monitor_best": np.float64(21.5),
        "config": options,
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "k": 6}]},
    }
    torch.save(content, path, **more)
    del sys.modules["parse_config"]
    return path


def cfg(tmp_path: Path, source: Path, target: str = "collaborative_experts.CollaborativeExperts", **more: Any) -> Any:
    model = OPTIONS | {"_target_": f"src.models.{target}", "needs": ["features"]} | more.pop("model", {})
    task = {"name": "convert", "source": str(source), "output": str(tmp_path / "out.safetensors"), "format": "ours"}
    task |= {"trust": False} | more
    return OmegaConf.create({"model": model, "task": task, "paths": {"run_dir": str(tmp_path / "run")}})


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# --- trained_model.pth


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_released_file(
    tmp_path: Path, parser: type, caplog: pytest.LogCaptureFixture, zipped: bool, wrapped: bool
) -> None:
    model = make().eval()
    state = ce.to_upstream(model.state_dict())
    old = {"ce.moe_fc_bottleneck1.weight": torch.ones(2), "ce.moe_cg.fc.bias": torch.ones(1)}
    prefix = "module." if wrapped else ""
    saved = {prefix + name: value for name, value in (state | old).items()}
    source = write(tmp_path / "trained_model.pth", parser, saved, {}, _use_new_zipfile_serialization=zipped)
    with caplog.at_level(logging.INFO):
        convert.run(cfg(tmp_path, source))
    assert "ce.moe_fc_bottleneck1.weight" in caplog.text
    assert "ce.moe_cg.fc.bias" in caplog.text
    assert "state of the optimizer" in caplog.text
    again = make(shared_dim=8)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    load_weights(again, tmp_path / "out.safetensors")
    text, video = texts(4), videos(4)
    assert torch.equal(scores(again.eval(), text, video), scores(model, text, video))
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["parameters"] == sum(value.numel() for value in state.values())

    convert.run(cfg(tmp_path, tmp_path / "out.safetensors", format="upstream", output=str(tmp_path / "back.pth")))
    back, rest = read_weights(tmp_path / "back.pth")
    same(back, state)
    assert (rest["arch"], rest["epoch"], rest["monitor_best"]) == ("CENet", 7, 21.5)


def test_code_in_the_configuration_does_not_run(tmp_path: Path, parser: type) -> None:
    state = ce.to_upstream(make().state_dict())
    source = write(tmp_path / "m.pth", parser, state, {"seed": Malicious(tmp_path / "made")})
    with pytest.raises(UserError, match=r"it asks for posix\.mkdir"):
        convert.run(cfg(tmp_path, source))
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_other_classes_are_named(tmp_path: Path, parser: type, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    module = types.ModuleType("logger")
    module.Writer = type("Writer", (), {"__module__": "logger"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "logger", module)
    source = write(
        tmp_path / "m.pth", parser, {"ce.moe_fc.bias": torch.ones(2)}, {}, attributes={"writer": module.Writer()},
        _use_new_zipfile_serialization=zipped,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"it asks for logger\.Writer.*task\.trust=true"):
        read_weights(source)


def test_truncated_file(tmp_path: Path, parser: type) -> None:
    source = write(tmp_path / "m.pth", parser, {"ce.moe_fc.bias": torch.ones(2)}, {})
    source.write_bytes(source.read_bytes()[:300])
    with pytest.raises(UserError, match=r"m\.pth"):
        read_weights(source)


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(3), np.bool_(True), np.float64(-1e300)])
def test_numbers_of_numpy(tmp_path: Path, value: Any) -> None:
    torch.save({"state_dict": {"w": torch.ones(1)}, "best": value}, tmp_path / "m.pth")
    best = read_weights(tmp_path / "m.pth")[1]["best"]
    assert (best, type(best)) == (value.item(), type(value.item()))


def test_arrays_of_numpy_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(1)}, "x": np.ones(2)}, tmp_path / "m.pth")
    with pytest.raises(UserError, match=r"multiarray\._reconstruct"):
        read_weights(tmp_path / "m.pth")


# --- names


@pytest.mark.parametrize("options", WIRINGS.values(), ids=WIRINGS)
def test_wirings_there_and_back(options: dict[str, Any]) -> None:
    model = make(**options)
    state = model.state_dict()
    upstream = ce.to_upstream(state)
    assert all(name.startswith(("pooling.", "text_pooling.", "ce.")) for name in upstream)
    assert family_of(upstream) is family_of(state)
    ours = ce.from_upstream(upstream)
    same(ours, state)
    same(ce.to_upstream(ours), upstream)
    chosen = ce.resolved(OPTIONS | {"reason_norm": True, "project": True, "h_layers": 0} | options)
    for key, value in ce.options_of(ours).items():
        name, _, inner = key.partition(".")
        found = chosen[name][inner] if inner else chosen[name]
        assert found in (value if isinstance(value, tuple) else (value,)), key


@pytest.mark.parametrize("mix", [True, False])
def test_concat_there_and_back(mix: bool) -> None:
    state = ConcatExperts(**CONCAT, mix=mix).state_dict()
    same(ce.from_upstream(ce.to_upstream(state)), state)
    told = ce.options_of(state)
    assert told == {"vlad_clusters.ocr": 2, "vlad_clusters.text": 3, "text_ghost_clusters": 1, "mix": mix}


@pytest.mark.parametrize("name", STATE_DICTS)
def test_published_state_dicts_tell_their_options(name: str) -> None:
    """Names and shapes of six published configurations, there and back, and what they say of the model."""
    entry = STATE_DICTS[name]
    upstream = {key: torch.empty(shape, device="meta") for key, shape in entry["state_dict"].items()}
    ours = ce.from_upstream(upstream)
    back = ce.to_upstream(ours)
    assert [(key, list(value.shape)) for key, value in back.items()] == list(entry["state_dict"].items())
    pooled = [size for size, _ in ce.expert_sizes(ours)]
    assert pooled == ([] if "concat" in name else [size for size, _ in entry["expert_dims"].values()])
    told = ce.options_of(ours)
    clusters = {key.partition(".")[2]: value for key, value in told.items() if key.startswith("vlad_clusters.")}
    for expert in clusters.keys() - {"text"}:
        assert entry["expert_dims"][expert][0] == entry["raw_input_dims"][expert] * clusters[expert]
    assert told.get("shared_dim", 768) == 768


def test_published_names_of_the_reasoning_of_each_expert() -> None:
    names = ce.to_upstream(make(gating="pairwise-star-specific").state_dict())
    assert names["ce.g_reason_unshared_weights.2.g_reason_1_specific.weight"].shape == (8, 16)
    assert "ce.g_reason_1.weight" not in names


def test_foreign_tensors_are_listed() -> None:
    with pytest.raises(UserError, match=r"1 of 2 tensors do not belong.*visual\.conv"):
        ce.from_upstream({"ce.moe_fc.bias": torch.ones(1), "visual.conv": torch.ones(1)})
    with pytest.raises(UserError, match="no name in collaborative-experts"):
        ce.to_upstream({"tower.x": torch.ones(1)})


# --- what does not fit


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experts": {"ocr": EXPERTS["ocr"], "scene": EXPERTS["scene"]}}, r"reads 3 experts.*6, 10, 7 dim.*ocr 10, sc"),
        (
            {"experts": EXPERTS | {"scene": {"dim": 9}}},
            r"6, 10, 7 dimensions after pooling; found alpha 6, ocr 10, sce",
        ),
        ({"vlad_clusters": {"text": 3, "ocr": 4}}, r"found alpha 6, ocr 20.*choose experts=.*model\.vlad_clusters"),
        ({"text": TEXT | {"dim": 5}}, r"reads captions of 4 dimensions, found text=words of 5; choose text="),
        ({"vlad_clusters": {"text": 2, "ocr": 2}}, r"other options; add model\.vlad_clusters\.text=3"),
        ({"gating": "none", "shared_dim": 16}, r"add model\.gating=pairwise model\.shared_dim=8$"),
        ({"g_layers": 3}, r"add model\.g_layers=2$"),
        ({"g_layers": 3, "reason_norm": False}, r"add model\.g_layers=2 model\.reason_norm=true$"),
        ({"reason_norm": False}, r"add model\.reason_norm=true$"),
    ],
)
def test_other_features_and_options(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    torch.save(ce.to_upstream(make().state_dict()), tmp_path / "m.pth")
    with pytest.raises(UserError, match=words):
        convert.run(cfg(tmp_path, tmp_path / "m.pth", model={"gating": "pairwise"} | options))


def test_another_model(tmp_path: Path) -> None:
    torch.save(ce.to_upstream(make().state_dict()), tmp_path / "m.pth")
    target = "howto100m.HowTo100M"
    config = cfg(tmp_path, tmp_path / "m.pth", target)
    config.model = {
        "_target_": f"src.models.{target}",
        "experts": {"s3dg": {"dim": 4}},
        "text": {"name": "t", "dim": 4},
    }
    with pytest.raises(UserError, match="choose model=ce, moee, concat or concat_mix"):
        convert.run(config)


def test_the_configuration_tells_what_no_tensor_tells(tmp_path: Path, parser: type) -> None:
    config = {
        "arch": {"type": "CENet", "args": {"use_ce": "pairwise-star", "use_mish": 0, "include_self": 0}},
        "experts": {"modalities": ["ocr"], "text_feat": "w2v", "ce_shared_dim": 8},
        "data_loader": {
            "args": {"max_tokens": {"text": 6, "ocr": 5}, "feat_aggregation": {"ocr": {"temporal": "vlad"}}}
        },
        "loss": {"args": {"margin": 0.3}},
    }
    config["arch"]["args"] |= {"vlad_clusters": {"text": 3, "ocr": 2}, "ghost_clusters": {"text": 1}}
    source = write(tmp_path / "m.pth", parser, ce.to_upstream(make().state_dict()), config)
    # max_tokens.text is what the entry of conf/text says itself.
    found = "add model.gating=pairwise-star model.max_tokens.ocr=5 model.include_self=false model.mish=false"
    with pytest.raises(UserError, match=re.escape(found) + "$"):
        convert.run(
            cfg(tmp_path, source, model={"include_self": True, "mish": True, "gating": "auto", "project": True})
        )


# --- the original MoEE


def moee(audio_clusters: int = 3) -> CollaborativeExperts:
    return CollaborativeExperts(
        experts={
            "antoine_rgb": {"dim": 9, "store": "antoine-rgb"},
            "antoine_flow": {"dim": 7, "store": "flow"},
            "audio": {"dim": 4, "temporal": True, "max_steps": 2},
            "face": {"dim": 4},
        },
        text=TEXT,
        vlad_clusters={"text": 3, "audio": audio_clusters},
        max_tokens={},
        gating="none",
        project=False,
    )


def test_original_moee(tmp_path: Path) -> None:
    state = moee().state_dict()
    original = ce.to_moee(state)
    sizes = [tuple(original[f"mee.video_GU.{place}.fc.weight"].shape) for place in range(4)]
    assert sizes == [(4, 4), (4, 12), (9, 9), (7, 7)]  # face, audio, visual, motion
    assert torch.equal(original["mee.moe_fc.bias"], state["mixture.bias"][[2, 1, 0, 3]])
    assert torch.equal(original["audio_pooling.clusters"], state["pooling.audio.clusters"])
    counters = {name for name in original if name.endswith("num_batches_tracked")}
    torch.save({name: value for name, value in original.items() if name not in counters}, tmp_path / "moee.pth")
    found, _ = read_weights(tmp_path / "moee.pth")
    ours = ce.from_upstream(found)
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[name], state[name]) for name in state)
    load_strictly(moee(), ours, "moee")
    same({name: ce.to_moee(ours)[name] for name in original}, original)


def test_original_moee_in_any_order_of_its_experts() -> None:
    state = moee().state_dict()
    for seed in range(6):
        places = random.Random(seed).sample(range(4), 4)
        moved = ce.reordered(state, places)
        names = {ours: upstream for upstream, ours in ce.MOEE_NAMES}
        other = {}
        for name, value in moved.items():
            start = next(old for old in names if name.startswith(old))
            other[names[start] + name.removeprefix(start)] = value
        ours = ce.from_upstream(other)
        assert all(torch.equal(ours[name], state[name]) for name in state)


def test_other_experts_than_those_of_moee() -> None:
    with pytest.raises(UserError, match=r"expected the four of the original MoEE.*task\.format=upstream"):
        ce.to_moee(make(**WIRINGS["MoEE"]).state_dict())
    state = ce.to_moee(moee().state_dict())
    state |= {"mee.video_GU.3.fc.weight": torch.ones(9, 9)}  # two of one size
    with pytest.raises(UserError, match="falling size"):
        ce.from_upstream(state)


# --- HowTo100M


def test_text_tower_of_howto100m(tmp_path: Path) -> None:
    np.save(tmp_path / "s3d_dict.npy", np.array(["a", "dog", "runs"]))
    words = str(tmp_path / "s3d_dict.npy")
    model = {"experts": {"s3dg": {"dim": 5}}, "text": {"name": "t", "dim": 5}, "vocabulary": words, "pretrained": None}
    tower = HowTo100M(**model).text_side
    state = {f"text_module.{name}": value for name, value in tower.state_dict().items()}
    torch.save(state | {"conv1.conv1.weight": torch.ones(2), "fc.bias": torch.ones(5)}, tmp_path / "s3d.pth")
    config = cfg(tmp_path, tmp_path / "s3d.pth")
    config.model = {"_target_": "src.models.howto100m.HowTo100M", **model}
    convert.run(config)
    loaded = HowTo100M(**model)
    load_weights(loaded, tmp_path / "out.safetensors")
    assert loaded.dummy.item() == pytest.approx(1e-5)
    same(howto100m.to_upstream(loaded.state_dict()), state)
    config.model.vocabulary = None
    with pytest.raises(UserError, match=r"text tower of 3 words, found 0 in model\.vocabulary"):
        convert.run(config)
    notes = howto100m.left_out({**state, "module.fc.bias": torch.ones(1)}, {})
    assert notes == ["not converted: 1 tensors of the video tower, such as module.fc.bias"]


def test_the_one_number_of_mnnet() -> None:
    upstream = {"dummy_param": torch.tensor([0.5])}
    assert family_of(upstream).name == family_of({"dummy": torch.ones(1)}).name == "HowTo100M"
    same(howto100m.to_upstream(howto100m.from_upstream(upstream)), upstream)


# --- config.json


def config_of(name: str) -> dict[str, Any]:
    """A published row as its config.json has it."""
    tree: dict[str, Any] = {}
    for key, value in published()[name].items():
        *levels, last = key.split("|")
        node = tree
        for level in levels:
            node = node.setdefault(level, {})
        node[last] = value
    hyper, recipe = tree["hyper"], tree["recipe"]
    aggregation = {}
    for expert, (pooled, _) in hyper["expert_dims"].items():
        kind = "logits" if hyper["arch"] == "MNNet" else "embed"
        how = {"temporal": "avg", "type": kind, "feat_dims": {kind: pooled}}
        if expert in ("ocr", "audio", "speech"):
            how = {"temporal": "vlad", "type": "embed"}
        elif pooled == 4096:
            how |= {"temporal": "avg-std", "feat_dims": {kind: pooled // 2}}
        aggregation[expert] = how
    loader = {"type": "ExpertDataLoader", "args": recipe["data"] | {"feat_aggregation": aggregation}}
    more = {name: recipe[name] for name in ("optimizer", "loss", "lr_scheduler", "trainer")}
    arch = {"type": hyper["arch"], "args": hyper.get("arch_args", {})}
    return {"arch": arch, "experts": hyper["experts"], "data_loader": loader, "seed": recipe.get("seed", 0), **more}


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("msrvtt-train-full-ce", "experiment=ce_msrvtt"),
        ("msvd-train-full-moee", "experiment=ce_msvd model=moee"),
        ("didemo-train-full-ce-384", "experiment=ce_didemo model.shared_dim=384"),
        ("queryd-train-full-ce-only-scene-inst-with-std", None),
        ("querydsegments-train-full-mnnet", None),
        ("lsmdc-train-full-concat-ablation", None),
        ("msrvtt-train-miech-miechfeats-moee", "experiment=moee_msrvtt_1kb"),
        ("activity-net-train-full-ce-ablation-restrict-captions-only-rgb", None),
        ("msvd-train-gpt2-xl-finetuned-adam", "experiment=[ce_msvd,ce_plus] experts=refined_silent"),
    ],
)
def test_command_lines_of_published_configurations(name: str, command: str | None) -> None:
    words = command_of(settings_of(config_of(name)))
    (row,) = (row for row in documented() if row.name == name)
    assert composed(tuple(words)) == composed(row.words)
    assert command is None or " ".join(words) == command


def test_the_error_names_the_command_of_the_file(tmp_path: Path, parser: type) -> None:
    config = config_of("msrvtt-train-full-ce")
    source = write(tmp_path / "m.pth", parser, ce.to_upstream(make().state_dict()), config)
    words = r"add .*model\.vlad_clusters\.text=28 .*\(its own configuration: experiment=ce_msrvtt\)$"
    with pytest.raises(UserError, match=words):
        convert.run(cfg(tmp_path, source))


def test_distillation_and_denoising() -> None:
    name = "msrvtt-train-gpt2-xl-finetuned-mte-denoising-adam-less80"
    more = {"distil_loss": True, "caption_masks": "denoising_masks/denoise-less80.pkl"}
    words = command_of(settings_of(config_of(name) | more))
    assert words[0] == "experiment=[ce_msrvtt,ce_plus,ce_teachtext,ce_denoise]"
    values = composed(tuple(words))
    assert len(values["model"]["teachers"]) == 3
    assert values["dataset"]["caption_mask"].endswith("msrvtt/caption_mask_less80.json")


def test_inheritance(tmp_path: Path) -> None:
    folder = tmp_path / "configs"
    (folder / "msrvtt").mkdir(parents=True)
    (folder / "a.json").write_text(json.dumps({"x": {"p": 1, "q": 1, "l": [1, 2]}, "y": 1, "z": 1}))
    (folder / "b.json").write_text(json.dumps({"inherit_from": "configs/c.json", "x": {"q": 2}, "y": 2}))
    (folder / "c.json").write_text(json.dumps({"x": {"p": 3, "q": 3}, "w": {"v": 3}}))
    own = folder / "msrvtt" / "own.json"
    own.write_text(json.dumps({"inherit_from": "configs/a.json,configs/b.json", "x": {"l": [9]}, "z": 0}))
    assert read_config(own) == {"x": {"p": 3, "q": 2, "l": [9]}, "y": 2, "z": 0, "w": {"v": 3}}
    (folder / "c.json").write_text(json.dumps({"inherit_from": "configs/msrvtt/own.json"}))
    with pytest.raises(UserError, match="inherits from itself"):
        read_config(own)
    (folder / "c.json").unlink()
    with pytest.raises(UserError, match=r"inherits from configs/c\.json, found in no folder above"):
        read_config(own)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer": {"type": "SGD"}}, r"optimizer=SGD, expected one of Ranger, RAdam, Adam"),
        ({"arch": {"args": {"l2renorm": True}}}, r"arch\.args\.l2renorm=True, expected False"),
        ({"data_loader": {"args": {"split_name": "public_server_val"}}}, r"MSRVTT public_server_val, expected one of"),
        ({"data_loader": {"args": {"feat_aggregation": {"face": "avg"}}}}, r"'avg' of the aggregation of face"),
        ({"data_loader": {"args": {"restrict_train_captions": 5}}}, r"restrict_train_captions=5"),
        ({"experts": {"modalities": "face"}}, r"experts\.modalities or feat_aggregation is malformed"),
        ({"loss": None}, None),
    ],
)
def test_configurations_without_counterpart(change: dict[str, Any], words: str | None) -> None:
    def merged(base: Any, over: Any) -> Any:
        both = isinstance(base, dict) and isinstance(over, dict)
        return {**base, **{k: merged(base.get(k), v) for k, v in over.items()}} if both else over

    config = merged(config_of("msrvtt-train-full-ce"), change)
    if words is None:
        config = {"inherit_from": ""}
        words = r"the configuration has no experts\.modalities"
    with pytest.raises(UserError, match=words):
        settings_of(config)


def test_task_prints_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of("msrvtt-train-full-ce")
    config["seed"], config["arch"]["args"]["randomise_feats"] = 2, "face"
    config["optimizer"] = {"type": "Ranger", "args": {"lr": 0.05, "k": 5}}
    config["lr_scheduler"] = {"type": "CosineAnnealingWithRestarts", "args": {"T_max": 4, "T_mult": 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    convert.run(cfg(tmp_path, tmp_path / "config.json"))
    printed = capsys.readouterr().out.split()
    assert printed[:3] == ["python", "-m", "src.run"]
    assert set(printed[3:]) == {
        *("experiment=ce_msrvtt", "scheduler=cosine_restarts", "scheduler.first=4", "scheduler.factor=3"),
        *("optimizer.k=5", "dataset.recipe.lr=0.05", "seed=2", "'model.randomise=[face]'"),
    }
