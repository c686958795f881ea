"""Published configurations in task=convert: the command line that reproduces a run."""

from __future__ import annotations

import json
import logging
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from src.config import compose
from src.config.validate import CONF
from src.convert import frozen_config
from src.convert.collaborative_experts_config import TEXT_DIMS, Expert, Settings, read_config, settings_of
from src.errors import UserError

log = logging.getLogger(__name__)
Values = Mapping[str, Any]
_PLAIN = re.compile(r"[\w./+-][\w./+:@%-]*")


def convert_config(source: Path, model: Values) -> None:
    """Print the command line of a published config.json; what of it is not used goes to the log.

    Args:
        source: of Collaborative Experts, Frozen in Time or TextVR.
        model: options of our model; of the latter two they say what it reads, which their files do not.

    Raises:
        UserError: it cannot be read, or asks for something that does not exist here.
    """
    config = json.loads(source.read_text(encoding="utf-8"))
    if frozen_config.is_config(config):
        words = _frozen_words(config, model)
    else:
        words = command_of(settings_of(read_config(source)))
    Console().print(_typed(words), highlight=False, markup=False, soft_wrap=True)


def log_training(config: Any, model: Values) -> None:
    """Log the command line of the configuration that a checkpoint of Frozen in Time or TextVR holds.

    Args:
        config: what it holds.
        model: options of our model, which the tensors fit.
    """
    if not frozen_config.is_config(config):
        return
    try:
        log.info("how it was trained: %s", _typed(_frozen_words(config, model)))
    except UserError as error:  # the weights need none of it
        log.info("how it was trained has no command line here: %s", error)


def _typed(words: list[str]) -> str:
    return " ".join(["python -m src.run", *map(shlex.quote, words)])


def _frozen_words(config: Values, model: Values) -> list[str]:
    """The words of the command line; what of the configuration they leave out is logged."""
    kind = str(model.get("_target_")).rpartition(".")[2]
    chosen = {"Frozen": ("frozen", "vision"), "TextVR": ("textvr", model.get("mode"))}
    settings = frozen_config.settings_of(config, chosen.get(kind))  # type: ignore[arg-type]
    words = with_values(list(settings.words), settings.values)
    for note in settings.notes:
        log.info("%s", note)
    return words


def command_of(settings: Settings) -> list[str]:
    """The words of the command line; they compose to the settings.

    Among the experiments whose numbers are near, the one that needs the fewest words.

    Raises:
        UserError: experts or captions that no option has.
    """
    commands = [_completed(list(words), settings) for words in _beginnings(settings)]
    return min(commands, key=lambda words: (len(words), len(" ".join(words))))


def _beginnings(settings: Settings) -> Iterable[tuple[str, ...]]:
    first, *more = (name for name in settings.experiments if (CONF / "experiment" / f"{name}.yaml").is_file())
    moee = first.replace("ce_", "moee_")
    names = [first, *([moee] if (CONF / "experiment" / f"{moee}.yaml").is_file() and moee != first else [])]
    tails = [tuple(more), *([tuple(name for name in more if name != "ce_plus")] if "ce_plus" in more else [])]
    recipes: list[tuple[str, ...]] = [(), *([("recipe=ce_msrvtt_searched",)] if first == "ce_msrvtt" else [])]
    for name, tail, recipe in product(names, tails, recipes):
        chosen = ",".join((name, *tail))
        yield (f"experiment=[{chosen}]" if tail else f"experiment={chosen}", *recipe)


def _completed(words: list[str], settings: Settings) -> list[str]:
    """The words, and those that are lacking to the settings."""
    words = [*words, *_group_words(composed(tuple(words)), settings)]
    return with_values(words, _wanted(composed(tuple(words)), settings))


def with_values(words: list[str], wanted: Values) -> list[str]:
    """The words, and those that are lacking to the values.

    Args:
        words: that compose.
        wanted: dotted key -> value.

    Raises:
        UserError: other words override a value.
    """
    found = composed(tuple(words))
    differing = {key: value for key, value in wanted.items() if not _same(_value(found, key), value)}
    words += [_word(found, key, value) for key, value in differing.items()]
    final = composed(tuple(words))
    wrong = [key for key, value in differing.items() if not _same(_value(final, key), value)]
    if wrong:
        raise UserError(f"no command line sets {', '.join(wrong)} as the configuration has it; set them by hand")
    return words


