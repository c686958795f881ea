"""CLIP4Clip and CLIP2Video: forward, loss, gradients, fresh start, gathering."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.distributed as dist
from torch import Tensor

from src.batch import TextBatch, VideoBatch
from src.convert.clip4clip import from_upstream, to_upstream
from src.models.clip2video import Clip2Video
from src.models.clip4clip import Clip4Clip
from src.models.clip_retrieval import ClipRetrievalModule
from src.models.heads.base import HeadFactory
from src.models.heads.mean import MeanHead
from src.models.heads.seq_lstm import SeqLstmHead
from src.models.heads.seq_transf import SeqTransfHead
from src.models.heads.tab import TabHead, tokens_to_align
from src.models.heads.tight import TightTransfHead
from src.models.weights import load_strictly
from tests.parity.allgather import gathered_loss
from tests.parity.cases import Case, assert_close, assert_gradients
from tests.processes import run_processes

LAYOUTS = {"repeat (reference bug)": "upstream", "repeat_interleave": "per_video"}
DIFFERENCES = {"": "raw", "sigmoid_mlp": "mlp", "sigmoid_selfA": "attention"}
ALIGNMENT_TOKENS = {"": "frames", "TAB": "temporal", "TAB_TDB": "difference"}


def register_arch(dims: Mapping[str, int], head_dim: int) -> str:
    """Make a tiny CLIP of these sizes known to open_clip and return its name."""
    config = {
        "embed_dim": dims["embed"],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": dims["res"],
            "layers": dims["vl"],
            "width": dims["vw"],
            "head_width": head_dim,
            "patch_size": dims["patch"],
        },
        "text_cfg": {
            "context_length": dims["ctx"],
            "vocab_size": dims["vocab"],
            "width": dims["tw"],
            "heads": dims["tw"] // head_dim,
            "layers": dims["tl"],
        },
    }
    name = "golden-" + "-".join(str(value) for value in dims.values()) + f"-{head_dim}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.json"
        path.write_text(json.dumps(config))
        open_clip.add_model_config(path)
    return name


def common_options(case: Case) -> dict[str, Any]:
    meta = case.meta
    return {
        "arch": register_arch(meta["dims"], meta["head_dim"]),
        "num_frames": meta["dims"]["F"],
        "max_words": meta["dims"]["L"],
        "head_dim": meta["head_dim"],
        "mask_layout": next(
            layout for text, layout in LAYOUTS.items() if meta["key_padding_mask_layout"].startswith(text)
        ),
    }


def clip2video_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Upstream's flags as our options."""
    aligned = partial(TabHead, num_centers=config["centerK"], global_weight=config["center_weight"])
    return {
        "head": aligned if config["center_type"] == "TAB" else MeanHead,
        "temporal_block": config["sim_type"] == "seqTransf",
        "difference_block": config["temporal_type"] == "TDB",
        "difference": DIFFERENCES[config["temporal_proj"]],
        "alignment_tokens": ALIGNMENT_TOKENS[config["center_proj"]],
        "temporal_layers": config["cross_num_hidden_layers"],
    }


def clip4clip_head(config: Mapping[str, Any]) -> HeadFactory:
    layers = config["cross_num_hidden_layers"]
    heads: dict[str, HeadFactory] = {
        "meanP": MeanHead,
        "seqLSTM": SeqLstmHead,
        "seqTransf": partial(SeqTransfHead, temporal_layers=layers),
        "tightTransf": partial(TightTransfHead, temporal_layers=layers, dropout=0.0),
    }
    return heads[config["sim_header"]]


def batches(case: Case) -> tuple[TextBatch, VideoBatch]:
    tensors = case.group("in")
    batch, frames = len(tensors["input_ids"]), case.meta["dims"]["F"]
    video = tensors["video"]
    ids = torch.arange(batch)
    text = TextBatch(
        tokens_BL=tensors["input_ids"].view(batch, -1),
        mask_BL=tensors["attention_mask"].view(batch, -1).bool(),
        ids=ids,
        video_ids=ids,
    )
    frames_BTCHW = video.view(batch, frames, *video.shape[-3:])
    return text, VideoBatch(ids=ids, frames_BTCHW=frames_BTCHW, mask_BT=tensors["video_mask"].view(batch, -1).bool())


def load_case(model: ClipRetrievalModule, case: Case) -> None:
    """Fill the model through the converter, and check the way back."""
    state = case.group("param")
    load_strictly(model, from_upstream(state), case.id)
    exported = to_upstream(model.state_dict())
    assert exported.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(exported[name], value), name


def check_training(model: ClipRetrievalModule, case: Case) -> dict[str, Tensor]:
    """Loss and gradients; returns the parts of the loss.

    In float64, so that only the rounding of the golden values remains: the gradient of the logit scale
    is a sum that nearly cancels.
    """
    text, video = batches(case)
    video = video.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    model.double().train()
    model.zero_grad()
    losses = model.loss(model.encode_text(text), model.encode_video(video))
    losses["loss"].backward()
    assert_close(losses["loss"], case.tensors["out/loss"], name="loss")
    parameters = to_upstream(dict(model.named_parameters()))
    assert_gradients(parameters, case.group("grad"))
    without = {name for name, p in parameters.items() if p.grad is None}
    assert without == set(case.meta["params_without_grad"])
    frozen = {name for name, p in parameters.items() if not p.requires_grad}
    assert frozen == without, "parameters that the variant never uses are frozen, all others trained"
    return losses


