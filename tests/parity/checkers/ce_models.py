"""Collaborative Experts and MoEE: units, all wirings, losses, gradients, running statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from src.batch import TextBatch, VideoBatch, VideoEmbedding
from src.convert.collaborative_experts import from_upstream, to_upstream
from src.models.base import RetrievalModule
from src.models.collaborative_experts import CollaborativeExperts, mean_similarity, side_by_side
from src.models.concat_experts import ConcatExperts
from src.models.gating import (
    ContextGating,
    ContextGatingReasoning,
    GatedEmbedding,
    GatedReasoning,
    GatedUnit,
    OwnReasoning,
    ReduceDim,
)
from src.models.howto100m import HowTo100M
from src.models.netvlad import NetVLAD
from src.models.weights import load_strictly
from tests.parity.cases import Case, assert_close, assert_gradients

CAPTIONS = "captions"


def make_model(case: Case, **options: Any) -> RetrievalModule:
    """The model of a case's configuration; what the case reads decides about steps and dims."""
    hyper, arch = case.meta["hyper"], case.meta["hyper"]["arch"]
    loss = case.meta["loss"] or {}
    inputs, text = case.group("in/experts"), case.tensors["in/text"]
    vlad = {name: one["vlad"] for name, one in hyper["experts"].items()}
    steps = {name: x.shape[1] for name, x in inputs.items() if vlad[name]}
    shared: dict[str, Any] = {
        "experts": {name: {"dim": x.shape[-1], "temporal": vlad[name]} for name, x in inputs.items()},
        "text": {"name": CAPTIONS, "dim": text.shape[-1], "temporal": True},
        "vlad_clusters": hyper["vlad_clusters"],
        "max_tokens": steps | {"text": text.shape[2]},
        "text_ghost_clusters": hyper["ghost_clusters"]["text"] if hyper["vlad_clusters"]["text"] else 0,
    } | {name: loss[name] for name in ("margin", "fix_norm") if name in loss}
    if arch["concat_experts"] or arch["concat_mix_experts"]:
        return ConcatExperts(**shared, mix=arch["concat_mix_experts"], upstream_bug=True)
    own = {
        "gating": arch["use_ce"] or "none",
        "project": bool(arch["use_ce"] or arch["mimic_ce_dims"]),
        "shared_dim": hyper["ce_shared_dim"],
        "include_self": bool(arch["include_self"]),
        "g_layers": arch["num_g_layers"],
        "h_layers": arch["num_h_layers"],
        "mish": bool(arch["use_mish"]),
        "reason_norm": bool(arch["use_bn_reason"]),
        "mixture_weights": not arch["freeze_weights"],
        "keep_missing": arch["keep_missing_modalities"],
        "test_caption_mode": arch["test_caption_mode"],
    }
    return CollaborativeExperts(**shared, **own, **options)


def load_case(model: nn.Module, case: Case) -> None:
    """Fill the model through the converter, and check the way back, order included."""
    state = case.group("param")
    load_strictly(model, from_upstream(state), case.id)
    exported = to_upstream(model.state_dict())
    assert list(exported) == [name.removeprefix("param/") for name in case.meta["tensors"] if name.startswith("param/")]
    for name, value in state.items():
        assert torch.equal(exported[name], value), name


def batches(case: Case) -> tuple[TextBatch, VideoBatch]:
    """Captions of an item follow each other; a missing expert is NaN in the case and zeros for the model."""
    text_TKND = case.tensors["in/text"]
    items, captions = text_TKND.shape[:2]
    ids_T = torch.arange(items * captions)
    x_TND = text_TKND.flatten(0, 1)
    text = TextBatch(
        tokens_BL=torch.zeros(len(ids_T), 0, dtype=torch.int64),
        mask_BL=torch.zeros(len(ids_T), 0, dtype=torch.bool),
        ids=ids_T,
        video_ids=ids_T // captions,
        features={CAPTIONS: x_TND},
        feature_masks={CAPTIONS: torch.ones(x_TND.shape[:2], dtype=torch.bool)},
    )
    features, present = case.group("in/experts"), case.group("in/ind")
    for name, x in features.items():
        lacks_V = present[name] == 0
        assert x.flatten(1).isnan().all(1).equal(lacks_V)
        assert not x[~lacks_V].isnan().any()
    columns = sorted(features, reverse=True)  # the model has to find its own order
    video = VideoBatch(
        torch.arange(len(x)),
        features={name: features[name].nan_to_num() for name in columns},
        present_BE=torch.stack([present[name] > 0 for name in columns], 1),
    )
    return text, video


