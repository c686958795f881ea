"""The experiments of InternVideo and of its plain-CLIP baselines have the flags of the published scripts.

The tables below are typed from train_*.sh, eval_*.sh, run_kc4_*_infer.sh and ret_*.sh of
OpenGVLab/InternVideo@3965eef, InternVideo1/Downstream/Video-Text-Retrieval.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from omegaconf import OmegaConf

from src.config import compose
from src.config.help import first_comment
from src.config.validate import CONF
from src.optim.schedules import warmup_cosine
from src.reports.published import all_rows
from src.tasks import build

DOC = CONF.parent / "docs" / "internvideo.md"
L14, B16, B32 = "ViT-L-14-quickgelu", "ViT-B-16-quickgelu", "ViT-B-32-quickgelu"
SETS = ("msrvtt", "msvd", "lsmdc", "activitynet", "didemo", "vatex")
BY_SECONDS = ("msvd", "activitynet")  # their loaders read with OpenCV, the others with decord
FROZEN = 13  # tensors of the tower that freeze_layer_num 0 stops


class Train(NamedTuple):
    """epochs, global batch, max_frames, coef_lr, mergeclip, num_thread_reader; max_frames of the *_infer.sh."""

    epochs: int
    batch: int
    frames: int
    coef_lr: float
    merge: bool
    readers: int
    infer_frames: int


TRAIN = {
    "msrvtt": Train(5, 128, 12, 4e-3, False, 4, 12),
    "msvd": Train(5, 64, 8, 2.5e-3, False, 8, 8),
    "lsmdc": Train(5, 64, 8, 2e-3, True, 8, 8),
    "activitynet": Train(30, 64, 64, 2e-3, False, 8, 64),
    "didemo": Train(5, 16, 32, 2e-3, False, 8, 32),
    "vatex": Train(5, 128, 8, 5e-3, False, 8, 8),
}
TOWER_LR = {"msrvtt": 4e-6, "msvd": 2.5e-6, "lsmdc": 2e-6, "activitynet": 2e-6, "didemo": 2e-6, "vatex": 5e-6}

# max_frames, batch_size_val, mergeweight (None: no mergeclip)
ZERO_SHOT: dict[str, tuple[int, int, float | None]] = {
    "msrvtt": (8, 16, 0.5),
    "msvd": (12, 32, 0.25),
    "lsmdc": (6, 32, 0.5),
    "activitynet": (16, 8, 0.5),
    "didemo": (32, 32, None),
    "vatex": (8, 128, 0.5),
}

# CLIP, lr, coef_lr, batch_size, batch_size_val, max_words, max_frames
BASELINE = {
    "msrvtt": (B32, 1e-3, 5e-3, 128, 128, 32, 12),
    "msvd": (B16, 1e-4, 1e-3, 128, 128, 32, 12),
    "lsmdc": (B16, 1e-4, 1e-3, 128, 128, 32, 12),
    "activitynet": (B16, 1e-4, 1e-3, 32, 64, 64, 64),
    "didemo": (B16, 1e-3, 1e-2, 64, 64, 64, 32),
    "vatex": (B16, 1e-4, 1e-3, 128, 128, 32, 12),
}
SPLIT = {
    "msrvtt": "msrvtt_1ka",
    "msvd": "msvd",
    "lsmdc": "lsmdc",
    "activitynet": "activitynet_val1",
    "didemo": "didemo",
    "vatex": "vatex_hgr",
}


@cache
def recipe(*words: str) -> dict[str, Any]:
    (values,) = compose.preflight(compose.parse(list(words)))
    return values


@cache
def parameters(name: str) -> tuple[tuple[str, torch.Tensor], ...]:
    """Name and tensor of all parameters, without values."""
    model = build.empty_model(OmegaConf.create(recipe(f"experiment={name}")))
    return tuple(model.named_parameters())


def groups(name: str) -> list[dict[str, Any]]:
    """Parameter groups of the optimiser over the trained parameters."""
    optimizer, _ = build.build_optimization(OmegaConf.create(recipe(f"experiment={name}")))
    return optimizer.build([(n, p) for n, p in parameters(name) if p.requires_grad], total_steps=10).param_groups


def input_of(values: dict[str, Any]) -> tuple[Any, ...]:
    """What becomes of a video: frames, rule, rate, place of the frames."""
    model = values["model"]
    return tuple(model[key] for key in ("num_frames", "sampling", "framerate", "frame_position"))


def rule(dataset: str) -> str:
    return "clip4clip" if dataset in BY_SECONDS else "internvideo"


def check_common(values: dict[str, Any], dataset: str) -> None:
    """What the scripts of all data sets and both models share."""
    assert (values["dataset"]["name"], values["split"]["name"]) == (dataset, SPLIT[dataset])
    assert values["seed"] == 42
    assert values["rescoring"]["_target_"].endswith("DualSoftmax")  # always reported beside the plain metrics
    assert values["rescoring"]["v2t"] == "upstream"
    assert values["compatibility"] == "clip4clip"
    model = values["model"]
    assert model["gather"] == "upstream"
    assert model["freeze_rule"] == "upstream"
    assert not model["same_video_positives"]
    assert model["head"]["_target_"].endswith(".MeanHead")


def check_training(values: dict[str, Any], epochs: int, batch: int) -> None:
    """BertAdam over warm-up and cosine, clipped twice; the last epoch is kept."""
    assert values["task"]["name"] == "fit"
    optimizer = values["optimizer"]
    assert optimizer["_target_"].endswith("BertAdamFactory")
    assert (optimizer["weight_decay"], optimizer["betas"], optimizer["eps"]) == (0.2, [0.9, 0.98], 1e-6)
    assert optimizer["max_grad_norm"] == values["trainer"]["gradient_clip_val"] == 1.0
    assert values["scheduler"]["_target_"].endswith("WarmupCosine")
    assert values["scheduler"]["warmup"] == 0.1  # of t_total = steps of all epochs
    assert values["selection"] == "last"
    assert values["trainer"]["max_epochs"] == epochs
    assert values["dataset"]["batch_size"] == batch
    assert values["dataset"]["train_samples"] == "all_captions"
    assert values["dataset"]["drop_last"]
    assert values["trainer"]["accumulate_grad_batches"] == 1
    assert values["model"]["freeze_layers"] == 0


@pytest.mark.parametrize("dataset", SETS)
def test_fine_tuning(dataset: str) -> None:
    flags, values = TRAIN[dataset], recipe(f"experiment=internvideo_{dataset}")
    check_common(values, dataset)
    check_training(values, flags.epochs, flags.batch)
    model = values["model"]
    assert (model["arch"], model["tower"], model["max_words"], model["padding"]) == (L14, "global", 77, "upstream")
    assert model["pretrained"].endswith("internvideo/InternVideo-MM-L-14.ckpt")
    assert (model["merge_clip"], model["merge_weight"]) == ("openai" if flags.merge else None, 0.5)
    assert input_of(values) == (flags.frames, rule(dataset), 1, 2)
    assert values["dataset"]["eval_batch_size"] == 16
    assert values["dataset"]["num_workers"] == flags.readers
    assert values["trainer"]["log_every_n_steps"] == 50
    assert values["optimizer"]["lr"] == 1e-3


@pytest.mark.parametrize("dataset", SETS)
def test_the_model_and_the_data_set_have_the_same_numbers_without_the_experiment(dataset: str) -> None:
    together = recipe("model=internvideo", f"dataset={dataset}")
    named = recipe(f"experiment=internvideo_{dataset}")
    assert together["model"] == named["model"] | {"merge_clip": None}  # a file of one's own stays as it is
    assert together["dataset"] == named["dataset"]
    without = recipe("model=internvideo", f"dataset={dataset}", "recipe=none", "selection=last")
    assert without["model"]["max_words"] != 77


@pytest.mark.parametrize("dataset", SETS)
def test_evaluation_of_a_fine_tuned_checkpoint(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("weights") / "best.ckpt"
    file.touch()
    values = recipe("task=evaluate", f"experiment=internvideo_{dataset}", f"ckpt_path={file}")
    assert input_of(values) == (TRAIN[dataset].infer_frames, rule(dataset), 1, 2)
    assert values["model"] == recipe(f"experiment=internvideo_{dataset}")["model"]


@pytest.mark.parametrize("dataset", SETS)
def test_zero_shot(dataset: str) -> None:
    frames, batch, weight = ZERO_SHOT[dataset]
    values = recipe(f"experiment=internvideo_{dataset}_zero_shot")
    assert values["task"]["name"] == "evaluate"
    check_common(values, dataset)
    model = values["model"]
    assert (model["arch"], model["tower"], model["max_words"], model["padding"]) == (L14, "global", 77, "upstream")
    assert model["merge_clip"] == (None if weight is None else "openai")
    assert weight is None or model["merge_weight"] == weight
    assert input_of(values) == (frames, rule(dataset), 1, 2)
    assert values["dataset"]["eval_batch_size"] == batch


@pytest.mark.parametrize("dataset", SETS)
def test_baseline(dataset: str) -> None:
    arch, lr, coef_lr, batch, batch_val, words, frames = BASELINE[dataset]
    values = recipe(f"experiment=clip4clip_{dataset}")
    check_common(values, dataset)
    check_training(values, 5, batch)
    model = values["model"]
    assert (model["arch"], model["pretrained"], model["max_words"]) == (arch, "openai", words)
    assert model["linear_patch"] == "2d"
    assert not model["head"]["normalise_frames"]  # where this copy differs from CLIP4Clip
    assert input_of(values) == (frames, rule(dataset), 1, 2)
    assert values["dataset"]["eval_batch_size"] == batch_val
    assert values["optimizer"]["lr"] == lr
    assert values["dataset"]["recipe"]["coef_lr"] == coef_lr


@pytest.mark.parametrize("dataset", SETS)
@pytest.mark.parametrize("model", ["internvideo", "clip4clip"])
def test_learning_rates_of_the_groups(model: str, dataset: str) -> None:
    """With averaged frames every parameter belongs to the tower: none has the rate that the scripts name."""
    expected = TOWER_LR[dataset] if model == "internvideo" else BASELINE[dataset][1] * BASELINE[dataset][2]
    found = groups(f"{model}_{dataset}")
    assert [group["lr"] for group in found] == [pytest.approx(expected)] * 2
    decay = {name: group["weight_decay"] for group in found for name in group["names"]}
    assert {decay[name] for name in decay if "bias" in name} == {0.0}
    assert {decay[name] for name in decay if "bias" not in name} == {0.2}  # weights of LayerNorm among them
    assert any("ln_" in name and value == 0.2 for name, value in decay.items())


def test_what_is_frozen() -> None:
    trained = {name: parameter.requires_grad for name, parameter in parameters("internvideo_msvd")}
    assert sum(not value for value in trained.values()) == FROZEN
    assert not any(trained[name] for name in trained if "visual_proj" in name or "temporal_cls_token" in name)
    assert all(trained[name] for name in trained if ".dec." in name or ".dpe." in name or "resblocks.0." in name)
    assert sum(p.numel() for n, p in parameters("internvideo_msvd")) == pytest.approx(478.1e6, rel=1e-4)
    assert sum(p.numel() for n, p in parameters("internvideo_msvd") if trained[n]) == pytest.approx(438.5e6, rel=1e-4)


def test_the_schedule_is_the_published_one() -> None:
    assert [warmup_cosine(x, 0.1) for x in (0.0, 0.05)] == [0.0, 0.5]
    assert warmup_cosine(0.1, 0.1) == pytest.approx(0.976, abs=5e-4)  # the cosine does not start again


@pytest.mark.parametrize("setting", ["fine-tuned", "zero-shot"])
@pytest.mark.parametrize("dataset", SETS)
def test_the_published_rows_stand_in_the_file(dataset: str, setting: str) -> None:
    suffix = "_zero_shot" if setting == "zero-shot" else ""
    path = CONF / "experiment" / f"internvideo_{dataset}{suffix}.yaml"
    rows = [row for row in all_rows() if (row.model, row.dataset, row.setting) == ("InternVideo", dataset, setting)]
    assert {SPLIT[dataset]} <= set(rows[0].splits)
    assert "published t2v" in first_comment(path)
    text = path.read_text()
    for row in rows:
        if row.source.startswith("authors"):  # those of the tables, also where two of them disagree
            for side in (row.t2v, row.v2t):
                assert "/".join(f"{side[key]:.1f}" for key in ("R1", "R5", "R10")) in text


def test_the_documented_commands_compose(tmp_path: Path) -> None:
    file = tmp_path / "FILE"
    file.touch()
    lines = [
        line for line in DOC.read_text().splitlines() if re.match(r"\| .*experiment=internvideo_\w+_zero_shot", line)
    ]
    commands = [words.replace("FILE", str(file)).split() for line in lines for words in re.findall("`([^`]+)`", line)]
    assert len(commands) == 4 * len(SETS)
    named = {word for words in commands for word in words if word.startswith("experiment=")}
    files = {
        path.stem for model in ("internvideo", "clip4clip") for path in (CONF / "experiment").glob(f"{model}_*.yaml")
    }
    assert named == {f"experiment={name}" for name in files - {"clip4clip_msrvtt_1ka"}}
    for words in commands:
        task = "evaluate" if "task=evaluate" in words or "zero_shot" in words[0] else "fit"
        assert recipe(*words)["task"]["name"] == task


def test_the_documented_flags_are_the_resolved_ones() -> None:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in DOC.read_text().splitlines()]
    rows = [row for row in cells if row[0] in SETS]
    training = [row for row in rows if "by " in row[-2]]
    assert {row[0]: (int(row[1]), int(row[2]), int(row[3]), row[4].split()[0], row[5]) for row in training} == {
        name: (*flags[:3], f"{flags.coef_lr:.1e}".replace(".0", "").replace("e-0", "e-"), reading)
        for name, flags in TRAIN.items()
        for reading in ["by seconds" if name in BY_SECONDS else "by frames"]
    }
    without = {row[0]: (int(row[1]), int(row[2]), row[3]) for row in rows if len(row) == 4 and row[1].isdigit()}
    assert without == {
        name: (frames, batch, "not merged" if weight is None else str(weight))
        for name, (frames, batch, weight) in ZERO_SHOT.items()
    }


def test_pretrained_is_short_for_that_of_the_model() -> None:
    words = ["task=evaluate", "model=clip4clip", "pretrained=openai", "model.head=meanP"]
    named = compose.nested_groups_named(words)
    assert named == ["task=evaluate", "model=clip4clip", "model.pretrained=openai", "model/head=meanP"]
