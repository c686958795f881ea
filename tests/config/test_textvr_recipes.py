"""The experiments of Frozen in Time and TextVR have the numbers of the published configurations.

The tables below are typed from the JSON files of m-bain/frozen-in-time@e1f13e1 and callsys/TextVR@ae16786.
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
from src.reports.published import all_rows
from src.tasks import build

DOC = CONF.parent / "docs" / "textvr.md"


class Train(NamedTuple):
    """batch_size, epochs, max_samples_per_epoch, early_stop, frames that are read; what selects the checkpoint."""

    batch: int
    epochs: int
    samples: int
    early_stop: int
    frames: int
    selection: str


# LSMDC has no published configuration: MSR-VTT's. WebVid and CC3M: the files say 448 and 8, the author ran 96 (#39).
FROZEN = {
    "msrvtt": Train(16, 100, 9_000, 10, 4, "test"),
    "msvd": Train(64, 100, 9_000, 20, 4, "val"),
    "didemo": Train(64, 100, 9_000, 10, 4, "val"),
    "lsmdc": Train(16, 100, 9_000, 10, 4, "val"),
    "youcook2": Train(64, 50, 9_000, 30, 4, "test"),
    "webvid": Train(96, 100, 1_000_000, 10, 1, "test"),
    "cc3m": Train(96, 100, 1_000_000, 10, 1, "test"),
}
SPLIT = {"msrvtt": "msrvtt_1ka", "youcook2": "youcook2_clips"}
TEXTVR = {
    "fusion": Train(64, 300, 20_000, 200, 4, "test"),
    "vision": Train(64, 100, 7_000, 10, 4, "test"),
    "ocr": Train(64, 50, 7_000, 30, 4, "test"),
}
EXPERIMENTS = {f"frozen_{name}": flags for name, flags in FROZEN.items()}
EXPERIMENTS |= {f"textvr_{mode}": flags for mode, flags in TEXTVR.items()}


@cache
def recipe(*words: str) -> dict[str, Any]:
    (values,) = compose.preflight(compose.parse(list(words)))
    return values


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_training(name: str) -> None:
    flags, values = EXPERIMENTS[name], recipe(f"experiment={name}")
    dataset, model, trainer = values["dataset"], values["model"], values["trainer"]
    assert values["task"]["name"] == "fit"
    assert values["selection"] == flags.selection
    # upstream: "min val_loss_0", an equal loss improves, stop after more than early_stop epochs
    assert (values["optimized_metric"], values["selection_tie"]) == ("val/loss", "last")
    early_stop = values["callbacks"]["early_stop"]
    assert (early_stop["monitor"], early_stop["ties"]) == ("val/loss", "last")
    assert early_stop["patience"] == flags.early_stop + 1
    assert (dataset["batch_size"], trainer["max_epochs"]) == (flags.batch, flags.epochs)
    assert trainer["limit_train_batches"] == flags.samples // flags.batch
    assert (trainer["gradient_clip_val"], trainer["accumulate_grad_batches"]) == (None, 1)
    assert trainer["precision"] == "32-true"
    assert not dataset["drop_last"]
    assert not dataset["unique_videos_in_batch"]
    assert dataset["num_workers"] == 16
    one_each = dataset["name"] in ("webvid", "cc3m")
    assert dataset["train_samples"] == ("all_captions" if one_each else "one_per_video")
    assert model["num_frames"] == flags.frames


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_model_and_optimiser(name: str) -> None:
    values = recipe(f"experiment={name}")
    model, optimizer = values["model"], values["optimizer"]
    assert optimizer["_target_"].endswith("HFAdamWFactory")
    assert (optimizer["lr"], optimizer["betas"]) == (3e-5, [0.9, 0.999])
    assert (optimizer["eps"], optimizer["weight_decay"], optimizer["rules"]) == (1e-6, 0.0, [])
    assert values["scheduler"]["_target_"].endswith("Constant")
    assert (model["text_model"], model["vit"]) == ("distilbert-base-uncased", "vit_base_patch16_224")
    assert (model["projection"], model["projection_dim"], model["time_init"]) == ("minimal", 256, "zeros")
    assert (model["loss"], model["temperature"]) == ("norm_softmax", 0.05)
    assert (model["load_temporal"], model["sampling"], model["gather"]) == ("zeros", "frozen", "exact")
    assert model["vit_weights"] == "orig_in21k_ft_in1k"
    assert not model["same_video_positives"]


@pytest.mark.parametrize("dataset", FROZEN)
def test_frozen(dataset: str) -> None:
    values = recipe(f"experiment=frozen_{dataset}")
    assert values["model"]["_target_"].endswith(".Frozen")
    assert (values["dataset"]["name"], values["split"]["name"]) == (dataset, SPLIT.get(dataset, dataset))
    assert (values["model"]["resize"], values["model"]["augment"]) == ("frozen", "frozen")
    assert values["ties"] == "optimistic"
    # The numbers are those of the recipe, which model and data set take by themselves.
    alone = recipe("model=frozen", f"dataset={dataset}", f"selection={values['selection']}")
    assert {**alone, "callbacks": None} == {**values, "callbacks": None}


@pytest.mark.parametrize("mode", TEXTVR)
def test_textvr(mode: str) -> None:
    values = recipe(f"experiment=textvr_{mode}")
    model = values["model"]
    assert (model["_target_"].rpartition(".")[2], model["mode"]) == ("TextVR", mode)
    assert (values["dataset"]["name"], values["split"]["name"]) == ("textvr", "textvr")
    assert (model["resize"], model["augment"]) == ("textvr", "textvr")
    assert (model["ocr_words"], model["ocr_rule"], model["ocr_positions"]) == (200, "upstream", "upstream")
    assert values["ties"] == "average"


def test_textvr_by_its_name_alone_is_what_frozen_is() -> None:
    """Wherever there is no recipe: the same start, optimiser and options of what both have."""
    words = ("dataset=didemo", "recipe=none")
    frozen, textvr = (recipe(f"model={name}", *words) for name in ("frozen", "textvr"))
    assert textvr["optimizer"] == frozen["optimizer"]
    assert textvr["scheduler"] == frozen["scheduler"]
    of_data = {"num_frames", "max_words"}
    own = {"_target_", "resize", "augment"}
    shared = (frozen["model"].keys() & textvr["model"].keys()) - of_data - own
    assert frozen["model"].keys() == shared | of_data | own
    assert {key: textvr["model"][key] for key in shared} == {key: frozen["model"][key] for key in shared}
    assert recipe("model=textvr", "optimizer=adam", *words)["optimizer"]["_target_"].endswith("AdamFactory")


def test_four_frames_after_one() -> None:
    words = ("model.num_frames=4", "model.pretrained=one.ckpt", "dataset.batch_size=24")
    values = recipe("experiment=frozen_webvid", *words, "trainer.limit_train_batches=41666")
    assert (values["model"]["num_frames"], values["model"]["load_temporal"]) == (4, "zeros")
    assert 41_666 == 1_000_000 // 24


def own_clips_in_published_size() -> tuple[str, ...]:
    """What the head of the experiment tells to type; the test gives the folder of the text model itself."""
    text = (CONF / "experiment" / "textvr_folder.yaml").read_text(encoding="utf-8")
    told = re.findall(r"\S+=\S+", text.partition("Published size:")[2].partition("defaults:")[0])
    words = [word for word in told if not word.endswith(("=FOLDER", "=FILE"))]
    assert len(words) > 5
    return ("experiment=textvr_folder", *words)


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        (("experiment=frozen_msrvtt",), 180_925_184),
        (("experiment=textvr_vision",), 180_925_184),
        (("experiment=textvr_fusion",), 249_269_760),
        (own_clips_in_published_size(), 249_269_760),
    ],
)
def test_published_number_of_parameters(words: tuple[str, ...], parameters: int, tmp_path: Path) -> None:
    # DistilBERT in its published size, without weights and vocabulary.
    (tmp_path / "config.json").write_text('{"model_type": "distilbert", "vocab_size": 30522, "dim": 768}')
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    model = build.empty_model(OmegaConf.create(recipe(*words, f"model.text_model={tmp_path}")))
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == parameters
    assert all(parameter.device == torch.device("meta") for parameter in model.parameters())


def test_every_experiment_is_documented() -> None:
    text = DOC.read_text(encoding="utf-8")
    for name in EXPERIMENTS:
        assert f"experiment={name}`" in text
        assert len(first_comment(CONF / "experiment" / f"{name}.yaml")) > 10


def test_published_rows() -> None:
    rows = [row for row in all_rows() if row.model == "Frozen"]
    assert {(row.dataset, row.splits[0], row.setting) for row in rows} == {
        ("msrvtt", "msrvtt_1ka", "fine-tuned"),
        ("msrvtt", "msrvtt_1ka", "zero-shot"),
    }
    assert {row.t2v["R1"] for row in rows} == {31.0, 28.9, 28.8, 21.7, 17.8}
    assert not [row for row in all_rows() if row.model == "TextVR"]  # none could be read
