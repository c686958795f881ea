"""Every row of the tables of docs/collaborative_experts.md resolves to the published configuration of that row.

`collaborative_experts_recipes.json` holds the 199 published configurations as they resolve: one per data set, and how
each row differs from it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from omegaconf import OmegaConf

from src.config import compose
from src.config.validate import CONF
from src.tasks import build, describe

ROOT = CONF.parent
DOC = ROOT / "docs" / "collaborative_experts.md"
RECIPES = Path(__file__).with_name("collaborative_experts_recipes.json")

# Options of the published code that its configurations never use; their only value, which ours amounts to.
UNUSED = {
    "hyper|arch_args|l2renorm": [False],
    "hyper|arch_args|keep_missing_modalities": [False],
    "hyper|arch_args|randomise_feats": [""],
    "hyper|arch_args|test_caption_mode": ["indep"],
    "hyper|experts|drop_feats": [""],
    "hyper|disable_nan_checks": [False],
    "hyper|spatial_feats": [False],
    "hyper|trn_cat": [False, 0],
    "hyper|task": ["retrieval"],
    "recipe|data|trn_cat": [False, 0],
    "recipe|data|text_dropout": [0.0],
    "recipe|trainer|val_freq": [1],
    "recipe|trainer|save_only_best": [True],
    "recipe|lr_scheduler|type": ["StepLR"],
    "recipe|loss|type": ["MaxMarginRankingLoss"],
    "recipe|trainer|monitor": ["max val_t2v_metrics_geometric_mean_R1-R5-R10"],
    "recipe|metrics": [["t2v_metrics", "v2t_metrics"]],
}
# Without meaning for the result, or for these experts: where files lie, how often copies of the model are written, the
# words of the log, ghost clusters of experts (the published code passes on those of the text alone), dimensions that
# are given elsewhere, and experts that no row has.
MEANINGLESS = re.compile(
    r"recipe\|(seed|trainer\|(save_period|verbosity|tensorboard)"
    r"|data\|(num_workers|root_feat_folder|data_dir|refresh_lru_cache|dataset_name"
    r"|max_tokens\|(detection|detection-sem|openpose)))"
    r"|hyper\|(arch|experts\|(text_dim|face_dim|modalities)|arch_args\|vlad_clusters\|detection-sem"
    r"|arch_args\|ghost_clusters\|(ocr|audio|speech)|raw_input_dims\|.*)"
)
# Where ours is deliberately another name or number: (row, what) -> (ours, published).
KINETICS = ("r2p1d.r2p1d-ig65m-kinetics.1", "r2p1d.r2p1d-ig65m-kinetics.0")  # the store of the stride that MSVD has
STD = ("imagenet.resnext101_32x48d.0.avg-std", "imagenet.resnext101_32x48d.0")  # two aggregations side by side
S3D = ("s3dg.s3dg.0-logits", "s3dg.s3dg.0")  # logits, which the published code names like the features
REFINED = ("imagenet.resnext101_32x48d.0", "imagenet.senet154.0", "*", "r2p1d.r2p1d-ig65m.0", "scene.densenet161.0")


def named(names: Sequence[str], deviation: tuple[str, str]) -> tuple[list[str], list[str]]:
    """The list with both names in place of the star."""
    ours, theirs = ([one if name == "*" else name for name in names] for one in deviation)
    return ours, theirs


DEVIATIONS = {
    ("queryd-train-full-ce-only-scene-inst-with-std", "experts"): named(("*", "scene.densenet161.0"), STD),
    # The published row names no number of tokens for speech; ours has that of MSR-VTT.
    ("queryd-train-full-ce-only-scene-speech", "tokens"): (
        {"text": 20, "speech": 32},
        {"text": 20, "speech": None},
    ),
    **{(f"{name}-train-full-mnnet", "experts"): named(("*",), S3D) for name in ("queryd", "querydsegments")},
    **{
        (f"msvd-train-{name}", "experts"): named(REFINED, KINETICS)
        for name in (
            *("full-ce-refined", "gpt2-xl-finetuned-adam", "gpt2-xl-finetuned-denoising-adam"),
            *("gpt2-xl-finetuned-mte-adam", "gpt2-xl-finetuned-mte-denoising-adam"),
        )
    },
}
SPLITS = {
    "MSRVTT full-val": ("msrvtt_full", "val"),
    "MSRVTT jsfusion": ("msrvtt_1ka", "last"),
    "MSRVTT miech": ("msrvtt_1kb", "last"),
    "MSVD dev": ("msvd", "val"),
    "DiDeMo val": ("didemo", "val"),
    "LSMDC full-val": ("lsmdc", "val"),
    "ActivityNet val1": ("activitynet_val1", "test"),
    "QuerYD val": ("queryd", "val"),
    "QuerYDSegments val": ("querydsegments", "val"),
    "YouCook2 val": ("youcook2_ce", "test"),
}
VLAD = ("ocr", "audio", "speech")


class Row(NamedTuple):
    """A line of a table: the published name, what to type, and the number of parameters."""

    name: str
    words: tuple[str, ...]
    parameters: int


@cache
def published() -> dict[str, dict[str, Any]]:
    """Row -> its published configuration, keys joined by `|`."""
    stored = json.loads(RECIPES.read_text(encoding="utf-8"))
    rows = {}
    for name, (base, difference) in stored["rows"].items():
        merged = stored["base"][base] | difference
        rows[name] = {key: value for key, value in merged.items() if value != "absent"}
    return rows


@cache
def documented() -> tuple[Row, ...]:
    """The lines of the tables that begin with a published name."""
    lines = re.findall(
        r"^\| ([a-z0-9-]+-(?:train|searched)-\S+) \| `([^`]+)` \| ([\d,]+) \|", DOC.read_text(), re.MULTILINE
    )
    return tuple(Row(name, tuple(shlex.split(words)), int(number.replace(",", ""))) for name, words, number in lines)


@cache
def composed(words: tuple[str, ...]) -> dict[str, Any]:
    (values,) = compose.preflight(compose.parse(list(words)))
    return values


def test_every_published_row_has_one_command() -> None:
    assert sorted(row.name for row in documented()) == sorted(published())
    assert len(published()) == 199


@pytest.mark.parametrize("row", documented(), ids=lambda row: row.name)
def test_row(row: Row) -> None:
    recipe, values = published()[row.name], composed(row.words)
    model = build.empty_model(OmegaConf.create(values))
    found, expected = dict(of_ours(values, model)), dict(of_published(recipe))
    different = {key: (found.get(key), expected.get(key)) for key in expected | found}
    different = {key: both for key, both in different.items() if both[0] != both[1]}
    assert different == {key: both for (name, key), both in DEVIATIONS.items() if name == row.name}
    check_unused(recipe, values)
    assert sum(parameter.numel() for parameter in model.parameters()) == row.parameters


@pytest.mark.parametrize(
    ("experiment", "count"),
    [
        ("ce_msrvtt", 183448607),
        ("moee_msrvtt", 400410129),
        ("ce_msrvtt_1kb", 92434235),
        ("moee_msrvtt_1kb", 43976282),
        ("ce_msvd", 84043645),
        ("ce_didemo", 79285025),
        ("ce_lsmdc", 116857599),
        ("ce_activitynet", 260678403),
        ("ce_querydsegments", 30821146),
        ("mnnet_queryd", 1),
    ],
)
def test_describe_prints_the_published_count(experiment: str, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    describe.run(OmegaConf.create(composed((f"experiment={experiment}",))))
    lines = capsys.readouterr().out.splitlines()
    assert f"parameters: {count}" in lines
    assert any(line.startswith("captions: ") and "-d, " in line for line in lines)


def test_the_command_of_the_ablation_is_the_published_recipe() -> None:
    """Without an experiment: the numbers follow the model and the data set; one expert has nothing to be gated by."""
    parse = compose.parse(["-m", "model=ce", "dataset=msrvtt", "experts=scene,scene_rgb,all", "seed=0,1"])
    jobs = compose.preflight(parse)
    assert [(len(job["experts"]), job["seed"]) for job in jobs] == [(n, seed) for n in (1, 2, 9) for seed in (0, 1)]
    experiment = composed(("experiment=ce_msrvtt_1ka",))
    different = {key for key in experiment if jobs[-1][key] != experiment[key]}
    assert different == {"seed"}
    gated = [build.empty_model(OmegaConf.create(job)).gating is not None for job in jobs[::2]]
    assert gated == [False, True, True]


def test_a_recipe_can_be_left_out() -> None:
    values = composed(("model=ce", "dataset=msrvtt", "recipe=none", "experts=all", "selection=last"))
    assert values["dataset"]["batch_size"] == 128
    assert values["ties"] == "optimistic"


FILES = ("ckpt_path=", "similarity=", "captions=", "videos=", "task.labels=", "task.predictions=")


def commands() -> list[list[str]]:
    """The `python -m src.run` lines of the code blocks."""
    text = DOC.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"^python -m src\.run(.*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_command_of_the_documentation(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in (word.partition("=")[2] for word in words if word.startswith(FILES)):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    words = [word.replace("seed=0,1,2", "seed=0") for word in words]  # seeds change nothing of what is checked
    for values in compose.preflight(compose.parse(compose.task_keys_named(words))):
        if values["task"]["name"] == "fit":
            assert build.empty_model(OmegaConf.create(values)).input_spec.text_features


@pytest.mark.real
def test_the_stored_configurations_are_the_published_ones(shared_data: Path) -> None:
    path = shared_data.parent / "specs" / "collaborative_experts_recipes.json"
    experiments = json.loads(path.read_text(encoding="utf-8"))["experiments"]
    assert {name: dict(_flat(experiment)) for name, experiment in experiments.items()} == published()


def _flat(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}{key}|")
        else:
            yield f"{path}{key}", value


def of_published(recipe: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a published configuration says of the model, the data and the training, in our words."""
    args, data = "hyper|arch_args|", "recipe|data|"
    simple = recipe["hyper|arch"] == "MNNet"
    concat = bool(recipe.get(f"{args}concat_experts"))
    gating = recipe[f"{args}use_ce"] or "none"
    names = sorted(key.split("|")[2] for key in recipe if key.startswith("hyper|expert_dims|"))
    yield "experts", names
    yield "pooled", [recipe[f"hyper|expert_dims|{name}"][0] for name in names]
    yield "text", (recipe["hyper|experts|text_feat"], recipe["hyper|text_dim"])
    if not simple:
        yield "clusters", {n: recipe[f"{args}vlad_clusters|{n}"] for n in ("text", *VLAD) if n in (*names, "text")}
        yield "tokens", {n: recipe.get(f"{data}max_tokens|{n}") for n in ("text", *VLAD) if n in (*names, "text")}
        yield "ghosts", recipe[f"{args}ghost_clusters|text"]
    if not simple and not concat:
        project = gating != "none" or bool(recipe[f"{args}mimic_ce_dims"])
        yield "embeddings", [recipe[f"hyper|expert_dims|{name}"][1] for name in names]
        yield "gating", (gating, project, not recipe.get(f"{args}freeze_weights", False))
        yield "text pooling", recipe["hyper|experts|text_agg"]
    if gating != "none" and not simple:
        layers = ("num_g_layers", "num_h_layers")
        switches = ("use_mish", "use_bn_reason", "include_self")
        yield "layers", ([recipe[args + k] for k in layers], [bool(recipe[args + k]) for k in switches])
    yield "loss", (recipe["recipe|loss|args|margin"], recipe["recipe|loss|args|fix_norm"])
    yield "optimizer", [recipe[f"recipe|optimizer|{key}"] for key in ("type", "args|lr", "args|weight_decay")]
    yield "schedule", [recipe[f"recipe|lr_scheduler|args|{key}"] for key in ("step_size", "gamma")]
    yield "length", (recipe[f"{data}batch_size"], recipe["recipe|trainer|epochs"])
    split, selection = SPLITS[f"{recipe[f'{data}dataset_name']} {recipe[f'{data}split_name']}"]
    yield "split", split
    yield "selection", selection
    yield "captions", "first" if recipe.get(f"{data}restrict_train_captions") else _policy(recipe)
    few = recipe[f"{data}num_test_captions"] == 1 and split == "msrvtt_full"
    yield "validation captions", ("first" if few else _policy(recipe)) if selection == "val" else None