def expect(case: Case, values: Mapping[str, Tensor]) -> None:
    """Compare every output of the case; one that is not computed here fails."""
    outputs = case.group("out")
    unchecked = outputs.keys() - values.keys()
    assert not unchecked, f"outputs that nothing checks: {sorted(unchecked)}"
    for name, expected in outputs.items():
        assert_close(values[name].reshape(expected.shape), expected, name=f"out/{name}")


def check_clip4clip(case: Case) -> None:
    config = case.meta["config"]
    model = Clip4Clip(head=clip4clip_head(config), linear_patch=config["linear_patch"], **common_options(case))
    load_case(model, case)
    model.eval()
    text, video = batches(case)
    with torch.no_grad():
        values = {
            "text_output": model.tower.encode_text(text.tokens_BL),
            "visual_output": model.encode_frames(video)[0],
            "sim": model.similarity(model.encode_text(text), model.encode_video(video)),
        }
    losses = check_training(model, case)
    expect(case, {**values, "loss": losses["loss"]})


def check_clip2video(case: Case) -> None:
    config = case.meta["config"]
    model = Clip2Video(**clip2video_options(config), **common_options(case))
    load_case(model, case)
    model.eval()
    text, video = batches(case)
    mask_before = text.mask_BL.clone()
    with torch.no_grad():
        values = _clip2video_values(model, text, video)
    assert torch.equal(text.mask_BL, mask_before), "the alignment block changed a mask in place"
    losses = check_training(model, case)
    values["loss"] = losses["loss"]
    if isinstance(model.head, TabHead):
        values |= {"loss_global": losses["global"], "loss_tab": losses["aligned"]}
    expect(case, values)


def _clip2video_values(model: Clip2Video, text: TextBatch, video: VideoBatch) -> dict[str, Tensor]:
    tokens, scale = model.video_tokens(video), model.tower.logit_scale
    frames_BTD, mask_BT = tokens.frames_BTD, tokens.mask_BT
    embeddings = model.encode_text(text), model.encode_video(video)
    text_eot, text_tokens = model.tower.encode_text_tokens(text.tokens_BL)
    total = model.similarity(*embeddings)
    values = {
        "visual_output": frames_BTD,
        "text_eot": text_eot,
        "text_tokens": text_tokens,
        "sim_global": total,
        "sim_total": total,
    }
    if model.difference_block:
        z = model.difference(frames_BTD, mask_BT, model.position)
        values |= {
            "tdb_tokens": z.tokens_BSD,
            "tdb_position": z.position_SD.expand_as(z.tokens_BSD),
            "tdb_type": z.type_SD.expand_as(z.tokens_BSD),
            "tdb_mask": z.mask_BS,
        }
    if isinstance(model.head, TabHead):
        visual_tokens, visual_mask = tokens_to_align(tokens)
        values |= {
            "sim_global": model.head.branch("global", *embeddings, scale),
            "tab_visual_tokens": visual_tokens,
            "tab_visual_mask": visual_mask,
            "tab_visual_embed": embeddings[1].parts["aligned"],
            "tab_text_embed": embeddings[0].parts["aligned"],
            "sim_tab": model.head.branch("aligned", *embeddings, scale),
        }
    return values


def check_init_from_clip(case: Case) -> None:
    """A fresh model starts from exactly the CLIP tensors that the case lists."""
    copied, fresh = case.meta["copied"], {row["key"]: row["shape"] for row in case.meta["not_copied"]}
    (centers, width), (vocabulary, _) = fresh["weight_center"], fresh["clip.token_embedding.weight"]
    layers = {name.split(".resblocks.")[1].split(".")[0] for name in copied if name.startswith("transformerClip.")}
    norms = [name for name in copied if name.endswith("ln_1.bias")]
    text_layers, visual_layers = (
        sum(name.startswith(f"clip.{tower}transformer.") for name in norms) for tower in ("", "visual.")
    )
    dims = {"embed": width, "res": 16, "patch": 8, "vl": visual_layers, "vw": width, "ctx": 20}
    dims |= {"vocab": vocabulary, "tw": width, "tl": text_layers}
    flags = {"center_weight": 0.5, **case.meta["config"], "centerK": centers, "cross_num_hidden_layers": len(layers)}
    model = Clip2Video(arch=register_arch(dims, width // 2), **clip2video_options(flags))
    state = to_upstream(model.state_dict())
    assert state.keys() == copied.keys() | fresh.keys()
    for name, source in copied.items():
        key, _, rows = f"clip.{source}".partition("[:")
        value = state[key][: int(rows.rstrip("]"))] if rows else state[key]
        assert torch.equal(state[name], value), f"{name} does not start as {source}"
    for name, shape in fresh.items():
        assert list(state[name].shape) == shape, name


def check_allgather(case: Case) -> None:
    """Every process of CLIP4Clip's AllGather: matrix, loss and own-slice gradients."""
    results = run_processes(gathered_loss, case.meta["world"], case.tensors, case.meta["local_batch"])
    assert not dist.is_initialized()
    for rank, got in enumerate(results):
        assert_close(got["sim"], case.tensors[f"out/rank{rank}_sim"], name=f"rank {rank} similarity")
        assert_close(got["loss"], case.tensors[f"out/rank{rank}_loss"], name=f"rank {rank} loss")
        for name in ("text", "visual", "logit_scale"):
            assert_close(got[name], case.tensors[f"grad/rank{rank}_{name}"], 1e-4, f"rank {rank} gradient of {name}")


CHECKERS = {
    "clip2video": {
        "c4c_meanp*": check_clip4clip,
        "c4c_seq*": check_clip4clip,
        "c4c_tight*": check_clip4clip,
        "c4c_allgather": check_allgather,
        "c2v_init_from_clip": check_init_from_clip,
        "c2v_[!i]*": check_clip2video,
    }
}
