"""InternVideo: both towers, the decoder step by step, losses and gradients, freezing, interpolation with CLIP."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from src.batch import TextBatch, VideoBatch
from src.convert.internvideo import from_upstream, to_upstream
from src.models.evl_tower import EvlTower
from src.models.evl_visual import FrameLayout
from src.models.freeze import freeze_clip
from src.models.fusion_tower import FusionTower
from src.models.heads.base import HeadFactory
from src.models.heads.mean import MeanHead
from src.models.heads.wti import WeightedTokenInteractionHead
from src.models.internvideo import InternVideo
from src.models.weights import load_strictly
from tests.parity.cases import Case, assert_close, assert_gradients


def register_arch(sizes: Mapping[str, int]) -> str:
    """Make a CLIP of these sizes known to open_clip and return its name."""
    config = {
        "embed_dim": sizes["embed"],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": sizes["res"],
            "layers": sizes["layers"],
            "width": sizes["vwidth"],
            "head_width": sizes["vwidth"] // sizes["vheads"],
            "patch_size": sizes["patch"],
        },
        "text_cfg": {
            "context_length": sizes["ctx"],
            "vocab_size": sizes["vocab"],
            "width": sizes["twidth"],
            "heads": sizes["theads"],
            "layers": sizes["tlayers"],
        },
    }
    name = "golden-evl-" + "-".join(str(sizes[key]) for key in sorted(sizes) if isinstance(sizes[key], int))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.json"
        path.write_text(json.dumps(config))
        open_clip.add_model_config(path)
    return name


def arch_of(case: Case) -> str:
    sizes = case.meta["cfg"]
    return register_arch({"layers": sizes["vlayers"], **{k: v for k, v in sizes.items() if isinstance(v, int)}})


def head_of(options: Mapping[str, Any]) -> HeadFactory:
    """Upstream's flags as one of our heads."""
    if options["interaction"] == "no":
        assert options["sim_header"] == "meanP"
        return MeanHead
    assert options["interaction"] == "wti"
    # Upstream leaves the scale out in evaluation.
    return partial(WeightedTokenInteractionHead, arch=options["wti_arch"], cdcr=options["cdcr"], scale_evaluation=False)


def batches(case: Case) -> tuple[TextBatch, VideoBatch]:
    tensors = case.group("in")
    count = len(tensors["input_ids"])
    ids = torch.arange(count)
    mask_BT = tensors["video_mask"].view(count, -1).bool()
    frames = tensors["video"].view(*mask_BT.shape, *tensors["video"].shape[-3:])
    mask_BL = tensors["attention_mask"].view(count, -1).bool()
    text = TextBatch(tensors["input_ids"].view(count, -1), mask_BL, ids=ids, video_ids=ids)
    return text, VideoBatch(ids=ids, frames_BTCHW=frames, mask_BT=mask_BT)


def watch(tower: EvlTower) -> dict[str, Tensor]:
    """The steps of the next forward pass under the names of the golden file; filled as it runs."""
    steps: dict[str, Tensor] = {}
    visual = tower.clip.visual

    def keep(name: str) -> Any:
        return lambda module, args, output: steps.__setitem__(name, output)

    visual.ln_pre.register_forward_hook(keep("embed_ln_pre"))
    for index, (place, step) in enumerate(zip(visual.transformer.dpe, visual.transformer.dec, strict=True)):
        place.register_forward_hook(keep(f"dpe_{index}"))
        step.register_forward_hook(keep(f"global_token_{index}"))
    visual.register_forward_hook(lambda module, args, output: steps.update(global_fused=output[0], frame_cls=output[1]))
    return steps


DECODER_STEPS = ("dpe_", "global_token_", "global_fused")


def expect(case: Case, values: Mapping[str, Tensor]) -> None:
    """Compare every output of the case; one that is not computed here fails.

    Cases whose head leaves the decoder out do not hold its parameters, though they hold what it computed.
    """
    outputs = case.group("out")
    if "clip.visual.transformer.balance" in case.meta.get("unused_params", ()):
        outputs = {name: value for name, value in outputs.items() if not name.startswith(DECODER_STEPS)}
    unchecked = outputs.keys() - values.keys()
    assert not unchecked, f"outputs that nothing checks: {sorted(unchecked)}"
    for name, expected in outputs.items():
        assert_close(values[name].reshape(expected.shape), expected, name=f"out/{name}")


def build(case: Case) -> InternVideo:
    sizes, options = case.meta["cfg"], case.meta["task_config"]
    model = InternVideo(
        arch=arch_of(case),
        decoder_layers=len(sizes["return_list"]),
        padding="upstream",
        head=head_of(options),
        text_tokens="projected" if options["interaction"] == "no" else "upstream",
        num_frames=options["max_frames"],
        max_words=options["max_words"],
    )
    model.tower.clip.visual.transformer.readers = tuple(sizes["return_list"])
    state = case.group("param")
    converted = from_upstream(state)
    unread = {name: value for name, value in model.state_dict().items() if name not in converted}
    assert {f"clip.{name.removeprefix('tower.clip.')}" for name in unread} <= set(case.meta["unused_params"])
    load_strictly(model, converted | unread, case.id)
    exported = to_upstream(model.state_dict())
    for name, value in state.items():
        assert torch.equal(exported[name], value), name
    return model


