"""From the words of the command line to checked configurations, with Hydra's own parser and loader."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from src.config import types
from src.config.suggest import closest, hint
from src.config.validate import CONF, GROUPS, Context, check, nested_groups, type_at
from src.errors import UserError

_MOST_COMBINATIONS = 64  # larger sweeps are checked choice by choice here, and job by job when they run


@dataclass(frozen=True)
class CommandLine:
    """The parsed words; `checked` is False for Hydra's own questions (completion, --hydra-help, --info)."""

    overrides: list[str]
    multirun: bool
    config_dir: str | None = None
    checked: bool = True


def parse(words: list[str]) -> CommandLine:
    """Parse flags as Hydra does, but report a mistake as one line.

    Raises:
        UserError: unknown flag, or two flags that exclude each other.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message} (settings are written without dashes: model=clip2video); see --help")

    parser.error = refuse  # type: ignore[method-assign]
    flags = parser.parse_args(words)
    modes = {"-m": flags.multirun, "--run": flags.run, "--cfg": flags.cfg, "--info": flags.info}
    given = [name for name, value in modes.items() if value]
    if len(given) > 1:
        raise UserError(f"found {' and '.join(given)}, expected at most one of {', '.join(modes)}")
    if flags.resolve and not flags.cfg:
        raise UserError("found --resolve without --cfg job; add --cfg job")
    own = flags.shell_completion or flags.hydra_help or flags.info or flags.experimental_rerun
    return CommandLine(flags.overrides, bool(flags.multirun), flags.config_dir, checked=not own)


def flags_first(words: list[str]) -> list[str]:
    """The words with settings moved to the end, for argparse accepts `seed=0,1 -m` but not `seed=0,1 -m ties=…`."""
    settings = [word for word in words if not word.startswith("-") and ("=" in word or word.startswith("~"))]
    return [word for word in words if word not in settings] + settings


def task_keys_named(words: list[str]) -> list[str]:
    """The words with `trust=true` written out as `task.trust=true`, where the chosen task has such a key."""
    tasks = [word.removeprefix("task=") for word in words if word.startswith("task=")] or ["fit"]
    path = CONF / "task" / f"{tasks[-1]}.yaml"
    if not path.is_file():
        return words  # a mistyped task is reported by its name
    known = {*GROUPS, "experiment", *_root_keys()}
    own = {str(key) for key in OmegaConf.load(path)} - known - {"name", "uses", "folder"}
    return [f"task.{word}" if "=" in word and word.split("=")[0] in own else word for word in words]


def nested_groups_named(words: list[str]) -> list[str]:
    """The words with `model.head=wti` written as `model/head=wti`, as Hydra wants the choice of a file in a sub-folder.

    Tables are left alone: they set keys. `pretrained=…` is short for `model.pretrained=…`.
    """
    groups = {group.replace("/", "."): group for group in nested_groups()}
    named = []
    for word in (f"model.{word}" if word.startswith("pretrained=") else word for word in words):
        key, equals, value = word.partition("=")
        is_choice = equals and key in groups and not value.startswith("{")
        named.append(f"{groups[key]}={value}" if is_choice else word)
    return named


def rank_overrides(words: list[str], environment: Mapping[str, str]) -> list[str]:
    """What a process started by torchrun adds to its command line; other processes add nothing.

    Raises:
        UserError: torchrun without a run folder, which every rank would then name by its own clock.
    """
    if "TORCHELASTIC_RUN_ID" not in environment or environment.get("WORLD_SIZE", "1") == "1":
        return []
    if not any(word.lstrip("+").startswith("hydra.run.dir=") for word in words):
        raise UserError(
            "torchrun starts every rank by itself and they would not share a run folder; add hydra.run.dir=…"
        )
    return [] if environment.get("RANK") == "0" else ["hydra.output_subdir=null"]


def preflight(line: CommandLine) -> list[dict[str, Any]]:
    """Compose, check and return (as plain values) the configuration of every job that the command line asks for.

    Raises:
        UserError: for the first mistake.
    """
    with _loader(line.config_dir) as loader:
        parsed = [_parse_word(word, loader) for word in line.overrides]
        for override in parsed:
            _check_word(override, loader)
        multirun = line.multirun or any(str(o.input_line).lower() == "hydra.mode=multirun" for o in parsed)
        composed: dict[tuple[str, ...], DictConfig] = {}
        checked = []
        for words in _jobs(parsed, multirun):
            job = [_parse_word(word, loader) for word in words]
            structure = [override for override in job if _is_structure(override, loader)]
            for override in structure:
                _check_option(override, loader)
            key = tuple(str(override.input_line) for override in structure)
            if key not in composed:
                composed[key] = _composed(structure)
            checked.append(_check_job(composed[key], [o for o in job if o not in structure], multirun))
        return checked


def _composed(structure: list[Override]) -> DictConfig:
    """The files that these words choose, put together."""
    words = [str(override.input_line) for override in structure]
    try:
        return compose("config", overrides=words, return_hydra_config=True)
    except ConfigCompositionException:
        nested = [override for override in structure if override.key_or_group in nested_groups()]
        others = [str(override.input_line) for override in structure if override not in nested]
        choices = compose("config", overrides=others, return_hydra_config=True).hydra.runtime.choices
        for override in nested:
            group, _, key = override.key_or_group.rpartition("/")
            if override.key_or_group not in choices:
                able = "|".join(path.stem for path in sorted((CONF / group).glob("*.yaml")) if _chooses(path, key))
                raise UserError(
                    f"{group}={choices[group]} has no {key}, found {group}.{key}={override.value()}; "
                    f"leave it out, or choose {group}={able}"
                ) from None
        raise


def _chooses(path: Path, key: str) -> bool:
    """Whether the defaults list of a yaml file has the group `key`."""
    defaults = OmegaConf.select(OmegaConf.load(path), "defaults") or ()
    return any(isinstance(entry, DictConfig) and key in entry for entry in defaults)


@contextmanager
def _loader(config_dir: str | None) -> Iterator[ConfigLoader]:
    """Hydra's loader over conf/ (and the user's folder); its complaints become UserErrors."""
    version.setbase("1.3")
    path = create_config_search_path(str(CONF))
    if config_dir is not None:
        folder = Path(config_dir).resolve()
        if not folder.is_dir():
            raise UserError(f"--config-dir {config_dir} is not a folder; give a folder of yaml files")
        path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    running, known = GlobalHydra.instance().hydra, HydraConfig.instance().cfg  # a task may ask about other words
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("run", path).config_loader
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(hydra_message(error)) from None
    finally:
        GlobalHydra.instance().hydra = running  # as if Hydra had not been used
        if running is not None:
            HydraConfig.instance().cfg = known


def hydra_message(error: Exception) -> str:
    """The informative lines of an exception of Hydra or OmegaConf, joined."""
    lines = [line.strip() for line in [*str(error).splitlines(), *str(error.__cause__ or "").splitlines()]]
    useful = [line for line in lines if line and not line.startswith(("See https", "Set the env", "object_type="))]
    return "; ".join(dict.fromkeys(useful[:3]))


def _parse_word(word: str, loader: ConfigLoader) -> Override:
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides([word])[0]
    except HydraException as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot read '{word}' ({reason}), expected KEY=VALUE; quote a value that holds , = {{ [ or a blank, "
            "as in 'tags=[\"a b\"]'"
        ) from None


def _check_word(override: Override, loader: ConfigLoader) -> None:
    """What can be said of one word before anything is composed."""
    key = override.key_or_group
    value = override.value()
    if key.split(".")[-1] == "_target_" or (isinstance(value, dict) and "_target_" in value):
        named = key if key.split(".")[-1] == "_target_" else f"{key}._target_"
        raise UserError(f"{named} cannot be set in the command line; add a yaml file to conf/{key.split('.')[0]}")
    if override.is_delete() and key in GROUPS:  # other groups may follow its choice
        raise UserError(f"the group '{key}' was removed, expected one option of it; give {key}=…")
    top = key.split(".")[0].split("/")[0]
    is_group = bool(loader.get_group_options(key))
    known = {*GROUPS, "experiment", *_root_keys(), "hydra"}
    adds = override.is_add() or override.is_force_add()
    if not is_group and not adds and top not in known and closest(top, known):
        raise UserError(f"unknown key '{key}' in the command line{hint(top, known)}")
    if not is_group and "/" in key and not key.startswith("hydra/"):
        raise UserError(f"unknown group '{key}' in the command line{hint(key, known)}")


@cache
def _root_keys() -> tuple[str, ...]:
    node = OmegaConf.load(CONF / "config.yaml")
    return tuple(str(key) for key in node if key != "defaults")


def _check_option(override: Override, loader: ConfigLoader) -> None:
    """A group must be given one of its files; sweeps are expanded already."""
    group = override.key_or_group
    options = loader.get_group_options(group)
    if override.is_delete() or (not options and group != "experiment"):
        return
    value = override.value()
    typed = _typed(group)
    if isinstance(value, list) and group in nested_groups():
        raise UserError(
            f"{typed} is a list, expected one option; give {typed}={value[0]}, or -m {typed}=A,B for a sweep"
        )
    for choice in value if isinstance(value, list) else [value]:
        name = types.as_typed(choice)
        if choice is None and group == "experiment":
            continue
        folder, _, leaf = f"{group}/{name.removesuffix('.yaml')}".rpartition("/")
        if leaf not in loader.get_group_options(folder):
            raise UserError(f"unknown option '{name}' of the group '{typed}'{hint(name, options, f'{typed}=')}")


def _typed(word: str) -> str:
    """The word, or the name of a group, as one types it: `model.head=wti`, which Hydra calls `model/head=wti`."""
    group, equals, value = word.partition("=")
    return f"{group.replace('/', '.') if group in nested_groups() else group}{equals}{value}"


def _jobs(parsed: list[Override], multirun: bool) -> Iterator[list[str]]:
    """The override words of each job of a sweep; of one job otherwise."""
    choices: list[list[str]] = []
    for override in parsed:
        if not override.is_sweep_override():
            choices.append([str(override.input_line)])
        elif not multirun:
            raise UserError(
                f"{_typed(str(override.input_line))} lists several values, expected one in a single run; "
                "add -m to run them all, or quote a text that holds a comma ('key=\"a,b\"' in single quotes)"
            )
        elif isinstance(override.value(), IntervalSweep):
            choices.append([f"{override.get_key_element()}={override.value().start}"])  # type: ignore[union-attr]
        else:
            choices.append([f"{override.get_key_element()}={v}" for v in override.sweep_string_iterator()])
            if not choices[-1]:
                raise UserError(f"{override.input_line} matches nothing, expected at least one option")
    count = 1
    for options in choices:
        count *= len(options)
    if count <= _MOST_COMBINATIONS:
        yield from (list(job) for job in itertools.product(*choices))
        return
    for index, options in enumerate(choices):
        for option in options:
            yield [option if i == index else other[0] for i, other in enumerate(choices)]


def _is_structure(override: Override, loader: ConfigLoader) -> bool:
    """Whether a word changes which files are composed, rather than a value in them."""
    name = override.key_or_group
    return name in ("experiment", "hydra.searchpath", "hydra.mode") or bool(loader.get_group_options(name))


def _check_job(composed: DictConfig, keys: list[Override], multirun: bool) -> dict[str, Any]:
    cfg = copy.deepcopy(composed)
    with read_write(cfg), open_dict(cfg):
        cfg.hydra.runtime.output_dir = "."  # known when the job starts
        cfg.hydra.job.num, cfg.hydra.job.id = 0, "0"
    HydraConfig.instance().set_config(copy.deepcopy(cfg))  # what ${hydra:…} refers to; it is locked
    for override in keys:
        _check_key(override, composed)
    ConfigLoaderImpl._apply_overrides_to_config(keys, cfg)
    HydraConfig.instance().set_config(cfg)
    chosen = {key: str(value) for key, value in cfg.hydra.runtime.choices.items() if value is not None}
    return check(cfg, Context(chosen, multirun or str(cfg.hydra.mode).endswith("MULTIRUN")))


def _check_key(override: Override, before: DictConfig) -> None:
    """A key must exist before it is set; where no signature tells its type, its default does."""
    path = override.key_or_group
    if override.is_add() or override.is_force_add():
        return
    values = OmegaConf.to_container(before, resolve=False)
    node: Any = values
    parts = path.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, dict) or part not in node:
            _unknown(values, parts, depth, node)
        node = node[part]
    if override.is_delete() or parts[0] == "hydra":  # Hydra's own keys refer to the job, which is not there yet
        return
    assert isinstance(values, dict)
    value, default = override.value(), OmegaConf.select(before, path, throw_on_missing=False)
    if isinstance(default, dict | DictConfig) and not isinstance(value, dict) and value is not None:
        raise UserError(f"{path} is {types.found_words(value)}, expected a table; set one of its keys: {path}.KEY=…")
    named = {str(key): item for key, item in values.items()}
    is_typed = not isinstance(type_at(named, path), types.Anything)
    if not is_typed and not _fits_default(default, value):
        kind = types.words(types.kind_of(default))
        raise UserError(f"{path} is {types.found_words(value)}, expected {kind} like its default {default}")


def _fits_default(default: Any, value: Any) -> bool:
    plain = OmegaConf.to_container(default) if OmegaConf.is_list(default) else default
    is_reference = isinstance(value, str) and "${" in value
    return plain == "???" or value is None or is_reference or types.fits(types.kind_of(plain), value)


def _unknown(values: Any, parts: list[str], depth: int, node: Any) -> NoReturn:
    path, prefix = ".".join(parts), "".join(f"{part}." for part in parts[:depth])
    known = [str(key) for key in node if key != "_target_"] if isinstance(node, dict) else []
    if not isinstance(type_at(values, path), types.Anything):
        raise UserError(f"the key '{path}' is not in the yaml file, though it is known; add it with +{path}=…")
    elsewhere = [
        found for found in _leaves(values) if found.split(".")[-1] == parts[-1] and not found.startswith("hydra")
    ]
    near = hint(parts[depth], known, prefix)
    if elsewhere and not near.startswith("; did you mean"):
        near = f"; did you mean '{elsewhere[0]}'?"
    raise UserError(f"unknown key '{path}' in the command line{near}")


def _leaves(node: Any, path: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, item in node.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path
