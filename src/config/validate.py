"""Checks of a composed configuration, before anything heavy is imported.

Types and keys come from signatures (`src.config.signature`); what fits together comes from facts that the
files declare (`provides`, `needs`, `uses`), never from names. The first mistake is raised as a UserError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from src.config import types
from src.config.schema import DECLARED, GIVEN
from src.config.schema import __name__ as schema
from src.config.signature import Signature, names_in, signature_of
from src.config.suggest import closest, hint
from src.errors import UserError

MISSING = "???"
# Groups that a task may do without (its `uses`), then those that every run has.
PARTS = (
    *("dataset", "split", "model", "experts", "text", "extractor"),
    *("optimizer", "scheduler", "trainer", "logger", "rescoring", "callbacks"),
)
GROUPS = ("task", *PARTS, "paths")
CONF = Path(__file__).resolve().parents[2] / "conf"

PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")
"""Of the trainer: weights are kept in 32 bits, "32" and "16" are older names."""

_TARGET_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
# Strategies whose extra processes do not repeat the command line, so that they can be part of a sweep.
_SWEEPABLE = ("ddp_spawn", "ddp_fork", "ddp_notebook", "single_device")


@dataclass(frozen=True)
class Context:
    """What the checks know besides the values: the chosen option of each group, and whether `-m` was given."""

    choices: dict[str, str]
    multirun: bool = False

    def name(self, group: str) -> str:
        """`model=clip2video`, as one types it."""
        return f"{group}={self.choices[group]}" if self.choices.get(group) else group


@cache
def nested_groups() -> tuple[str, ...]:
    """Groups whose files become a key of another group: `model/head`."""
    folders = {path.parent.relative_to(CONF).as_posix() for path in CONF.glob("*/*/*.yaml")}
    return tuple(sorted(folders))


def check(cfg: DictConfig, context: Context) -> dict[str, Any]:
    """Check everything and return the resolved configuration as plain Python values.

    Raises:
        UserError: for the first mistake found.
    """
    values = resolved(cfg)
    _check_root(values)
    used = values["task"].get("uses", list(GROUPS))
    for group in GROUPS:
        _check_group(group, values, context)
    for path in _missing(values):
        group = path.split(".")[0]
        if group in used or group not in PARTS:
            raise UserError(f"{path} is required by {context.name(group)} and not given; add {path}=…")
    _check_modalities(values, used, context)
    _check_selection(values, used, context)
    _check_inputs(values, context)
    _check_extractor(values, context)
    _check_trainer(values, context)
    return values


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """`cfg` as plain values with interpolations resolved; a failing one is named in a UserError."""
    return {str(key): _resolved_key(cfg, str(key)) for key in cfg if key != "hydra"}


def _resolved_key(cfg: DictConfig, key: str) -> Any:
    if OmegaConf.is_missing(cfg, key):
        return MISSING
    try:
        node = cfg[key]
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except InterpolationToMissingValueError as error:
        name = re.search(r"mandatory value: ([\w.]+)", str(error))
        needed = name.group(1) if name else "a key"
        raise UserError(f"{needed} is required ({error.full_key} refers to it) and not given; add {needed}=…") from None
    except OmegaConfBaseException as error:
        text = str(error).strip().splitlines()[0].removeprefix("KeyError raised while resolving interpolation: ")
        raise UserError(f"{error.full_key or key} cannot be resolved: {text.strip(chr(34))}") from None


def _check_root(values: dict[str, Any]) -> None:
    keys = signature_of(f"{schema}.RunKeys")
    assert keys is not None
    known = {*GROUPS, *keys.parameters}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"unknown key '{key}' in the configuration{hint(key, known)}")
        if key in keys.parameters:
            check_value(keys.parameters[key].type, value, key)
    absent = [group for group in GROUPS if group not in values]
    if absent:
        raise UserError(f"the group '{absent[0]}' was removed, expected one option of it; give {absent[0]}=…")
    names = signature_of(f"{schema}.TaskKeys")
    assert names is not None
    check_value(names.parameters["name"].type, values["task"].get("name"), "task.name")


def _check_group(group: str, values: dict[str, Any], context: Context) -> None:
    value = values[group] or {}
    if not isinstance(value, dict):
        raise UserError(f"{group} is {types.found_words(value)}, expected one option of the group; give {group}=…")
    if group in _RECORDS:
        if value or group not in _MAY_BE_EMPTY:
            check_value(_RECORDS[group], value, group)
        return
    facts = {key: value[key] for key in DECLARED.get(group, ()) if key in value}
    if facts:
        check_value(types.Record(f"{schema}.{group.title()}Facts"), facts, group, partial=True)
    arguments = {key: item for key, item in value.items() if key not in facts}
    for nested in nested_groups():
        owner, _, key = nested.rpartition("/")
        if owner == group and key in arguments and "_target_" not in (arguments[key] or ()):
            raise UserError(
                f"{group}.{key} is {types.found_words(arguments[key])}, expected one option of the group; "
                f"give {group}.{key}=… in the command line, or 'override /{nested}: …' in the defaults of a yaml file"
            )
    if "_target_" in arguments:
        _check_arguments(group, arguments)
    elif group in ("dataset", "model", "trainer"):
        raise UserError(f"{group} has no _target_, expected the class that {context.name(group)} builds")
    _check_nested(arguments, group)


def _check_arguments(group: str, arguments: dict[str, Any]) -> None:
    """A run passes some arguments itself; all others that a class insists on must be there."""
    given = GIVEN.get(group, ())
    for key in set(given) & set(arguments):
        raise UserError(f"{group}.{key} is passed by the run itself; set '{key}' at the root of the configuration")
    signature = _target_signature(str(arguments["_target_"]), group)
    for key, parameter in signature.parameters.items():
        if parameter.required and key not in arguments and key not in given and "_partial_" not in arguments:
            raise UserError(f"{group}.{key} is required by {signature.target} and not given; add +{group}.{key}=…")


_RECORDS: dict[str, types.Type] = {
    "split": types.Record("src.data.splits.SplitSpec"),
    "paths": types.Record(f"{schema}.Paths"),
    "experts": types.Table(types.Scalar("str"), types.Record(f"{schema}.ExpertEntry")),
    "text": types.Record(f"{schema}.TextEntry"),
}
_MAY_BE_EMPTY = ("text",)  # records that a run may do without


def _check_nested(value: Any, path: str) -> None:
    """Check every table with a `_target_` at or below `path`."""
    if isinstance(value, dict) and "_target_" in value:
        signature = _target_signature(str(value["_target_"]), path)
        own = {key: known for key, known in signature.parameters.items() if key not in GIVEN.get(path, ())}
        signature = replace(signature, parameters=own)
        _check_keys(signature, {k: v for k, v in value.items() if k not in _TARGET_KEYS}, path)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_nested(item, f"{path}.{key}")


def _target_signature(target: str, path: str) -> Signature:
    signature = signature_of(target)
    if signature is None:
        module, _, name = target.rpartition(".")
        raise UserError(f"{path}._target_ names {target}, which does not exist{hint(name, names_in(module))}")
    return signature


def _check_keys(signature: Signature, value: dict[str, Any], path: str) -> None:
    for key, item in value.items():
        parameter = signature.parameters.get(str(key))
        if parameter is not None:
            check_value(parameter.type, item, f"{path}.{key}")
        elif signature.open_ended:
            _check_nested(item, f"{path}.{key}")
        else:
            raise UserError(f"unknown key '{path}.{key}'{hint(str(key), signature.parameters, f'{path}.')}")


def check_value(kind: types.Type, value: Any, path: str, partial: bool = False) -> None:
    """Raise a UserError when `value` (plain) cannot be passed as `kind`; `partial` allows absent record fields."""
    if value == MISSING:
        return
    if isinstance(value, dict) and "_target_" in value:
        _check_nested(value, path)
        return
    options = kind.options if isinstance(kind, types.Either) else (kind,)
    for option in options:
        if isinstance(option, types.Record) and isinstance(value, dict):
            _check_record(option, value, path, partial)
            return
        if isinstance(option, types.Table) and isinstance(value, dict):
            for key, item in value.items():
                check_value(option.key, key, f"{path}.{key} (the name)")
                check_value(option.value, item, f"{path}.{key}")
            return
    if not types.fits(kind, value):
        near = closest(value, [str(known) for known in types.choices(kind)]) if isinstance(value, str) else None
        suffix = f"; did you mean '{near}'?" if near else f"; give {path}=…"
        raise UserError(f"{path} is {types.found_words(value)}, expected {types.words(kind)}{suffix}")


def _check_record(kind: types.Record, value: dict[str, Any], path: str, partial: bool) -> None:
    signature = signature_of(kind.target)
    if signature is None:
        raise UserError(f"{path} should be a {kind.target}, which does not exist")
    _check_keys(signature, value, path)
    absent = [key for key, p in signature.parameters.items() if p.required and key not in value]
    if absent and not partial:
        raise UserError(f"{path}.{absent[0]} is required and not given; add {path}.{absent[0]}=…")


def _missing(value: Any, path: str = "") -> Iterator[str]:
    """Paths of the mandatory keys (`???`) that nobody gave."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _missing(item, f"{path}.{key}" if path else str(key))
    elif value == MISSING:
        yield path