def check_training(model: InternVideo, case: Case) -> Tensor:
    """Gradients in float64, so that only the rounding of the golden values remains; returns the loss."""
    text, video = batches(case)
    video = video.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    model.double().train()
    losses = model.loss(model.encode_text(text), model.encode_video(video))
    losses["loss"].backward()
    parameters = to_upstream(dict(model.named_parameters()))
    assert_gradients(parameters, case.group("grad"))
    without = {name for name, p in parameters.items() if p.grad is None}
    assert without == set(case.meta["unused_params"])
    frozen = {name for name, p in parameters.items() if not p.requires_grad}
    assert frozen == without, "parameters that the variant never reads are frozen, all others trained"
    return losses["loss"]


def check_model(case: Case) -> None:
    model = build(case).eval()
    text, video = batches(case)
    steps = watch(model.tower)
    with torch.no_grad():
        # All steps, also where the head leaves the decoder out.
        features = model.tower.encode_video(video.frames_BTCHW, video.mask_BT)
        values = dict(steps) | {"sim": model.similarity(model.encode_text(text), model.encode_video(video))}
        if model.head.reads_frames:
            values["sequence_output"] = model.tower.encode_text_tokens(text.tokens_BL)[1]
            values["visual_output"] = features.frames_BTD
        else:
            values["sequence_output"] = model.tower.encode_text(text.tokens_BL)
            values["visual_output"] = features.pooled_BD
    for name in [name for name in values if name.startswith("global_token")]:
        values[name] = values[name].transpose(0, 1)  # upstream keeps the token first
    expect(case, values | {"loss": check_training(model, case)})


def check_fusion_tower(case: Case) -> None:
    sizes = case.meta["cfg"]
    tower = FusionTower(arch_of(case), decoder_layers=len(sizes["return_list"]), padding="upstream")
    visual = tower.clip.visual.eval()  # batch statistics are those of the file
    visual.transformer.readers = tuple(sizes["return_list"])
    param = case.group("param")
    counters = {name: value for name, value in visual.state_dict().items() if name.endswith("num_batches_tracked")}
    load_strictly(visual, param | counters, case.id)
    tokens: list[Tensor] = []
    visual.transformer.resblocks[-1].register_forward_hook(lambda module, args, output: tokens.append(output))
    frames_BTCHW = case.tensors["in/video"].transpose(1, 2)
    layout = FrameLayout.of(torch.ones(len(frames_BTCHW), sizes["T_inside"]).bool())
    video_BM, _ = visual(frames_BTCHW, layout, decode=True)
    loss = video_BM.square().mean()
    loss.backward()
    tokens_PBTM = layout.spread(tokens[0]).permute(2, 0, 1, 3)
    expect(case, {"feats": video_BM, "tokens": tokens_PBTM, "loss": loss})
    assert_gradients(dict(visual.named_parameters()), case.group("grad"))


def check_mergeclip(case: Case) -> None:
    """Two weight files through the constructor; the prefix is that of the pre-trained file."""
    with tempfile.TemporaryDirectory() as folder:
        internvideo, clip = Path(folder) / "internvideo.ckpt", Path(folder) / "clip.safetensors"
        state = {f"clip.{name}": value for name, value in case.group("in/internvideo").items()}
        torch.save({"state_dict": state}, internvideo)
        save_file(case.group("in/clip"), clip)
        tower = EvlTower(
            arch_of(case),
            str(internvideo),
            decoder_layers=len(case.meta["cfg"]["return_list"]),
            merge_clip=str(clip),
            merge_weight=case.meta["mergeweight"],
        )
    merged = tower.clip.state_dict()
    assert merged.keys() == case.group("out").keys()
    expect(case, merged)
    before = case.group("in/internvideo")
    for name in case.meta["unchanged_keys"]:
        assert torch.equal(merged[name], before[name]), name


def check_state_dict_and_freeze(case: Case) -> None:
    with torch.device("meta"):
        shapes = {name: list(value.shape) for name, value in EvlTower("ViT-L-14-quickgelu").clip.state_dict().items()}
    assert shapes == case.meta["keys"]
    assert len(shapes) == case.meta["n_keys"]
    for setting, expected in case.meta["frozen"].items():
        options = dict(option.split("=") for option in setting.split(","))
        # The released code freezes nothing where its flag for 3-d patches is given, which this tower ignores.
        layers = int(options["freeze_layer_num"]) if options.get("linear_patch", "2d") == "2d" else -1
        with torch.device("meta"):
            tower = EvlTower("ViT-L-14-quickgelu")
        freeze_clip(tower, layers, "upstream")
        frozen = {name for name, parameter in tower.clip.named_parameters() if not parameter.requires_grad}
        # Nothing reads it in retrieval, so it never gets a gradient.
        assert frozen == {*expected, "text_mask_embedding"}, setting


CHECKERS = {
    "internvideo": {
        "evl_meanp": check_model,
        "evl_wti_*": check_model,
        "evl_fusion_tower": check_fusion_tower,
        "mergeclip": check_mergeclip,
        "state_dict_and_freeze": check_state_dict_and_freeze,
    }
}
