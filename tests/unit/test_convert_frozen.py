"""Checkpoints of Frozen in Time and TextVR, written with the names and shapes that their authors' programs save."""

from __future__ import annotations

import json
import logging
import math
import os
import pathlib
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from src.convert import frozen
from src.convert.formats import family_of
from src.errors import UserError
from src.models.base import RetrievalModule
from src.models.frozen import Frozen
from src.models.space_time import fit_temporal
from src.models.textvr import TextVR
from src.models.weights import load_strictly, read_weights
from src.tasks import convert
from src.tasks.checkpoint import load_weights

Shapes = dict[str, tuple[int, ...]]
TINY: dict[str, Any] = {"text_model": "videotext-tiny", "vit": "videotext-tiny", "num_frames": 4, "projection_dim": 32}
TEXT = {"vocab": 4096, "positions": 77, "width": 96, "hidden": 384, "layers": 2}
VIDEO = {"width": 96, "patches": 16, "patch": 16, "frames": 4, "depth": 3}


def layer(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def distilbert(start: str, *, vocab: int, positions: int, width: int, hidden: int, layers: int) -> Shapes:
    shapes = {
        f"{start}.embeddings.word_embeddings.weight": (vocab, width),
        f"{start}.embeddings.position_embeddings.weight": (positions, width),
        **norm(f"{start}.embeddings.LayerNorm", width),
    }
    for index in range(layers):
        one = f"{start}.transformer.layer.{index}"
        for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
            shapes |= layer(f"{one}.attention.{part}", width, width)
        shapes |= norm(f"{one}.sa_layer_norm", width) | layer(f"{one}.ffn.lin1", hidden, width)
        shapes |= layer(f"{one}.ffn.lin2", width, hidden) | norm(f"{one}.output_layer_norm", width)
    return shapes


def space_time(*, width: int, patches: int, patch: int, frames: int, depth: int) -> Shapes:
    shapes: Shapes = {
        "video_model.cls_token": (1, 1, width),
        "video_model.pos_embed": (1, 1 + patches, width),
        "video_model.temporal_embed": (1, frames, width),
        "video_model.patch_embed.proj.weight": (width, 3, patch, patch),
        "video_model.patch_embed.proj.bias": (width,),
    }
    for index in range(depth):
        block = f"video_model.blocks.{index}"
        for name in ("norm1", "norm2", "norm3"):
            shapes |= norm(f"{block}.{name}", width)
        for name in ("attn", "timeattn"):
            shapes |= layer(f"{block}.{name}.qkv", 3 * width, width) | layer(f"{block}.{name}.proj", width, width)
        shapes |= layer(f"{block}.mlp.fc1", 4 * width, width) | layer(f"{block}.mlp.fc2", width, 4 * width)
    return shapes | norm("video_model.norm", width)


def published(kind: str, text: dict[str, int] = TEXT, video: dict[str, int] = VIDEO, dim: int = 32) -> Shapes:
    """Names and shapes of the state dict of one of the publications' variants."""
    width = text["width"]
    captions = distilbert("text_model", **text) | layer("txt_proj.1", dim, width)
    pictures = space_time(**video) | layer("vid_proj.0", dim, width)
    if kind == "vision":
        return captions | pictures
    words: Shapes = {"query_token": (1, width), **distilbert("ocr_model", **text), **layer("fusion_proj.1", dim, width)}
    for name in ("query", "key", "value"):
        words |= layer(f"fusion_model.{name}", width, width)
    if kind == "ocr":
        return captions | words
    return captions | pictures | words | {"type_embedding.weight": (3, width)} | layer("ocr_pos_embeds", width, 12)


def filled(shapes: Shapes, prefix: str = "") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {prefix + name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch) -> type:
    """The class of the trainers' options, importable only while a file is written."""
    module = types.ModuleType("parse_config")
    module.ConfigParser = type("ConfigParser", (), {"__module__": "parse_config"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "parse_config", module)
    return module.ConfigParser


def write(path: Path, kind: type, state: dict[str, Tensor], arch: str = "FrozenInTime", **extra: Any) -> Path:
    """A checkpoint as the trainers save it."""
    options = kind()
    model = {"type": "FrozenInTime", "args": {"video_params": {"num_frames": 4}, "projection": "minimal", **extra}}
    options._config = OrderedDict(name="TextVR_fusion", n_gpu=8, arch=model, optimizer={"type": "AdamW"})
    options._save_dir = options._log_dir = options._web_log_dir = pathlib.PosixPath("/exps/models/x/1121_000000")
    options.resume, options.cfg_fname = None, pathlib.PosixPath("configs/TextVR_fusion.json")
    options.log_levels = {0: 30, 1: 20, 2: 10}
    moments = {0: {"step": 3, "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}}
    content = {
        "arch": arch,
        "epoch": 12,
        "state_dict": OrderedDict(state),
        "optimizer": {"state": moments, "param_groups": [{"lr": 3e-5, "correct_bias": True, "params": [0]}]},
        "monitor_best": 2.375,
        "config": options,
    }
    torch.save(content, path)
    del sys.modules["parse_config"]
    return path


def cfg(tmp_path: Path, source: Path, model: str = "frozen.Frozen", **more: Any) -> Any:
    options = TINY | {"_target_": f"src.models.{model}", "needs": ["frames"]} | more.pop("model_options", {})
    task = {"name": "convert", "source": str(source), "output": str(tmp_path / "out.safetensors"), "format": "ours"}
    return OmegaConf.create(
        {"model": options, "task": task | {"trust": False} | more, "paths": {"run_dir": str(tmp_path / "run")}}
    )


def reading(mode: str) -> dict[str, Any]:
    return {"model": "textvr.TextVR", "model_options": {"mode": mode}}


VARIANTS: dict[str, tuple[dict[str, Any], type[RetrievalModule], dict[str, Any]]] = {
    "frozen": ({}, Frozen, {}),
    "vision": (reading("vision"), TextVR, {"mode": "vision"}),
    "ocr": (reading("ocr"), TextVR, {"mode": "ocr"}),
    "fusion": (reading("fusion"), TextVR, {"mode": "fusion"}),
}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("variant", VARIANTS)
def test_there_and_back(
    tmp_path: Path, parser: type, caplog: pytest.LogCaptureFixture, variant: str, prefix: str
) -> None:
    kind = variant.replace("frozen", "vision")
    chosen, model_class, options = VARIANTS[variant]
    arch = "DataParallel" if prefix else "FrozenInTime"
    state = filled(published(kind))
    source = write(tmp_path / "model_best.pth", parser, {prefix + name: value for name, value in state.items()}, arch)
    with caplog.at_level(logging.INFO):
        convert.run(cfg(tmp_path, source, **chosen))
    assert "the state of the optimizer" in caplog.text
    assert ("model.ocr_rule=upstream" in caplog.text) == (kind != "vision")
    model = model_class(**(TINY | options))
    load_weights(model, tmp_path / "out.safetensors")
    ours = model.state_dict()
    for name, value in state.items():  # every tensor is where the published model has it
        assert torch.equal(ours[name if name in ours else f"fusion.{name}"], value), name
    assert len(ours) == len(state)

    back = cfg(tmp_path, tmp_path / "out.safetensors", format="upstream", output=str(tmp_path / "back.pth"), **chosen)
    convert.run(back)
    found, rest = read_weights(tmp_path / "back.pth")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert (rest["arch"], rest["epoch"], rest["monitor_best"]) == (arch, 12, 2.375)
    assert rest["config"]["name"] == "TextVR_fusion"
    # What was exported is published again.
    again = cfg(tmp_path, tmp_path / "back.pth", output=str(tmp_path / "again.safetensors"), **chosen)
    convert.run(again)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["parameters"] == sum(value.numel() for value in state.values())


def test_both_files_of_a_model_load_by_model_pretrained(tmp_path: Path, parser: type) -> None:
    state = filled(published("fusion"), "module.")
    source = write(tmp_path / "textvr.pth", parser, state)
    convert.run(cfg(tmp_path, source, **reading("fusion")))
    models = [TextVR(**TINY, pretrained=str(path)) for path in (source, tmp_path / "out.safetensors")]
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(first["fusion.fusion_proj.1.bias"], state["module.fusion_proj.1.bias"])


@pytest.mark.parametrize(
    ("part", "fresh"), [("frozen", ["fusion."]), ("video", ["fusion.", "text_model.", "txt_proj."])]
)
def test_a_converted_frozen_starts_a_fusion(
    tmp_path: Path, parser: type, caplog: pytest.LogCaptureFixture, part: Any, fresh: list[str]
) -> None:
    state = filled(published("vision"))
    convert.run(cfg(tmp_path, write(tmp_path / "f.pth.tar", parser, state)))
    with caplog.at_level(logging.INFO):
        model = TextVR(**TINY, pretrained=str(tmp_path / "out.safetensors"), pretrained_parts=part)
    ours = model.state_dict()
    for name, value in state.items():
        taken = part == "frozen" or name.startswith("video_model.")
        assert torch.equal(ours[name], value) == taken, name
    listed = next(message for message in caplog.messages if "start afresh" in message)
    new = [name for name in ours if name.startswith(tuple(fresh))]
    assert all(name in listed for name in new)
    with pytest.raises(UserError, match="holds nothing that reads words, the model does"):
        TextVR(**TINY, pretrained=str(tmp_path / "out.safetensors"))


@pytest.mark.parametrize(("frames", "how"), [(2, "zeros"), (8, "zeros"), (8, "interp"), (8, "bilinear")])
def test_another_number_of_frames(
    tmp_path: Path, parser: type, caplog: pytest.LogCaptureFixture, frames: int, how: Any
) -> None:
    state = filled(published("vision"))
    source = write(tmp_path / "f.pth.tar", parser, state)
    with caplog.at_level(logging.INFO):
        convert.run(cfg(tmp_path, source, model_options={"num_frames": frames, "load_temporal": how}))
    assert f"trained with 4 frames, model.num_frames={frames}" in caplog.text
    found, _ = read_weights(tmp_path / "out.safetensors")
    name = "video_model.temporal_embed"
    assert torch.equal(found.pop(name), fit_temporal(state.pop(name), frames, how))
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_positions_of_bert_are_dropped_and_listed(
    tmp_path: Path, parser: type, caplog: pytest.LogCaptureFixture
) -> None:
    counter = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    source = write(tmp_path / "f.pth", parser, filled(published("vision")) | counter)
    with caplog.at_level(logging.INFO):
        convert.run(cfg(tmp_path, source))
    assert "text_model.embeddings.position_ids" in caplog.text
    assert not any(name.endswith("position_ids") for name in read_weights(tmp_path / "out.safetensors")[0])


# --- what does not fit


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"video_model.norm.bias": None}, "1 missing: video_model.norm.bias"),
        (
            {"fusion_model.query.weight": None, "ocr_pos_embeds.bias": None},
            "2 missing: fusion.fusion_model.query.weight",
        ),
        ({"video_model.head.weight": torch.ones(2)}, "1 unexpected: video_model.head.weight"),
        ({"mit.weight": torch.ones(2)}, r"1 of \d+ tensors belong neither .*: mit\.weight"),
        ({"type_embedding.weight": torch.ones(2, 96)}, r"fusion.type_embedding.weight \(2, 96\) instead of \(3, 96\)"),
        ({"video_model.temporal_embed": torch.ones(4, 96)}, r"temporal_embed \(4, 96\) instead of \(1, 4, 96\)"),
    ],
)
def test_missing_and_unexpected_tensors_are_listed(
    tmp_path: Path, parser: type, change: dict[str, Tensor | None], words: str
) -> None:
    state: dict[str, Any] = filled(published("fusion")) | change
    kept = {name: value for name, value in state.items() if value is not None}
    source = write(tmp_path / "m.pth", parser, kept)
    with pytest.raises(UserError, match=words):
        convert.run(cfg(tmp_path, source, **reading("fusion")))
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("kind", "chosen", "words"),
    [
        (
            "vision",
            reading("fusion"),
            "holds nothing that reads words; convert it with model=frozen, .*pretrained_parts",
        ),
        ("vision", reading("ocr"), "holds nothing that reads words"),
        ("fusion", {}, "is of TextVR; choose model=textvr model.mode=fusion"),
        ("ocr", {}, "is of TextVR; choose model=textvr model.mode=ocr"),
        ("fusion", reading("ocr"), "add model.mode=fusion"),
        ("ocr", reading("vision"), "add model.mode=ocr"),
        ("vision", {"model_options": {"projection_dim": 16}}, "add model.projection_dim=32"),
        ("vision", {"model_options": {"projection": "none"}}, "add model.projection=minimal"),
        (
            "vision",
            {"model_options": {"vit": "vit_tiny_patch16_224"}},
            "add model.image_size=64 model.width=96 .*depth=3",
        ),
        ("vision", {"model": "dual_encoding.DualEncoding"}, None),
    ],
)
def test_another_model(tmp_path: Path, parser: type, kind: str, chosen: dict[str, Any], words: str | None) -> None:
    if words is None:
        model = torch.nn.Module()
        with pytest.raises(UserError, match="is of Frozen in Time; choose model=frozen"):
            frozen.check_inputs(model, filled(published(kind)), {}, "m.pth")  # type: ignore[arg-type]
        return
    source = write(tmp_path / "m.pth", parser, filled(published(kind)))
    with pytest.raises(UserError, match=words):
        convert.run(cfg(tmp_path, source, **chosen))