def type_at(values: dict[str, Any], path: str) -> types.Type:
    """The type that a class or signature gives for the key at `path`; Anything where none does."""
    top, *rest = path.split(".")
    if top in _RECORDS:
        return _descend(_RECORDS[top], rest)
    if top not in GROUPS:
        return _descend(types.Record(f"{schema}.RunKeys"), [top, *rest])
    if top in DECLARED and rest and rest[0] in DECLARED[top]:
        return _descend(types.Record(f"{schema}.{top.title()}Facts"), rest)
    node: Any = values.get(top)
    while rest and isinstance(node, dict):
        inner = node.get(rest[0])
        if "_target_" in node and not (isinstance(inner, dict) and "_target_" in inner):
            return _descend(types.Record(str(node["_target_"])), rest)
        node, rest = inner, rest[1:]
    return types.Anything()


def _descend(kind: types.Type, parts: list[str]) -> types.Type:
    if not parts:
        return kind
    if isinstance(kind, types.Table):
        return _descend(kind.value, parts[1:])
    signature = signature_of(kind.target) if isinstance(kind, types.Record) else None
    if signature is None or parts[0] not in signature.parameters:
        return types.Anything()
    return _descend(signature.parameters[parts[0]].type, parts[1:])


@cache
def _declared(group: str, key: str) -> dict[str, list[str]]:
    """Option -> list declared under `key`, for all files of a group."""
    found = {}
    for path in sorted((CONF / group).glob("*.yaml")):
        node = OmegaConf.load(path)
        if isinstance(node, DictConfig) and OmegaConf.is_list(node.get(key)):
            found[path.stem] = [str(item) for item in node[key]]
    return found