def _policy(recipe: dict[str, Any]) -> str:
    fused = recipe["recipe|data|fuse_captions"] or recipe["recipe|data|dataset_name"] == "YouCook2"
    return "paragraph" if fused else "all"


def of_ours(values: dict[str, Any], built: Any) -> Iterator[tuple[str, Any]]:
    """The same of one of our configurations, and of the model that it builds."""
    model, split = values["model"], values["split"]
    kind = model["_target_"].rpartition(".")[2]
    specs = built.pooling.specs
    yield "experts", [spec.store or spec.name for spec in specs]
    yield "pooled", built.pooling.output_dims
    yield "text", (values["text"]["store"].removeprefix("text."), values["text"]["dim"])
    if kind != "HowTo100M":
        read = {spec.name: spec for spec in specs if spec.temporal} | {"text": built.text_pooling.spec}
        yield "clusters", {name: model["vlad_clusters"][name] for name in read}
        yield "tokens", {name: spec.max_steps for name, spec in read.items()}
        yield "ghosts", model["text_ghost_clusters"]
        assert all(spec.pad == "max" or spec.max_steps is None for spec in read.values())
    if kind == "CollaborativeExperts":
        gating = "none" if built.gating is None else model["gating"].replace("auto", "pairwise")
        yield "embeddings", [gate.fc.out_features for gate in built.text_gates]
        yield "gating", (gating, model["project"], model["mixture_weights"])
        yield "text pooling", model["text_pooling"]
        if gating != "none":
            layers = [model[key] for key in ("g_layers", "h_layers")]
            yield "layers", (layers, [model[key] for key in ("mish", "reason_norm", "include_self")])
    yield "loss", (model["margin"], model["fix_norm"])
    optimizer = values["optimizer"]
    name = {"RangerFactory": "Ranger", "RAdamFactory": "RAdam"}[optimizer["_target_"].rpartition(".")[2]]
    yield "optimizer", [name, optimizer["lr"], optimizer["weight_decay"]]
    yield "schedule", [values["scheduler"]["step_size"], values["scheduler"]["gamma"]]
    yield "length", (values["dataset"]["batch_size"], values["trainer"]["max_epochs"])
    yield "split", split["name"]
    yield "selection", values["selection"]
    yield "captions", split["captions"]["train"]
    yield "validation captions", split["captions"]["val"] if values["selection"] == "val" else None


