"""InternVideo's published files: every layout fills the same tower, and nothing is dropped in silence."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.convert import internvideo
from src.convert.formats import family_of
from src.errors import UserError
from src.models.evl_tower import EvlTower
from src.models.evl_weights import fitting_tensors, inflate, listing, merged, tower_tensors
from src.models.heads.mean import MeanHead
from src.models.internvideo import InternVideo
from src.tasks import convert
from src.tasks.checkpoint import load_weights
from tests.tiny_internvideo import B16, L14, TINY, clip_shapes, finetuned, pretrained, tower_shapes, values

TABLE = Path(__file__).resolve().parents[1] / "golden" / "internvideo" / "state_dict_and_freeze.json"
ARCH = "videotext-tiny-quickgelu"
Shapes = dict[str, tuple[int, ...]]
KEPT_FROM_CLIP = ("visual_proj", "visual_ln_post.weight", "visual_ln_post.bias")
ONLY_VIDEO = {name for name in tower_shapes(TINY) if name not in clip_shapes(TINY) and name not in KEPT_FROM_CLIP}


def shapes_of(state: dict[str, Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in state.items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def tower() -> dict[str, Tensor]:
    return values(tower_shapes(TINY))


def on_meta(arch: str) -> InternVideo:
    with torch.device("meta"):
        return InternVideo(arch=arch, head=MeanHead)


def test_the_helper_writes_the_published_table() -> None:
    table = json.loads(TABLE.read_text())
    assert tower_shapes(L14) == {name: tuple(shape) for name, shape in table["keys"].items()}
    assert table["prefix_in_finetuned_checkpoint"] == "clip."


@pytest.mark.parametrize(
    ("arch", "sizes", "tensors", "millions"),
    [("ViT-L-14-quickgelu", L14, 513, 478.1), ("ViT-B-16-quickgelu", B16, 369, 178.1)],
)
def test_full_sizes_have_the_published_names_and_shapes(arch: str, sizes: Any, tensors: int, millions: float) -> None:
    state = on_meta(arch).state_dict()
    published = internvideo.to_upstream(state)
    assert len(published) == tensors
    assert sum(value.numel() for value in published.values()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert shapes_of(published) == {f"clip.{name}": shape for name, shape in tower_shapes(sizes).items()}
    assert shapes_of(internvideo.from_upstream(published)) == shapes_of(state)


def layouts(tower: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    return {
        "finetuned": finetuned(tower),
        "pretrained": pretrained(tower)["state_dict"],
        "pretrained_moved": pretrained(tower, moved=False)["state_dict"],
        "distributed": {f"module.{name}": value for name, value in finetuned(tower).items()},
        "bare": tower,
        "ours": {f"tower.{name}": value for name, value in finetuned(tower).items()},
    }


def test_all_layouts_are_told_and_sorted(tower: dict[str, Tensor]) -> None:
    for name, state in layouts(tower).items():
        assert family_of(state).name == "InternVideo", name
        assert equal(tower_tensors(state).tower, tower), name
        if name != "ours":
            ours = internvideo.from_upstream(state)
            assert equal(ours, layouts(tower)["ours"]), name
            assert equal(internvideo.to_upstream(ours), layouts(tower)["finetuned"]), name


def test_other_families_are_not_taken(tower: dict[str, Tensor]) -> None:
    clip = values(clip_shapes(TINY))
    for state in (clip, finetuned(clip), {"tower.clip.visual.proj": clip["visual.proj"]}):
        assert family_of(state).name != "InternVideo"


def test_half_precision_and_both_projections(tower: dict[str, Tensor]) -> None:
    state = {name: value.half() for name, value in finetuned(tower).items()}
    assert all(value.dtype is torch.float32 for value in tower_tensors(state).tower.values())
    # As upstream, the projection under CLIP's name counts; the other one is not lost without a word.
    both = finetuned(tower) | {"clip.visual.proj": torch.ones(96, 96)}
    found = tower_tensors(both)
    assert torch.equal(found.tower["visual_proj"], torch.ones(96, 96))
    assert list(found.others) == ["clip.visual_proj"]


def test_headers_are_converted_and_other_heads_listed(tower: dict[str, Tensor]) -> None:
    header = {
        "frame_position_embeddings.weight": torch.ones(77, 96),
        "transformerClip.resblocks.0.ln_1.bias": torch.ones(96),
    }
    state = pretrained(tower)["state_dict"] | header
    ours = internvideo.from_upstream(state)
    assert len(ours) == len(tower) + 2
    back = internvideo.to_upstream(ours)
    assert equal(back, finetuned(tower) | header)
    heads, training = internvideo.left_out(state, {"epoch": 3, "callbacks": {}})
    assert heads.startswith("not converted: 5 tensors outside the tower: ")
    assert {"itm_head.*", "mlm_score.predictions.*"} <= set(heads.split(": ")[2].replace(" (2)", "").split(", "))
    assert training.endswith("callbacks, epoch")
    assert internvideo.left_out(finetuned(tower), {}) == []


def test_listing_hides_no_name() -> None:
    names = ["a.b.0.weight", "a.b.1.bias", "a.c.weight", "d", "e.weight", "e.bias"]
    assert listing(names) == "a.b.* (2), a.c.*, d, e.* (2)"


def fresh() -> EvlTower:
    torch.manual_seed(1)
    return EvlTower(ARCH)


def test_every_file_fills_the_tower(tower: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    torch.save(finetuned(tower), tmp_path / "pytorch_model.bin")
    torch.save(pretrained(tower, moved=False), tmp_path / "InternVideo-MM-tiny.ckpt")
    save_file(layouts(tower)["ours"], tmp_path / "ours.safetensors")
    for name in ("pytorch_model.bin", "InternVideo-MM-tiny.ckpt", "ours.safetensors"):
        loaded = EvlTower(ARCH, str(tmp_path / name)).clip.state_dict()
        assert equal(loaded, tower), name
    (left_out,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "InternVideo-MM-tiny.ckpt: 5 tensors outside the tower left out" in left_out
    for head in ("mlm_score.predictions.*", "text_decoder.resblocks.* (2)", "itm_head.*"):
        assert head in left_out


def test_a_clip_starts_the_tower(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clip = values(clip_shapes(TINY))
    save_file(clip, tmp_path / "clip.safetensors")
    torch.manual_seed(1)
    loaded = EvlTower(ARCH, str(tmp_path / "clip.safetensors")).clip.state_dict()
    assert torch.equal(loaded["visual.conv1.weight"][:, :, 0], clip["visual.conv1.weight"])
    assert torch.equal(loaded["visual_proj"], clip["visual.proj"])
    assert torch.equal(loaded["visual_ln_post.bias"], clip["visual.ln_post.bias"])
    shared = clip.keys() & loaded.keys() - {"visual.conv1.weight"}
    assert loaded.keys() - shared - {"visual.conv1.weight", *KEPT_FROM_CLIP} == ONLY_VIDEO
    assert all(torch.equal(loaded[name], clip[name]) for name in shared)
    start = fresh().clip.state_dict()
    assert all(torch.equal(loaded[name], start[name]) for name in ONLY_VIDEO)
    (message,) = [record.getMessage() for record in caplog.records if "start afresh" in record.getMessage()]
    assert f"lacks {len(ONLY_VIDEO)} tensors" in message
    assert "visual.transformer.dec.*" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip.visual.transformer.dec.0.ln_3.weight": None}, "1 missing: visual.transformer.dec.0.ln_3.weight"),
        ({"clip.visual.transformer.temporal_cls_token": None}, "1 missing: visual.transformer.temporal_cls_token"),
        ({"clip.visual.transformer.dec.7.ln_3.weight": torch.ones(96)}, r"1 unexpected: visual\.transformer\.dec\.7"),
        ({"clip.visual.temporal_positional_embedding": torch.ones(8, 96)}, "1 unexpected: visual.temporal_positional"),
        ({"clip.visual_proj": torch.ones(96, 64)}, r"visual_proj \(96, 64\) instead of \(96, 96\)"),
    ],
)
def test_nothing_of_the_tower_may_differ(tower: dict[str, Tensor], change: dict[str, Any], message: str) -> None:
    state = {name: value for name, value in (finetuned(tower) | change).items() if value is not None}
    model = fresh()
    before = {name: value.clone() for name, value in model.clip.state_dict().items()}
    with pytest.raises(UserError, match=message):
        model.check_file(state, "x.bin")
    assert equal(model.clip.state_dict(), before)


def test_what_retrieval_does_not_read_may_be_absent(tower: dict[str, Tensor]) -> None:
    del tower["text_mask_embedding"]
    assert fitting_tensors(fresh().clip, finetuned(tower), "x").keys() == tower_shapes(TINY).keys()


def test_a_clip_may_not_hide_anything() -> None:
    with pytest.raises(UserError, match="1 unexpected: logit_bias"):
        fresh().check_file(values(clip_shapes(TINY)) | {"logit_bias": torch.zeros(1)}, "clip.bin")
    with pytest.raises(UserError, match="holds no CLIP or InternVideo tower"):
        fresh().check_file({"resnet.weight": torch.zeros(1)}, "resnet.bin")


def test_patches_keep_their_centre() -> None:
    flat = torch.randn(4, 3, 2, 2)
    deep = inflate(flat, 3)
    assert torch.equal(deep[:, :, 1], flat)
    assert deep[:, :, [0, 2]].abs().max() == 0


def test_merging_needs_the_same_architecture(tower: dict[str, Tensor]) -> None:
    clip = values(clip_shapes(TINY), seed=1)
    half = merged(tower, clip, 0.5)
    assert torch.allclose(half["ln_final.weight"], (tower["ln_final.weight"] + clip["ln_final.weight"]) / 2)
    assert torch.equal(half["visual_proj"], tower["visual_proj"])
    with pytest.raises(UserError, match=r"ln_final.weight has shape \(5,\) in the CLIP to merge"):
        merged(tower, clip | {"ln_final.weight": torch.ones(5)}, 0.5)


def config(tmp_path: Path, source: Path, model: dict[str, Any] | None = None, **task: Any) -> Any:
    options = {"_target_": "src.models.internvideo.InternVideo", "arch": ARCH, "pretrained": "openai", "num_frames": 4}
    options |= {"needs": ["frames"], "head": {"_target_": "src.models.heads.mean.MeanHead"}} | (model or {})
    task = {"name": "convert", "source": str(source), "output": None, "format": "ours", "trust": False} | task
    return OmegaConf.create({"model": options, "task": task, "paths": {"run_dir": str(tmp_path / "run")}})


def test_the_pretrained_file_there_and_back(
    tower: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = tmp_path / "InternVideo-MM-tiny.ckpt"
    torch.save(pretrained(tower, moved=False), source)
    convert.run(config(tmp_path, source))
    ours = tmp_path / "run" / "InternVideo-MM-tiny.safetensors"
    assert equal(load_file(ours), layouts(tower)["ours"])
    assert "itm_head.*" in caplog.text
    assert "optimizer_states" in caplog.text
    convert.run(config(tmp_path, ours, format="upstream", output=str(tmp_path / "pytorch_model.bin")))
    assert equal(torch.load(tmp_path / "pytorch_model.bin", weights_only=True), finetuned(tower))
    convert.run(config(tmp_path, ours, format="upstream", output=str(tmp_path / "upstream.safetensors")))
    assert equal(load_file(tmp_path / "upstream.safetensors"), finetuned(tower))
    with pytest.raises(UserError, match=r"name it \.bin or \.safetensors"):
        convert.run(config(tmp_path, ours, format="upstream", output=str(tmp_path / "x.pth")))


def test_trust_is_asked_for_and_only_then_given(tower: dict[str, Tensor], tmp_path: Path) -> None:
    source = tmp_path / "InternVideo-MM-tiny.ckpt"
    torch.save(pretrained(tower, objects=True), source)
    with pytest.raises(UserError, match=r"asks for tests.tiny_internvideo.Foreign.*task.trust=true"):
        convert.run(config(tmp_path, source))
    with pytest.raises(UserError, match=r"task.trust=true"):
        EvlTower(ARCH, str(source))
    convert.run(config(tmp_path, source, trust=True))
    assert equal(EvlTower(ARCH, str(tmp_path / "run" / "InternVideo-MM-tiny.safetensors")).clip.state_dict(), tower)


def test_other_options_are_named(tower: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(finetuned(tower), tmp_path / "x.bin")
    with pytest.raises(UserError, match=r"add model\.tower=global model\.decoder_layers=3"):
        convert.run(config(tmp_path, tmp_path / "x.bin", {"tower": "fusion", "decoder_layers": 2}))


def test_a_clip_is_checked_for_the_model(tmp_path: Path) -> None:
    clip = values(clip_shapes(TINY))
    save_file({name: value.half() for name, value in clip.items()}, tmp_path / "clip.safetensors")
    convert.run(config(tmp_path, tmp_path / "clip.safetensors"))
    written = tmp_path / "run" / "clip.safetensors"
    assert shapes_of(load_file(written)) == clip_shapes(TINY)
    assert torch.equal(EvlTower(ARCH, str(written)).clip.visual_proj, clip["visual.proj"].half().float())
    del clip["visual.proj"]
    save_file(clip, tmp_path / "clip.safetensors")
    with pytest.raises(UserError, match="1 missing: visual_proj"):
        convert.run(config(tmp_path, tmp_path / "clip.safetensors"))


def test_a_published_file_is_no_checkpoint(tower: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": finetuned(tower)}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"none of the tensors of this model.*task=convert task.source=.*x\.ckpt"):
        load_weights(on_meta(ARCH), tmp_path / "x.ckpt")
