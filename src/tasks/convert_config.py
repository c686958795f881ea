"""Published configurations in task=convert: the command line that reproduces a run."""

from __future__ import annotations

import math
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
from src.convert.collaborative_experts_config import TEXT_DIMS, Expert, Settings, read_config, settings_of
from src.errors import UserError

Values = Mapping[str, Any]


def convert_config(source: Path) -> None:
    """Print the command line of a published config.json.

    Raises:
        UserError: it cannot be read, or asks for something that does not exist here.
    """
    command = " ".join(shlex.quote(word) for word in command_of(settings_of(read_config(source))))
    Console().print(f"python -m src.run {command}", highlight=False, markup=False, soft_wrap=True)


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
    words = [*words, *_group_words(_composed(tuple(words)), settings)]
    found = _composed(tuple(words))
    differing = {key: value for key, value in _wanted(found, settings).items() if not _same(_value(found, key), value)}
    words += [_word(found, key, value) for key, value in differing.items()]
    final = _composed(tuple(words))
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
def _composed(words: tuple[str, ...]) -> Values:
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
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"{plus}{key}={text.replace(' ', '').replace(chr(39), '')}"