def test_half_a_prefix(tmp_path: Path) -> None:
    state = filled(published("vision"))
    mixed = {("module." if index == 0 else "") + name: value for index, (name, value) in enumerate(state.items())}
    with pytest.raises(UserError, match=rf"1 of {len(state)} names begin with module\."):
        frozen.from_upstream(mixed)


def test_foreign_names_are_not_exported() -> None:
    with pytest.raises(UserError, match=r"tensor fusion\.other has no name in Frozen in Time"):
        frozen.to_upstream({"fusion.other": torch.ones(1)})
    with pytest.raises(UserError, match="tensor query_token has no name"):
        frozen.to_upstream({"query_token": torch.ones(1)})


class Malicious:
    """Unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_code_in_the_configuration_does_not_run(tmp_path: Path, parser: type) -> None:
    source = write(tmp_path / "m.pth", parser, filled(published("vision")), seed=Malicious(tmp_path / "made"))
    with pytest.raises(UserError, match=r"it asks for posix\.mkdir"):
        convert.run(cfg(tmp_path, source))
    assert not (tmp_path / "made").exists()


# --- the published sizes

FULL_TEXT = {"vocab": 30522, "positions": 512, "width": 768, "hidden": 3072, "layers": 6}
FULL_VIDEO = {"width": 768, "patches": 196, "patch": 16, "frames": 4, "depth": 12}
PARAMETERS = {"vision": 180_925_184, "fusion": 249_269_760}


@pytest.mark.parametrize("kind", ["vision", "ocr", "fusion"])
def test_every_published_tensor_has_its_place_at_full_size(tmp_path: Path, kind: str) -> None:
    shapes = published(kind, FULL_TEXT, FULL_VIDEO, dim=256)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    assert parameters == PARAMETERS.get(kind, parameters)
    folder = tmp_path / "distilbert"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "distilbert", "architectures": ["DistilBertModel"]}')
    with torch.device("meta"):
        state = {f"module.{name}": torch.empty(shape) for name, shape in shapes.items()}
        model = Frozen(text_model=str(folder)) if kind == "vision" else TextVR(text_model=str(folder), mode=kind)  # type: ignore[arg-type]
        assert family_of(state).name == "Frozen in Time and TextVR"
        ours = frozen.from_upstream(state)
        load_strictly(model, ours, "the published checkpoint")
        assert frozen.to_upstream(model.state_dict()).keys() == shapes.keys()
