"""Every file under conf composes, is checked against the signature it targets, and is small and described."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from src.config import compose
from src.config.help import first_comment
from src.config.schema import DECLARED
from src.config.signature import signature_of
from src.config.validate import CONF
from src.errors import UserError

FILES = sorted(CONF.rglob("*.yaml"))
OPTIONS = [(path.parent.relative_to(CONF).as_posix(), path.stem) for path in FILES if path.parent != CONF]
DATASETS = [name for group, name in OPTIONS if group == "dataset"]
MODELS = [name for group, name in OPTIONS if group == "model"]
HEADS = [name for group, name in OPTIONS if group == "model/head"]
OPENINGS = ("- head:", "- clip2video\n")  # names a head, or begins as a model that does
HEADED = [
    name
    for name in MODELS
    if any(words in (CONF / "model" / f"{name}.yaml").read_text(encoding="utf-8") for words in OPENINGS)
]

# What a task or a data set insists on, so that everything else about it can be checked.
NEEDED = {
    ("task", "score"): ["similarity={file}"],
    ("task", "evaluate"): ["task.random_weights=true"],
    ("task", "export_submission"): ["task.random_weights=true"],
    ("task", "extract"): ["extractor=clip"],
    **{("extractor", name): ["extractor.random_weights=true"] for name in ("action", "scene", "vggish")},
    ("extractor", "plugin"): ["extractor.network=module:function"],
    ("text", "custom"): ["text.name=words", "text.dim=3"],
    **{("recipe", path.stem): [f"model={path.stem.split('_')[0]}"] for path in (CONF / "recipe").glob("*_*.yaml")},
}


def configuration(*words: str) -> dict[str, Any]:
    (values,) = compose.preflight(compose.parse(compose.nested_groups_named(list(words))))
    return values


def alone(dataset: str) -> list[str]:
    """Words under which a data set composes by itself: one without frames does not fit the default model."""
    return [] if "frames" in OmegaConf.load(CONF / "dataset" / f"{dataset}.yaml").provides else ["task=check_data"]


def targets() -> Iterator[str]:
    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, DictConfig):
            if "_target_" in node:
                yield str(node._get_node("_target_"))
            for key in node:
                yield from walk(node._get_node(key))

    for path in FILES:
        yield from walk(OmegaConf.load(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_is_short_and_described(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    assert all(len(line) <= 120 for line in lines)
    assert lines[0].startswith("#")
    assert len(first_comment(path)) > 10


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_option_composes_and_fits_its_signature(group: str, option: str, tmp_path: Path) -> None:
    file = tmp_path / "S.npy"
    file.touch()
    words = [word.format(file=file) for word in NEEDED.get((group, option), [])]
    words += alone(option) if group == "dataset" else []
    words += ["task=extract"] if group == "extractor" and option != "none" else []
    values = configuration(f"{group}={option}", "selection=last", *words)
    if group not in ("hydra", "experiment", "recipe"):
        assert group.split("/")[0] in values


@pytest.mark.parametrize(("model", "dataset"), [*product(MODELS, DATASETS)], ids=lambda value: value)
def test_model_and_dataset_fit_or_say_why_not(model: str, dataset: str) -> None:
    provides = OmegaConf.load(CONF / "dataset" / f"{dataset}.yaml").provides
    needs = OmegaConf.load(CONF / "model" / f"{model}.yaml").needs
    words = (f"model={model}", f"dataset={dataset}", "selection=last")
    if set(needs) <= set(provides):
        assert configuration(*words)["model"]["_target_"].startswith("src.models.")
    else:
        with pytest.raises(UserError, match=rf"model={model} needs .* but dataset={dataset} provides .*; choose "):
            configuration(*words)


@pytest.mark.parametrize(("model", "head"), [*product(HEADED, HEADS)], ids=lambda value: value)
def test_models_of_frames_and_words_take_every_head(model: str, head: str) -> None:
    chosen = configuration(f"model={model}", f"model.head={head}")["model"]["head"]
    assert chosen["_target_"].startswith("src.models.heads.")
    own = OmegaConf.load(CONF / "model" / "head" / f"{head}.yaml")
    assert {key: chosen[key] for key in own if key != "defaults"} == {k: v for k, v in own.items() if k != "defaults"}


@pytest.mark.parametrize("model", sorted({*MODELS} - {*HEADED}))
def test_other_models_say_that_they_have_no_head(model: str) -> None:
    message = rf"model={model} has no head, found model.head=wti; leave it out, or choose model=clip2video\|clip4clip\|"
    with pytest.raises(UserError, match=message):
        configuration(f"model={model}", "model.head=wti", "task=check_data")


@pytest.mark.parametrize("dataset", DATASETS)
def test_split_follows_the_dataset(dataset: str) -> None:
    values = configuration(f"dataset={dataset}", "selection=last", *alone(dataset))
    assert values["split"] == OmegaConf.to_container(OmegaConf.load(CONF / "split" / f"{dataset}.yaml"))


@pytest.mark.parametrize("dataset", DATASETS)
def test_recipe_reaches_the_other_groups(dataset: str) -> None:
    values = configuration(
        f"dataset={dataset}",
        "selection=last",
        "dataset.recipe.max_epochs=77",
        "model.arch=ViT-B-16",
        *alone(dataset),
    )
    assert values["trainer"]["max_epochs"] == 77
    assert values["model"]["arch"] == "ViT-B-16"
    assert values["dataset"]["recipe"]["arch"] != "ViT-B-16"


def test_facts_are_declared() -> None:
    for group, keys in DECLARED.items():
        for path in (CONF / group).glob("*.yaml"):
            assert set(keys) <= set(OmegaConf.load(path)), f"{path.name} lacks one of {keys}"


def test_some_models_have_heads_and_some_have_none() -> None:
    assert {"clip4clip", "clip2video", "internvideo"} <= set(HEADED)
    assert "ce" not in HEADED


def test_defaults() -> None:
    values = configuration()
    assert values["task"]["name"] == "fit"
    assert values["dataset"]["name"] == "toy"
    assert values["trainer"]["use_distributed_sampler"] is False


@pytest.mark.parametrize("target", sorted(set(targets())))
def test_signature_read_from_source_is_the_real_one(target: str) -> None:
    module, _, name = target.rpartition(".")
    real = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    read = signature_of(target)
    assert read is not None
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    assert set(read.parameters) == {name for name, p in real.items() if p.kind not in kinds}
    required = {n for n, p in real.items() if p.default is inspect.Parameter.empty and p.kind not in kinds}
    # A dataclass field may also find its default in a base that is no dataclass (LightningDataModule.name).
    assert {name for name, p in read.parameters.items() if p.required} - {"name"} == required
    assert read.open_ended == any(p.kind is inspect.Parameter.VAR_KEYWORD for p in real.values())