def recorded(model: RetrievalModule, text: TextBatch, video: VideoBatch) -> tuple[Any, Any, dict[str, Tensor]]:
    """Embeddings of both sides, and what the case may hold of the way there, under the case's names."""
    names = [spec.name for spec in model.pooling.specs]
    found: dict[str, Tensor] = {}

    def keep(key: str) -> Any:
        return lambda module, args, result: found.update({key: result})

    def keep_mask(key: str) -> Any:
        return lambda module, args: found.update({key: args[1]})

    hooks = [model.pooling[name].register_forward_hook(keep(f"pooled/{name}")) for name in model.pooling]
    if model.text_pooling.vlad is not None:
        hooks.append(model.text_pooling.register_forward_hook(keep("text_pooled")))
    if isinstance(model, CollaborativeExperts):
        sides = {"reduced": model.reduce or (), "vid_embds": model.video_gates, "text_embds": model.text_gates}
        sides |= {"gated": model.video_gates} if model.gating is not None else {}
        for kind, modules in sides.items():
            hooks += [
                m.register_forward_hook(keep(f"{kind}/{n}")) for n, m in zip(names, modules, strict=bool(modules))
            ]
        if model.gating is not None:
            gates = zip(names, model.video_gates, strict=True)
            hooks += [gate.register_forward_pre_hook(keep_mask(f"mask/{name}")) for name, gate in gates]
    embeddings = model.encode_text(text), model.encode_video(video)
    if not isinstance(model, CollaborativeExperts):
        found |= {f"vid_embds/{name}": x for name, x in zip(names, model.pooling(video)[0], strict=True)}
        text_TD = embeddings[0].parts["experts"]  # listed under the first expert there
        found[f"text_embds/{names[0]}"] = text_TD if model.text_gates else text_TD[:, : model.text_pooling.output_dim]
    for hook in hooks:
        hook.remove()
    return *embeddings, found


def check_model(case: Case) -> None:
    """The published arithmetic, and its regrouping where there is one."""
    pairs = case.meta["hyper"]["arch"]["use_ce"] in ("pairwise", "triplet")
    for options in [{"gating_order": order} for order in ("sequential", "regrouped")] if pairs else [{}]:
        check_one_model(case, options)


def check_one_model(case: Case, options: dict[str, Any]) -> None:
    """Everything that the case holds: intermediate values, similarities, loss, gradients, running statistics."""
    model = make_model(case, **options).train(case.meta["mode"].startswith("train"))
    load_case(model, case)
    items, captions = case.tensors["in/text"].shape[:2]
    text, video, values = recorded(model, *batches(case))
    merged = case.meta["hyper"]["arch"]["test_caption_mode"] == "avg"
    s_TV = model.scorer(text, video)(text, video)
    values["sims"] = s_TV[::captions] if merged else s_TV
    # A concatenation has the weights' layer, but does not use it.
    own = text.parts.get("weights")
    weights_TM = model.mixture(values["text_pooled"]).softmax(1) if own is None else own
    values["moe_weights"] = weights_TM.unflatten(0, (items, captions))
    for name in [name for name in values if name.startswith("text_embds/")]:
        values[name] = values[name].unflatten(0, (items, captions))
    if case.meta["loss"]:
        first = text[::captions]
        values["loss"] = model.max_margin(lambda *_: values["sims"], first, video)
        if not merged:
            assert_close(model.loss(text, video)["loss"], values["loss"], name="loss of the model")
        values["loss"].backward()
        named = {name.removeprefix("param/"): None for name in case.tensors if name.startswith("param/")}
        parameters = to_upstream(dict(model.named_parameters()))
        assert parameters.keys() <= named.keys()
        assert_gradients(parameters, case.group("grad"))
    wanted = case.group("out")
    unchecked = wanted.keys() - values.keys()
    assert not unchecked, f"outputs that nothing checks: {sorted(unchecked)}"
    for name, expected in wanted.items():
        assert_close(values[name], expected, name=f"out/{name}")
    after = to_upstream(model.state_dict())
    for name, expected in case.group("after").items():
        assert_close(after[name], expected, name=f"after/{name}")