def _group_words(found: Values, settings: Settings) -> list[str]:
    """The options of the groups that the composed experiment does not have."""
    moee = settings.model == "moee"
    target = _target("model", {"moee": "ce", "concat_mix": "concat"}.get(settings.model, settings.model))
    words = [f"dataset={settings.dataset}"] if found["dataset"]["name"] != settings.dataset else []
    other_mix = settings.model == "concat_mix" and not found["model"].get("mix")
    if found["model"]["_target_"] != target or (moee and found["model"]["project"]) or other_mix:
        words.append(f"model={settings.model}")
    have = {(entry.get("store") or name, entry["dim"]) for name, entry in found["experts"].items()}
    options = [_expert_option(expert, settings) for expert in settings.experts]
    if have != {_single_experts()[option] for option in options}:
        words.append(f"experts={_preset(frozenset(options)) or '[' + ','.join(options) + ']'}")
    if found["text"].get("store") != f"text.{settings.text}":
        words += _text_words(settings.text)
    for group, option in (("optimizer", settings.optimizer), ("scheduler", settings.scheduler)):
        if found[group].get("_target_") != _target(group, option):
            words.append(f"{group}={option}")
    return words


def _wanted(found: Values, settings: Settings) -> dict[str, Any]:
    """The settings, with names of experts in place of the published ones."""
    names = {entry.get("store") or name: name for name, entry in found["experts"].items()}
    wanted = dict(settings.values)
    if wanted.get("model.randomise"):
        wanted["model.randomise"] = sorted(names.get(name, name) for name in wanted["model.randomise"])
    if "dataset.caption_mask" in wanted:
        mask = Path(str(found["dataset"].get("caption_mask") or "caption_mask.json"))
        wanted["dataset.caption_mask"] = str(mask.with_name(f"caption_mask_{wanted['dataset.caption_mask']}.json"))
    if wanted.get("model.gating") == found["model"].get("gating", "").replace("auto", _auto(found)):
        del wanted["model.gating"]
    return wanted


def _auto(found: Values) -> str:
    return "pairwise" if found["model"].get("project") and len(found["experts"]) > 1 else "none"


def _expert_option(expert: Expert, settings: Settings) -> str:
    """The option of a modality; the split of Miech et al. reads the experts of their release."""
    matching = [
        option for option, (store, dim) in _single_experts().items() if store == expert.store and dim == expert.dim
    ]
    if not matching:
        raise UserError(
            f"the configuration reads {expert.store} of {expert.dim} dimensions, which no file in conf/experts "
            "describes; add one with this store and dim"
        )
    miech = "ce_msrvtt_1kb" in settings.experiments
    return sorted(matching, key=lambda option: (option.startswith("antoine_") != miech, option))[0]


@cache
def _single_experts() -> dict[str, tuple[str, int]]:
    """Option of the group experts -> (name of the store, dimension), of those with one expert."""
    found = {}
    for path in sorted((CONF / "experts").glob("*.yaml")):
        entries = _plain(path)
        if "defaults" not in entries and len(entries) == 1:
            ((name, entry),) = entries.items()
            found[path.stem] = (str(entry.get("store") or name), entry["dim"])
    return found


@cache
def _preset(options: frozenset[str]) -> str | None:
    """The file that lists just these experts."""
    if len(options) == 1:
        return next(iter(options))
    for path in sorted((CONF / "experts").glob("*.yaml"), key=lambda path: len(path.stem)):
        if frozenset(_plain(path).get("defaults", ())) == options:
            return path.stem
    return None


def _text_words(name: str) -> list[str]:
    for path in sorted((CONF / "text").glob("*.yaml")):
        if _plain(path).get("store") == f"text.{name}":
            return [f"text={path.stem}"]
    if name not in TEXT_DIMS:
        raise UserError(f"the configuration reads captions of {name}, which no file in conf/text describes; add one")
    return ["text=custom", f"text.name={name}", f"text.dim={TEXT_DIMS[name]}", f"text.store=text.{name}"]


@cache
def _target(group: str, option: str) -> str:
    return str(_plain(CONF / group / f"{option}.yaml")["_target_"])


def _plain(path: Path) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    return {str(name): value for name, value in content.items()}


@cache
def composed(words: tuple[str, ...]) -> Values:
    """The configuration of a command line."""
    (values,) = compose.preflight(compose.parse(list(words)))
    return values


def _value(values: Values, key: str) -> Any:
    found: Any = values
    for name in key.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(found, float) and isinstance(wanted, int | float):
        return math.isclose(found, wanted, rel_tol=1e-12)
    return bool(found == wanted)


def _word(found: Values, key: str, value: Any) -> str:
    """`key=value` as Hydra reads it, with a plus for a key of a table that is not there yet."""
    parent, _, name = key.rpartition(".")
    table = _value(found, parent) if parent else found
    plus = "+" if isinstance(table, Mapping) and name not in table else ""
    if isinstance(value, str):
        return f"{plus}{key}={_quoted(value)}"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"{plus}{key}={text.replace(' ', '').replace(chr(39), '')}"


def _quoted(text: str) -> str:
    """The text in quotes where Hydra would read it as something else, such as a path with blanks."""
    if _PLAIN.fullmatch(text) and text.lower() not in ("null", "true", "false"):
        return text
    return "'" + text.replace("'", "\\'") + "'"