def _check_modalities(values: dict[str, Any], used: list[str], context: Context) -> None:
    dataset, model = values["dataset"], values["model"]
    if not {"dataset", "model"} <= set(used) or "provides" not in dataset or "needs" not in model:
        return
    lacking = [modality for modality in model["needs"] if modality not in dataset["provides"]]
    if not lacking:
        return
    datasets = [name for name, has in _declared("dataset", "provides").items() if set(model["needs"]) <= set(has)]
    models = [name for name, needs in _declared("model", "needs").items() if set(needs) <= set(dataset["provides"])]
    advice = [f"{group}={'|'.join(names)}" for group, names in (("dataset", datasets), ("model", models)) if names]
    raise UserError(
        f"{context.name('model')} needs {' and '.join(model['needs'])}, but {context.name('dataset')} provides "
        f"{' and '.join(dataset['provides'])}; choose {' or '.join(advice) or 'another model or dataset'}"
    )


def _check_selection(values: dict[str, Any], used: list[str], context: Context) -> None:
    parts = list(values["split"].get("parts") or ())
    if values["task"]["name"] != "fit" or "split" not in used or not parts:
        return
    if values["split"].get("val_holdout"):
        parts.append("val")  # held out of train
    selection = values["selection"]
    if selection != "last" and selection not in parts:
        raise UserError(
            f"selection={selection}, but {context.name('split')} has no {selection} part (it has {', '.join(parts)}); "
            "give selection=last, or split.val_holdout=500 (of train), or selection=test as many published numbers do"
        )