def check_netvlad(case: Case) -> None:
    hyper = case.meta["hyper"]
    module = NetVLAD(
        hyper["feature_size"], hyper["cluster_size"], hyper["ghost_clusters"], hyper["add_batch_norm"]
    ).train(case.meta["mode"] == "train")
    load_strictly(module, case.group("param"), case.id)
    x = nn.Parameter(case.tensors["in/x"])
    vlad = module(x)
    (vlad * case.tensors["in/cotangent"]).sum().backward()
    assert_close(vlad, case.tensors["out/vlad"], name="vlad")
    assert_gradients(dict(module.named_parameters()) | {"x": x}, case.group("grad"))
    for name, expected in case.group("out").items():
        if name.endswith("_after"):
            assert_close(module.state_dict()[name.removesuffix("_after")], expected, name=name)


class Twice(nn.Module):
    """Two context gatings after each other, as for boxes of detected objects."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cg1, self.cg2 = ContextGating(dim), ContextGating(dim)

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.cg2(self.cg1(x_BD))


def check_units(case: Case) -> None:
    hyper, inputs, outputs = case.meta["hyper"], case.group("in"), case.group("out")
    d_in, d_out = hyper["d_in"], hyper["d_out"]
    units = {
        "geu": GatedEmbedding(d_in, d_out),
        "geu_nobn": GatedEmbedding(d_in, d_out, use_norm=False),
        "mimic": GatedUnit(d_out),
        "reduce": ReduceDim(d_in, d_out),
        "cg": ContextGating(d_out),
        "cgr": ContextGatingReasoning(d_out),
        "geur": GatedReasoning(d_out),
        "greason": OwnReasoning(d_out, nn.Mish()),
        "spatial": Twice(d_out),
    }
    assert units.keys() == case.meta["inputs"].keys()
    checked = {"mish"}
    assert_close(nn.Mish()(inputs["x_out"]), outputs["mish"], name="mish")
    for name, unit in units.items():
        state = {
            key.replace("g_reason_1_specific", "first").replace("g_reason_2_specific", "second"): value
            for key, value in case.group(f"param/{name}").items()
        }
        load_strictly(unit, state, case.id)
        arguments = [inputs[key] for key in case.meta["inputs"][name]]
        for mode in ("eval", "train"):
            assert_close(unit.train(mode == "train")(*arguments), outputs[f"{name}/{mode}"], name=f"{name}/{mode}")
            checked.add(f"{name}/{mode}")
    assert checked == outputs.keys()


def check_weighted_similarity(case: Case) -> None:
    text, video = case.group("in/text"), case.group("in/video")
    weights_TKM = case.tensors["in/weights"]
    captions, weights_TM = weights_TKM.shape[1], weights_TKM.flatten(0, 1)
    present_VM = torch.stack([case.tensors[f"in/ind/{name}"] for name in video], 1)
    text_TD = side_by_side([e.flatten(0, 1) for e in text.values()], weights_TM)
    video_VD = side_by_side(list(video.values()), present_VM)
    s_TV = mean_similarity(text_TD, weights_TM, video_VD, present_VM)
    assert_close(s_TV, case.tensors["out/sims_indep"], name="indep")
    assert_close(s_TV.unflatten(0, (-1, captions)).mean(1), case.tensors["out/sims_avg"], name="avg")


def check_mee(case: Case) -> None:
    """The original block reads pooled experts in an order of its own; ours is alphabetical."""
    hyper, video = case.meta["hyper"], case.group("in/video")
    order = list(hyper["video_modality_dim"])
    pooled_dims = hyper["video_modality_dim"]
    model = CollaborativeExperts(
        experts={
            name: {"dim": own, "temporal": pooled != own, "max_steps": 1} for name, (pooled, own) in pooled_dims.items()
        },
        vlad_clusters={name: pooled // own for name, (pooled, own) in pooled_dims.items()},
        max_tokens={},
        text={"name": CAPTIONS, "dim": hyper["text_dim"], "temporal": False},
        gating="none",
        project=False,
    ).eval()
    names = [spec.name for spec in model.pooling.specs]
    places = [order.index(name) for name in names]
    state = {f"ce.{name}": value for name, value in case.group("param").items()}
    ours = reordered(from_upstream(state), places) | {
        name: value for name, value in model.state_dict().items() if name.startswith("pooling.")
    }
    load_strictly(model, ours, case.id)
    ids = torch.arange(len(case.tensors["in/text"]))
    empty = torch.zeros(len(ids), 0, dtype=torch.int64)
    text = model.encode_text(TextBatch(empty, empty.bool(), ids, ids, features={CAPTIONS: case.tensors["in/text"]}))
    present_VM = torch.stack([case.tensors[f"in/ind/{name}"].float() for name in names], 1)
    experts = model.gate_experts([video[name] for name in names], present_VM)
    embedding = VideoEmbedding(ids, {"experts": side_by_side(experts, present_VM), "present": present_VM})
    s_TV = model.similarity(text, embedding)
    assert_close(s_TV, case.tensors["out/conf_matrix"], name="conf_matrix")
    assert_close(s_TV.diagonal(), case.tensors["out/pairwise"], name="pairwise")
    scores_TM = torch.empty_like(present_VM)
    scores_TM[:, places] = text.parts["weights"]
    assert_close(scores_TM, case.tensors["out/moe_scores"], name="moe_scores")


def reordered(state: Mapping[str, Tensor], places: list[int]) -> dict[str, Tensor]:
    """Tensors of a model whose expert m is their expert places[m]."""
    moved = {}
    for name, value in state.items():
        group, number, *rest = name.split(".")
        if group == "mixture":
            moved[name] = value[places]
        else:
            moved[".".join([group, str(places.index(int(number))), *rest])] = value
    return moved


def check_mnnet(case: Case) -> None:
    text_TKND, (name, video_VD) = case.tensors["in/text"], *case.group("in/experts").items()
    dim = case.meta["hyper"]["dim"]
    model = HowTo100M(
        experts={name: {"dim": dim, "temporal": False}}, text={"name": CAPTIONS, "dim": dim, "temporal": False}
    )
    with torch.no_grad():
        model.dummy.copy_(case.tensors["param/dummy_param"])
    x_TD = text_TKND.flatten(0, 2)
    ids = torch.arange(len(x_TD))
    empty = torch.zeros(len(ids), 0, dtype=torch.int64)
    text = model.encode_text(TextBatch(empty, empty.bool(), ids, ids, features={CAPTIONS: x_TD}))
    video = model.encode_video(VideoBatch(torch.arange(len(video_VD)), features={name: video_VD}))
    assert_close(model.similarity(text, video), case.tensors["out/sims"], name="sims")


CHECKERS = {
    "collaborative_experts": {
        "ce_*": check_model,
        "moee_*": check_model,
        "concat_*": check_model,
        "netvlad": check_netvlad,
        "ghostvlad*": check_netvlad,
        "gating_units": check_units,
        "weighted_similarity": check_weighted_similarity,
        "mee_original": check_mee,
        "mnnet": check_mnnet,
    }
}
