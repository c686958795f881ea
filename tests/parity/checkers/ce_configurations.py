"""Collaborative Experts: models that the configuration assembles from published hyper-parameters, counted and named."""

from __future__ import annotations

from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.config import compose
from src.config.validate import CONF, Context, check
from src.convert.collaborative_experts import to_upstream
from src.models.base import RetrievalModule
from src.tasks.build import empty_model
from tests.parity.cases import Case

# What the published names do not say: S3D's vectors are its logits, and two aggregations stand side by side.
SUFFIXES = {("s3dg.s3dg.0", 512): "-logits", ("imagenet.resnext101_32x48d.0", 4096): ".avg-std"}
EXPERIMENTS = {
    "msrvtt/train-full-ce": "experiment=ce_msrvtt",
    "msrvtt/train-full-moee": "experiment=moee_msrvtt",
    "msrvtt/train-full-ce-ablation-dims (CE-CG)": "experiment=ce_msrvtt model.gating=none",
    "msrvtt/train-gpt2-xl-finetuned-mte-adam (CE+/TeachText CE+)": "experiment=[ce_msrvtt,ce_plus]",
    "msrvtt/train-full-concat-ablation": "experiment=ce_msrvtt model=concat model.vlad_clusters.text=39",
    "queryd/train-full-ce": "experiment=ce_queryd",
}


def check_counts(case: Case) -> None:
    """Every published number of parameters, from the hyper-parameters alone."""
    wrong = {}
    for name, entry in case.meta["counts"].items():
        count = _count(assembled(entry["hyper"]))
        if count != entry["trainable_params"]:
            wrong[name] = (count, entry["trainable_params"])
    assert not wrong, f"found and published numbers of parameters: {wrong}"
    assert len(case.meta["counts"]) == 129


def check_state_dicts(case: Case) -> None:
    """Names, shapes and order of the published weights, of the experiments that the documentation names."""
    assert set(case.meta) == set(EXPERIMENTS)
    for name, entry in case.meta.items():
        model = empty_model(OmegaConf.create(_values(tuple(EXPERIMENTS[name].split(" ")))))
        found = {key: list(tensor.shape) for key, tensor in to_upstream(model.state_dict()).items()}
        assert list(found.items()) == list(entry["state_dict"].items()), name
        assert _count(model) == entry["trainable"], name


def assembled(hyper: dict[str, Any]) -> RetrievalModule:
    """The model of the configuration files, with the numbers of `hyper`, on no device."""
    args, experts = hyper["arch_args"], hyper["experts"]
    options = [_expert_option(name, dim) for name, dim in hyper["raw_input_dims"].items()]
    simple, concat = hyper["arch"] == "MNNet", bool(args.get("concat_experts"))
    model = "mnnet" if simple else "concat" if concat else "ce"
    text = _text_option(experts["text_feat"], hyper["text_dim"])
    structure = (f"model={model}", f"experts=[{','.join(options)}]", f"text={text}", "selection=last")
    cfg: DictConfig = OmegaConf.create(_values(structure))
    if not simple:
        clusters = {name: args["vlad_clusters"][name] for name in ("text", "ocr", "audio", "speech")}
        numbers: dict[str, Any] = {"vlad_clusters": clusters, "text_ghost_clusters": args["ghost_clusters"]["text"]}
        if not concat:
            numbers |= {
                "gating": args["use_ce"] or "none",
                "project": bool(args["use_ce"] or args["mimic_ce_dims"]),
                "shared_dim": experts["ce_shared_dim"],
                "include_self": bool(args["include_self"]),
                "g_layers": args["num_g_layers"],
                "h_layers": args["num_h_layers"],
                "mish": bool(args["use_mish"]),
                "reason_norm": bool(args["use_bn_reason"]),
                "mixture_weights": not args.get("freeze_weights", False),
            }
        for key, value in numbers.items():
            OmegaConf.update(cfg, f"model.{key}", value)
    return empty_model(OmegaConf.create(check(cfg, Context({}))))


def _count(model: RetrievalModule) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@cache
def _values(words: tuple[str, ...]) -> dict[str, Any]:
    (values,) = compose.preflight(compose.parse(list(words)))
    return values


@cache
def _single_experts() -> dict[tuple[str, int], str]:
    """(published name, dimension) -> option of the group experts."""
    found = {}
    for path in sorted((CONF / "experts").glob("*.yaml")):
        node = OmegaConf.load(path)
        if "defaults" not in node and len(node) == 1:
            ((name, entry),) = OmegaConf.to_container(node).items()
            found.setdefault((entry.get("store") or name, entry["dim"]), path.stem)
    return found


def _expert_option(name: str, dim: int) -> str:
    return _single_experts()[name + SUFFIXES.get((name, dim), ""), dim]


@cache
def _text_option(name: str, dim: int) -> str:
    for path in sorted((CONF / "text").glob("*.yaml")):
        node = OmegaConf.load(path)
        if node.get("store") == f"text.{name}" and node.dim == dim:
            return path.stem
    raise AssertionError(f"no text feature {name} of {dim} dimensions")


CHECKERS = {"collaborative_experts": {"param_counts": check_counts, "state_dicts": check_state_dicts}}
