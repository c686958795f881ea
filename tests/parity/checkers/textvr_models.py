"""Frozen in Time: the space-time transformer, its start from a ViT, positions in time, the dual encoder."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.batch import TextBatch, VideoBatch
from src.models.bert_text import BertText
from src.models.frozen import Frozen, FrozenBase, ranking_loss
from src.models.space_time import SpaceTimeTransformer, fit_temporal
from src.models.weights import load_strictly
from tests.parity.cases import FORWARD_RTOL, Case, assert_close, assert_gradients


def tower_of(case: Case, num_frames: int | None = None) -> SpaceTimeTransformer:
    sizes = case.meta["config"]
    return SpaceTimeTransformer(
        image_size=sizes["img"],
        patch_size=sizes["patch"],
        width=sizes["D"],
        depth=sizes["depth"],
        heads=sizes["heads"],
        num_frames=num_frames or sizes["frames"],
    )


def text_folder(folder: Path, sizes: dict[str, Any], kind: str) -> str:
    """A transformers folder with the configuration of the case and nothing else."""
    common = {"model_type": kind, "vocab_size": sizes["vocab"], "max_position_embeddings": sizes["maxpos"]}
    width = sizes.get("TD", sizes["D"])
    if kind == "distilbert":
        own = {"dim": width, "n_layers": sizes["TL"], "n_heads": sizes["TH"], "hidden_dim": sizes["TF"]}
    else:
        own = {
            "hidden_size": width,
            "num_hidden_layers": sizes["TL"],
            "num_attention_heads": sizes["TH"],
            "intermediate_size": sizes["TF"],
        }
    path = folder / "config.json"
    path.write_text(json.dumps(common | own), encoding="utf-8")
    return str(folder)


def random_text(case: Case, kind: str) -> BertText:
    with tempfile.TemporaryDirectory() as folder:
        return BertText(text_folder(Path(folder), case.meta["config"], kind), weights=False)


def check_forward(case: Case) -> None:
    tower = tower_of(case)
    load_strictly(tower, case.group("param"), case.id)
    steps: dict[str, Tensor] = {}
    for index, block in enumerate(tower.blocks):
        block.register_forward_hook(lambda module, args, output, i=index: steps.__setitem__(f"block{i}", output))
    video = case.tensors["in/video"]
    features_BD = tower(video)
    steps |= {"tokens_after_pos": tower.embed(video), "features": features_BD}
    whole = dict(steps)
    for count in case.meta["config"]["short"]:
        whole[f"features_first{count}frames"] = tower(video[:, :count])
    outputs = case.group("out")
    assert outputs.keys() == whole.keys()
    for name, expected in outputs.items():
        assert_close(whole[name], expected, name=name)
    (features_BD * case.tensors["in/loss_weight"]).sum().backward()
    assert_gradients(dict(tower.named_parameters()), case.group("grad"))


def check_vit_start(case: Case) -> None:
    tower = tower_of(case)
    kept, unused = tower.start_from_vit(case.group("param/vit"), case.id)
    assert sorted(kept) == sorted(case.meta["missing_keys"])
    assert sorted(unused) == sorted(case.meta["unexpected_keys"])
    for name, expected in case.group("out/state").items():
        assert torch.equal(tower.state_dict()[name], expected), name
    video = case.tensors["in/video"]
    assert_close(tower(video), case.tensors["out/features"], name="features")
    first = tower(video[:, :1])
    assert_close(first, case.tensors["out/features_first1frames"], name="one frame")
    assert_close(first, case.tensors["out/vit_cls_first_frame"], name="the ViT itself")


def check_load_temporal(case: Case) -> None:
    for given, wanted, how in case.meta["pairs"]:
        found = fit_temporal(case.tensors[f"in/temporal_embed_{given}"], wanted, how)
        assert_close(found, case.tensors[f"out/{given}to{wanted}_{how}"], name=f"{given} to {wanted}, {how}")


def dual_of(case: Case, kind: str) -> FrozenBase:
    sizes = case.meta["config"]
    has_projection = any(name.startswith("param/vid_proj.") for name in case.tensors)
    with tempfile.TemporaryDirectory() as folder:
        model = Frozen(
            text_model=text_folder(Path(folder), sizes, kind),
            vit="videotext-tiny",
            image_size=sizes["img"],
            patch_size=sizes["patch"],
            width=sizes["D"],
            depth=sizes["depth"],
            heads=sizes["heads"],
            num_frames=sizes["frames"],
            projection="minimal" if has_projection else "none",
            projection_dim=sizes["P"],
        )
    load_strictly(model, case.group("param"), case.id)
    return model.eval()  # no dropout, as the case was made


def dual_batches(case: Case) -> tuple[TextBatch, VideoBatch]:
    tokens_BL, mask_BL = case.tensors["in/input_ids"], case.tensors["in/attention_mask"].bool()
    video = case.tensors["in/video"]
    ids = torch.arange(len(tokens_BL))
    mask_BT = torch.ones(video.shape[:2], dtype=torch.bool)
    return TextBatch(tokens_BL, mask_BL, ids, ids), VideoBatch(ids, video, mask_BT)


def check_dual(case: Case, kind: str) -> None:
    model = dual_of(case, kind)
    text_batch, video_batch = dual_batches(case)
    text, video = model.encode_text(text_batch), model.encode_video(video_batch)
    assert_close(text.parts["text"], case.tensors["out/text_embed"], name="text_embed")
    assert_close(video.parts["video"], case.tensors["out/video_embed"], name="video_embed")
    assert_close(model.similarity(text, video), case.tensors["out/sim"], name="sim")
    margin = ranking_loss("max_margin", 0.05, 1.0, "exact", False)(model.similarity, text, video)
    assert_close(margin, case.tensors["out/loss_maxmargin_m1"], name="max margin")
    loss = model.loss(text, video)["loss"]
    assert_close(loss, case.tensors["out/loss_normsoftmax_t0.05"], FORWARD_RTOL, name="norm softmax")
    loss.backward()
    assert_gradients(dict(model.named_parameters()), case.group("grad"))


CHECKERS = {
    "textvr": {
        "stt_forward": check_forward,
        "stt_vit_init": check_vit_start,
        "load_temporal": check_load_temporal,
        "dual_distilbert": lambda case: check_dual(case, "distilbert"),
        "dual_bert_noproj": lambda case: check_dual(case, "bert"),
    }
}