def check_unused(recipe: dict[str, Any], values: dict[str, Any]) -> None:
    """No published option is overlooked, and what all rows share is what ours do."""
    compared = re.compile(
        r"hyper\|(arch_args\|(use_ce|use_mish|use_bn_reason|num_[gh]_layers|include_self|mimic_ce_dims|concat_experts"
        r"|freeze_weights|ghost_clusters\|text|vlad_clusters\|(text|ocr|audio|speech))"
        r"|experts\|(text_feat|text_agg|ce_shared_dim)|text_dim|expert_dims\|.*)"
        r"|recipe\|(optimizer\|(type|args\|(lr|weight_decay))|loss\|args\|(margin|fix_norm)"
        r"|lr_scheduler\|args\|(step_size|gamma)|trainer\|epochs"
        r"|data\|(batch_size|split_name|fuse_captions|num_test_captions|restrict_train_captions"
        r"|max_tokens\|(text|ocr|audio|speech)))"
    )
    for key, value in recipe.items():
        if key in UNUSED:
            assert value in UNUSED[key], key
        else:
            assert compared.fullmatch(key) or MEANINGLESS.fullmatch(key), f"unknown option {key}"
    assert values["ties"] == "average"
    assert values["selection_tie"] == "last"
    assert values["optimized_metric"] == "val/t2v/GeoMean"
    assert values["dataset"]["train_samples"] == "one_per_video"
    assert values["dataset"]["drop_last"] is False
    assert values["trainer"]["gradient_clip_val"] is None
    assert values["trainer"]["check_val_every_n_epoch"] == 1
    for key, plain in {"keep_missing": False, "randomise": [], "test_caption_mode": "indep"}.items():
        assert values["model"].get(key, plain) == plain