def _check_inputs(values: dict[str, Any], context: Context) -> None:
    """Files and weights that a task cannot start without."""
    task = values["task"]["name"]
    own = ("run_file", "qrels", "predictions", "labels", "query_mask", "querybank", "videobank")
    run_files = {key: values["task"].get(key) for key in own}
    if task == "score" and not values["similarity"] and not run_files["run_file"] and not run_files["predictions"]:
        raise UserError(
            "task=score has no matrix; give similarity=S.npy (rows captions, columns videos), run_file=RUN qrels=FILE "
            "of an ad-hoc video search, or task.predictions=FILE of the Video Pentathlon"
        )
    for key, path in {**{key: values[key] for key in ("similarity", "captions", "videos")}, **run_files}.items():
        if task in ("score", "export_submission") and path and not Path(path).is_file():
            raise UserError(f"{key}={path} does not exist; give the path of the file")
    checkpoint = values["ckpt_path"]
    if checkpoint and not (task == "fit" and checkpoint == "last") and not Path(checkpoint).exists():
        raise UserError(f"ckpt_path={checkpoint} does not exist; give the path of a checkpoint")
    untrained = not checkpoint and not values["model"].get("pretrained")
    encodes = task == "evaluate" or (task == "export_submission" and not values["similarity"])
    if encodes and untrained and not values["task"].get("random_weights"):
        raise UserError(
            f"task={task} has no weights ({context.name('model')} is not pretrained); give ckpt_path=…, or "
            "model.pretrained=FILE (CLIP models: or openai), or task.random_weights=true to evaluate an untrained model"
        )


def _check_extractor(values: dict[str, Any], context: Context) -> None:
    """The one task that reads the group insists on it, and on weights for an extractor that has them."""
    extractor = values["extractor"] or {}
    is_read = "extractor" in (values["task"].get("uses") or ())
    if extractor and not is_read:
        raise UserError(f"{context.name('extractor')} is read by task=extract only; add task=extract")
    if is_read and not extractor:
        known = sorted(path.stem for path in (CONF / "extractor").glob("*.yaml") if path.stem != "none")
        raise UserError(f"{context.name('task')} has no extractor; give extractor={'|'.join(known)}")
    asks = "random_weights" in extractor and not extractor["random_weights"]
    if asks and not extractor.get("weights"):
        raise UserError(
            f"{context.name('extractor')} has no weights; give extractor.weights=FILE, or "
            "extractor.random_weights=true for a test of the plumbing"
        )


def _check_trainer(values: dict[str, Any], context: Context) -> None:
    """Precisions that convert batches meet ours, which cannot be changed, and Lightning stops at the first of them.

    Processes that `strategy=ddp` starts repeat the command line, `-m` included, and would sweep on their own.
    """
    trainer = values["trainer"]
    precision = str(trainer.get("precision", "32-true"))
    if precision not in PRECISIONS:
        raise UserError(
            f"trainer.precision={precision} would change the weights themselves, expected {' | '.join(PRECISIONS)}; "
            "give trainer.precision=bf16-mixed for speed"
        )
    strategy, devices = str(trainer.get("strategy", "auto")), trainer.get("devices", 1)
    single = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    if context.multirun and not single and not strategy.startswith(_SWEEPABLE):
        raise UserError(
            f"-m with {context.name('trainer')} (trainer.strategy={strategy}, trainer.devices={devices}) would make "
            "every extra process start its own sweep; add trainer.strategy=ddp_spawn, or start one command per run"
        )
