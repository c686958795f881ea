"""Configurations of Collaborative Experts (`config.json`) in our words.

Source: albanie/collaborative-experts configs/, parse_config.py, utils/util.py @ 7eb3b9d.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.errors import UserError

Config = Mapping[str, Any]
# (dataset_name, split_name) -> our experiment; splits of the same line share train, val and test lists.
EXPERIMENTS = {
    **{("MSRVTT", name): "ce_msrvtt" for name in ("full-val", "full-test")},
    ("MSRVTT", "jsfusion"): "ce_msrvtt_1ka",
    ("MSRVTT", "miech"): "ce_msrvtt_1kb",
    **{("MSVD", name): "ce_msvd" for name in ("dev", "official")},
    **{("DiDeMo", name): "ce_didemo" for name in ("val", "test")},
    **{("LSMDC", name): "ce_lsmdc" for name in ("full-val", "full-test")},
    ("ActivityNet", "val1"): "ce_activitynet",
    **{("QuerYD", name): "ce_queryd" for name in ("val", "test")},
    **{("QuerYDSegments", name): "ce_querydsegments" for name in ("val", "test")},
    ("YouCook2", "val"): "ce_youcook2",
}
OPTIMIZERS = {"Ranger": "ranger", "RAdam": "radam", "Adam": "adam"}
SCHEDULERS = {
    "StepLR": ("step", {"step_size": "step_size", "gamma": "gamma"}),
    "CosineAnnealingWithRestarts": ("cosine_restarts", {"T_max": "first", "T_mult": "factor", "eta_min": "eta_min"}),
}
TEXT_DIMS = {
    **{"electra": 256, "t5-small": 512, "t5-large": 1024, "t5-3b": 1024, "t5-11b": 1024, "ctrl": 1280},
    **{"albert-base-v2": 768, "albert-large-v2": 1024, "albert-xlarge-v2": 2048, "roberta-large": 1024},
    **{"xlnet-base-cased": 768, "xlnet-large-cased": 1024, "transfo-xl-wt103": 1024, "gpt2-medium": 1024},
    **{"gpt2-large": 1280, "hglmm_6kd": 6000, "mt_grovle": 300},
}
"""Of encoders of captions that have no file in conf/text."""
_POOLED_DIMS = {"audio": 128, "speech": 300, "ocr": 300}
# Options that have to have this value, since ours has nothing of the kind.
_ONLY = {
    "arch.args.l2renorm": (False, None),
    "data_loader.args.trn_cat": (0, None),
    "data_loader.args.spatial_feats": (False, None),
    "data_loader.args.text_dropout": (0, None),
    "data_loader.args.use_zeros_for_missing": (False, None),
    "data_loader.args.task": ("retrieval", None),
    "manual_linear_init": (False, None),
}


@dataclass(frozen=True)
class Expert:
    """A modality of a configuration.

    Attributes:
        store: its name, and that of its store here.
        dim: of one vector.
        pooled: whether it is a sequence that NetVLAD pools.
    """

    store: str
    dim: int
    pooled: bool


@dataclass(frozen=True)
class Settings:
    """A configuration in our words.

    Attributes:
        dataset: option of the group.
        experiments: whose numbers are nearest.
        model: option of the group.
        experts: in the order of their names.
        text: name of the features of the captions.
        optimizer: option of the group.
        scheduler: option of the group.
        values: dotted key -> value; of `dataset.caption_mask` only which of the published masks.
    """

    dataset: str
    experiments: tuple[str, ...]
    model: str
    experts: tuple[Expert, ...]
    text: str
    optimizer: str
    scheduler: str
    values: dict[str, Any] = field(default_factory=dict)


def is_config(content: Any) -> bool:
    """Whether the content of a JSON file is such a configuration, rather than a vocabulary."""
    return isinstance(content, Mapping) and ("inherit_from" in content or {"arch", "data_loader"} <= content.keys())


def read_config(path: Path) -> dict[str, Any]:
    """A configuration with all that it inherits: of several files, and of the file over them, the later wins.

    Dicts are merged at every level, lists are replaced. `inherit_from` names files from the root of the repository:
    they are looked for from the folder of the file upwards.

    Raises:
        UserError: a file is missing or damaged, or inherits from itself.
    """
    return _inherited(path.resolve(), ())


def _inherited(path: Path, heirs: tuple[Path, ...]) -> dict[str, Any]:
    if path in heirs:
        raise UserError(f"{path} inherits from itself by way of {heirs[-1].name}; correct inherit_from")
    try:
        own = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}), expected a config.json; check the file") from None
    if not isinstance(own, dict):
        raise UserError(f"{path} holds {type(own).__name__}, expected a configuration; check the file")
    merged: dict[str, Any] = {}
    for name in filter(None, str(own.get("inherit_from", "")).split(",")):
        found = next((folder / name for folder in path.parents if (folder / name).is_file()), None)
        if found is None:
            raise UserError(f"{path} inherits from {name}, found in no folder above it; put the file there")
        merged = _merge(merged, _inherited(found.resolve(), (*heirs, path)))
    return {name: value for name, value in _merge(merged, own).items() if name != "inherit_from"}


def _merge(base: Config, over: Config) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        old = merged.get(name)
        merged[name] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def settings_of(config: Config) -> Settings:
    """The configuration in our words.

    Raises:
        UserError: a part is missing, or asks for what does not exist here.
    """
    _check(config)
    data, arch = _at(config, "data_loader.args"), _at(config, "arch.args", {})
    experiments = _experiments(config)
    optimizer, scheduler = _at(config, "optimizer.type"), _at(config, "lr_scheduler.type")
    for name, known, key in ((optimizer, OPTIMIZERS, "optimizer"), (scheduler, SCHEDULERS, "lr_scheduler")):
        if name not in known:
            raise UserError(f"the configuration has {key}={name}, expected one of {', '.join(known)}")
    values = {f"model.{name}": value for name, value in model_options(config).items()}
    unpooled = _at(config, "experts.text_agg", "vlad") == "avg" or values.get("model.vlad_clusters.text") == 0
    if unpooled and _at(config, "arch.type") != "MNNet":
        values = values | {"text.temporal": False, "model.vlad_clusters.text": 0}
        values.pop("model.max_tokens.text", None)
    kind = "ce" if values.get("model.project", True) else "moee"
    kind = "mnnet" if _at(config, "arch.type") == "MNNet" else kind
    kind = next((name for name in ("concat", "concat_mix") if arch.get(f"{name}_experts")), kind)
    if config.get("caption_masks"):
        values["dataset.caption_mask"] = Path(str(config["caption_masks"])).stem.removeprefix("denoise-")
    return Settings(
        str(data["dataset_name"]).lower(),
        experiments,
        kind,
        tuple(_experts(config)),
        str(_at(config, "experts.text_feat")),
        OPTIMIZERS[optimizer],
        SCHEDULERS[scheduler][0],
        values | _training(config) | _captions(config, data),
    )


def model_options(config: Config) -> dict[str, Any]:
    """Options of our model, a dot between levels; only those that mean something in this configuration.

    Raises:
        UserError: a part is missing.
    """
    loss = _at(config, "loss.args", {})
    told: dict[str, Any] = {name: loss[name] for name in ("margin", "fix_norm") if name in loss}
    if _at(config, "arch.type") == "MNNet":
        return told
    args, tokens = _at(config, "arch.args"), _at(config, "data_loader.args.max_tokens", {})
    pooled = ["text", *(expert.store for expert in _experts(config) if expert.pooled)]
    told |= {f"vlad_clusters.{name}": _at(args, f"vlad_clusters.{name}") for name in pooled}
    told |= {f"max_tokens.{name}": tokens[name] for name in pooled if name in tokens}
    if told["vlad_clusters.text"]:
        told["text_ghost_clusters"] = _at(args, "ghost_clusters.text", 0)
    if args.get("concat_experts") or args.get("concat_mix_experts"):
        return told | {"mix": bool(args.get("concat_mix_experts"))}
    gating = {True: "pairwise", False: "none", None: "none", "": "none"}.get(args.get("use_ce"), args.get("use_ce"))
    told |= {"gating": gating, "project": gating != "none" or bool(args.get("mimic_ce_dims"))}
    if told["project"]:
        told["shared_dim"] = _at(config, "experts.ce_shared_dim")
    if gating != "none":
        layers = {"g_layers": "num_g_layers", "h_layers": "num_h_layers"}
        switches = {"include_self": "include_self", "mish": "use_mish", "reason_norm": "use_bn_reason"}
        told |= {ours: args[theirs] for ours, theirs in layers.items() if theirs in args}
        told |= {ours: bool(args[theirs]) for ours, theirs in switches.items() if theirs in args}
    return told | {
        "mixture_weights": not args.get("freeze_weights", False),
        "keep_missing": bool(args.get("keep_missing_modalities", False)),
        "test_caption_mode": args.get("test_caption_mode", "indep"),
        "randomise": sorted(filter(None, str(args.get("randomise_feats", "")).split(","))),
    }


def _experts(config: Config) -> list[Expert]:
    dropped = str(_at(config, "experts.drop_feats", "")).split(",")
    found = []
    for name in _modalities(config):
        if name in dropped:
            continue
        how = _at(config, "data_loader.args.feat_aggregation").get(name)
        if not isinstance(how, Mapping) or "temporal" not in how:
            raise UserError(
                f"the configuration says {how!r} of the aggregation of {name}, expected its temporal, type and "
                "feat_dims; configurations of 2019 are of another model"
            )
        found.append(_expert(config, name, how))
    return found


def _modalities(config: Config) -> list[str]:
    names, tables = _at(config, "experts.modalities"), _at(config, "data_loader.args.feat_aggregation")
    if not isinstance(names, list) or not isinstance(tables, Mapping):
        raise UserError(
            "the configuration's experts.modalities or feat_aggregation is malformed, expected a list of names and a "
            "table; fetch the config.json again"
        )
    return sorted(str(name) for name in names)


def _expert(config: Config, name: str, how: Config) -> Expert:
    if how["temporal"] == "vlad":
        return Expert(name, _POOLED_DIMS.get(name, 0), pooled=True)
    aggregations = str(how["temporal"]).split("-")
    store = name
    if name == "face":
        dim = int(_at(config, "experts.face_dim"))
    else:
        dim = int(_at(how, f"feat_dims.{how.get('type', 'embed')}")) * len(aggregations)
    if (_at(config, "data_loader.args.dataset_name"), name) == ("MSVD", "r2p1d.r2p1d-ig65m-kinetics.0"):
        store = name[:-1] + "1"  # the published code reads the file of stride 8 there
    if aggregations != ["avg"]:
        store += "." + "-".join(aggregations)
    return Expert(store + ("-logits" if how.get("type") == "logits" else ""), dim, pooled=False)


def _experiments(config: Config) -> tuple[str, ...]:
    """The experiments to begin with; those after the first are laid over it."""
    key = tuple(_at(config, f"data_loader.args.{name}") for name in ("dataset_name", "split_name"))
    if key not in EXPERIMENTS:
        known = ", ".join(f"{dataset} {split}" for dataset, split in EXPERIMENTS)
        raise UserError(f"the configuration is of {key[0]} {key[1]}, expected one of {known}")
    if _at(config, "arch.type") == "MNNet":
        return ("mnnet_queryd",)
    names = [EXPERIMENTS[key]]
    names += ["ce_plus"] if _at(config, "experts.text_feat") == "gpt2-xl-finetune" else []
    names += ["ce_teachtext"] if config.get("distil_loss") else []
    names += ["ce_denoise"] if config.get("caption_masks") else []
    return tuple(names)


def _training(config: Config) -> dict[str, Any]:
    values: dict[str, Any] = {
        "dataset.recipe.batch_size": _at(config, "data_loader.args.batch_size"),
        "dataset.recipe.max_epochs": _at(config, "trainer.epochs"),
        "seed": config.get("seed", 0),
    }
    rates = _at(config, "optimizer.args", {})
    for theirs, ours in (("lr", "dataset.recipe.lr"), ("weight_decay", "optimizer.weight_decay")):
        values |= {ours: rates[theirs]} if theirs in rates else {}
    values |= {f"optimizer.{n}": rates[n] for n in ("betas", "eps", "k", "alpha") if n in rates}
    names = SCHEDULERS[_at(config, "lr_scheduler.type")][1]
    steps = _at(config, "lr_scheduler.args", {})
    return values | {f"scheduler.{ours}": steps[theirs] for theirs, ours in names.items() if theirs in steps}


def _captions(config: Config, data: Config) -> dict[str, Any]:
    fused = data.get("fuse_captions") or data["dataset_name"] == "YouCook2"
    policy = "paragraph" if fused else "all"
    first = data.get("restrict_train_captions")
    if first not in (None, 0, 1):
        raise UserError(f"the configuration has restrict_train_captions={first}, expected 0 (all) or 1 (the first)")
    values = {"split.captions.train": "first" if first else policy}
    if EXPERIMENTS[data["dataset_name"], data["split_name"]] == "ce_msrvtt":
        values["split.captions.val"] = "first" if data.get("num_test_captions") == 1 else policy
    return values


def _check(config: Config) -> None:
    """Options without counterpart have to be off.

    Raises:
        UserError: one is on.
    """
    for key, allowed in _ONLY.items():
        value = _at(config, key, None)
        if value not in allowed:
            raise UserError(
                f"the configuration has {key}={value}, expected {allowed[0]}: there is nothing like it here"
            )
    for name in _modalities(config):
        how = _at(config, "data_loader.args.feat_aggregation").get(name)
        if isinstance(how, Mapping) and (how.get("binarise") or how.get("trn_seg")):
            raise UserError(f"the configuration has binarise or trn_seg for {name}; there is nothing like it here")
        if isinstance(how, Mapping) and how.get("temporal") == "vlad" and name not in _POOLED_DIMS:
            raise UserError(f"the configuration pools {name}, expected {', '.join(_POOLED_DIMS)} only")


_NOTHING = object()


def _at(config: Config, key: str, default: Any = _NOTHING) -> Any:
    """The value under a dotted key."""
    value: Any = config
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            if default is _NOTHING:
                raise UserError(f"the configuration has no {key}; expected a config.json of collaborative-experts")
            return default
        value = value[name]
    return value
