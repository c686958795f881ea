"""Configurations of Frozen in Time and TextVR become command lines; what they say is typed from the published files."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from src.config import compose
from src.config.validate import CONF
from src.convert.frozen_config import Settings, is_config, settings_of
from src.errors import UserError
from src.models.frozen import Frozen
from src.tasks import convert
from src.tasks.convert_config import composed, log_training, with_values

ONE = {"input_res": 224, "num_frames": 1, "loading": "lax"}
FOUR = {"extraction_fps": 25, "extraction_res": 256, "input_res": 224, "num_frames": 4, "stride": 1}
FULL = "split=msrvtt_full split.captions.test=first split.expected.test.captions=2990"
B64 = "dataset.batch_size=64 dataset.eval_batch_size=64"
MSRVTT_64 = f"{B64} trainer.limit_train_batches=140 callbacks.early_stop.patience=21"
READS = "ties=average model.ocr_rule=upstream model.ocr_positions=upstream"


class File(NamedTuple):
    """A published file: name, data set, cut, batch, epochs, max_samples_per_epoch, early_stop; the command line."""

    name: str
    dataset: str
    cut: str | None
    batch: int
    epochs: int
    samples: int
    early_stop: int
    command: str


FROZEN = {
    "msrvtt_4f_i21k": File(
        *("MSRVTTjsfusion_4f_stformer_pt-im21k", "MSRVTT", "jsfusion", 16, 100, 9_000, 10),
        "experiment=frozen_msrvtt",
    ),
    "webvid2m-pt-i2k": File(
        *("WebVid2M-1f-pti2k", "WebVid", "2M", 448, 100, 1_000_000, 10),
        "experiment=frozen_webvid split.subset=available dataset.batch_size=448 dataset.eval_batch_size=448 "
        "trainer.limit_train_batches=2232",
    ),
    "cc-pt-i2k": File(
        *("CC3M--1f-pti2k", "ConceptualCaptions3M", None, 8, 100, 1_000_000, 10),
        "experiment=frozen_cc3m split.subset=available dataset.batch_size=8 dataset.eval_batch_size=8 "
        "trainer.limit_train_batches=125000",
    ),
}
TEXTVR = {
    "TextVR_fusion": File("TextVR_fusion", "TextVR", "split", 64, 300, 20_000, 200, command="experiment=textvr_fusion"),
    "TextVR_vision": File(
        "TextVR_vision", "VITVR_zyzocranns", "split", 64, 100, 7_000, 10, command="experiment=textvr_vision"
    ),
    "TextVR_ocr": File(
        "VITVR_ocr_all_ocr_gg", "VITVR_zyzocranns", "split", 64, 50, 7_000, 30, command="experiment=textvr_ocr"
    ),
    "MSR-VTT_fusion": File(
        *("MSRVTT_fusion", "MSRVTT", "split", 64, 100, 9_000, 20),
        f"experiment=frozen_msrvtt model=textvr {MSRVTT_64} {READS}",
    ),
    "WebVid_fusion": File(
        *("WebVid_fusion", "WebVid", "split", 64, 100, 3_000_000, 100),
        f"experiment=frozen_webvid model=textvr model.num_frames=4 optimizer.lr=2e-05 {B64} "
        f"trainer.limit_train_batches=46875 callbacks.early_stop.patience=101 {READS}",
    ),
    "msvd": File("MSVD", "MSVD_zyzocranns", "jsfusion", 64, 100, 9_000, 20, command="experiment=frozen_msvd"),
    "didemo": File("DIDEMO", "DIDEMO_zyzanns", "jsfusion", 64, 100, 9_000, 10, command="experiment=frozen_didemo"),
    "youcook2": File(
        *("youcook2_fusion_ocr", "YOUCOOK2SEG_zyzocranns", "jsfusion", 64, 50, 9_000, 30),
        f"experiment=frozen_youcook2 model=textvr model.mode=ocr {READS}",
    ),
    "msrvtt_oneka": File(
        *("MSRVTT_oneka", "MSRVTT_zyzocranns_oneka", "jsfusion", 64, 100, 9_000, 20),
        f"experiment=frozen_msrvtt {MSRVTT_64}",
    ),
    "msrvtt_vision_oneka": File(
        *("MSRVTT_vision_oneka", "MSRVTT_zyzocranns_oneka", "jsfusion", 64, 100, 9_000, 20),
        f"experiment=frozen_msrvtt {MSRVTT_64}",
    ),
    "msrvtt_official": File(
        *("MSRVTT_official", "MSRVTT_zyzanns_official", "jsfusion", 64, 100, 9_000, 10),
        f"experiment=frozen_msrvtt {FULL} {B64} trainer.limit_train_batches=140",
    ),
}
PUBLISHED = FROZEN | TEXTVR


def content(file: File, **changes: Any) -> dict[str, Any]:
    """The file; in changes a dotted key has two underscores between its levels, and None takes the key out."""
    arch = {
        "video_params": {
            **{"model": "SpaceTimeTransformer", "arch_config": "base_patch16_224", "num_frames": 4},
            **{"pretrained": True, "time_init": "zeros"},
        },
        "text_params": {"model": "distilbert-base-uncased", "pretrained": True, "input": "text"},
        "projection": "minimal",
        "load_checkpoint": "",
    }
    frames = ONE if file in FROZEN.values() and file.dataset != "MSRVTT" else FOUR
    loader = {
        **{"dataset_name": file.dataset, "data_dir": "data/X", "shuffle": True, "num_workers": 16},
        **{"batch_size": file.batch, "split": "train", "subsample": 1, "text_params": {"input": "text"}},
        **({} if file.cut is None else {"cut": file.cut}),
        "video_params": dict(frames),
    }
    if file.dataset == "ConceptualCaptions3M":
        loader["reader"] = "cv2"
    config = {
        "name": file.name,
        "n_gpu": 4 if file in FROZEN.values() else 8,
        "arch": {"type": "FrozenInTime", "args": arch},
        "data_loader": {"type": "TextVideoDataLoader", "args": loader},
        "optimizer": {"type": "AdamW", "args": {"lr": 2e-5 if file.name == "WebVid_fusion" else 3e-5}},
        "loss": {"type": "NormSoftmaxLoss", "args": {}},
        "metrics": ["t2v_metrics", "v2t_metrics"],
        "trainer": {
            **{"epochs": file.epochs, "max_samples_per_epoch": file.samples, "early_stop": file.early_stop},
            **{"save_dir": "exps", "save_period": 5, "verbosity": 2, "monitor": "min val_loss_0", "neptune": False},
            "init_val": file in FROZEN.values(),
        },
        "visualizer": {"type": "", "args": {}},
    }
    for key, value in changes.items():
        *tables, last = key.split("__")
        table: Any = config
        for name in tables:
            table = table.setdefault(name, {})
        if value is None:
            del table[last]
        else:
            table[last] = value
    return config


def msrvtt(**changes: Any) -> dict[str, Any]:
    return content(FROZEN["msrvtt_4f_i21k"], **changes)


def words_of(settings: Settings) -> list[str]:
    return with_values(list(settings.words), settings.values)


def command(config: dict[str, Any], chosen: Any = None) -> str:
    return " ".join(words_of(settings_of(config, chosen)))


def leaves(table: dict[str, Any], start: str = "") -> list[str]:
    found = []
    for name, value in table.items():
        found += leaves(value, f"{start}{name}.") if isinstance(value, dict) else [f"{start}{name}"]
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files(name: str) -> None:
    file = PUBLISHED[name]
    words = words_of(settings_of(content(file)))
    assert " ".join(words) == file.command
    values = composed(tuple(words))
    dataset, trainer = values["dataset"], values["trainer"]
    assert (dataset["batch_size"], dataset["eval_batch_size"], dataset["num_workers"]) == (file.batch, file.batch, 16)
    assert (trainer["max_epochs"], trainer["limit_train_batches"]) == (file.epochs, file.samples // file.batch)
    assert values["callbacks"]["early_stop"]["patience"] == file.early_stop + 1
    assert (values["optimized_metric"], values["selection_tie"]) == ("val/loss", "last")
    assert values["optimizer"]["lr"] == (2e-5 if name == "WebVid_fusion" else 3e-5)
    assert values["optimizer"]["_target_"].endswith("HFAdamWFactory")
    assert values["scheduler"]["_target_"].endswith("Constant")
    assert (dataset["train_samples"] == "all_captions") == (dataset["name"] in ("webvid", "cc3m"))
    if values["model"].get("mode") != "ocr":
        assert values["model"]["num_frames"] == (1 if name in ("webvid2m-pt-i2k", "cc-pt-i2k") else 4)
        assert values["model"]["vit_weights"] == "orig_in21k_ft_in1k"
    reads = values["model"]["_target_"].endswith("TextVR")
    assert values["ties"] == ("average" if reads else "optimistic")
    assert values["model"]["resize"] == ("textvr" if reads else "frozen")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_key_counts(name: str) -> None:
    """Each key is named among those that are not used, or its loss or change is noticed."""
    config = content(PUBLISHED[name])
    settings = settings_of(config)
    unused = "\n".join(note for note in settings.notes if note.startswith("not used: "))
    for key in leaves(config):
        if f"{key}=" in unused:
            continue
        changed = copy.deepcopy(config)
        *tables, last = key.split(".")
        table: Any = changed
        for one in tables:
            table = table[one]
        table[last] = "odd"
        if refusal(changed):
            assert key in refusal(changed)
        else:
            assert settings_of(changed) != settings, key


def refusal(config: dict[str, Any]) -> str:
    try:
        settings_of(config)
    except UserError as error:
        return str(error)
    return ""


def test_reasons_are_given() -> None:
    notes = settings_of(content(TEXTVR["TextVR_fusion"])).notes
    for key in ("n_gpu=8", "trainer.save_dir=exps", "trainer.init_val=false", "data_loader.args.data_dir=data/X"):
        (note,) = (note for note in notes if key in note)
        assert note.startswith("not used: ")
        assert note.endswith(")")
    assert any(note.startswith("it trains mode=fusion: the name TextVR_fusion says so") for note in notes)
    assert any("split there by a file of TextVR's" in note for note in notes)


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        ({"data_loader__args__cut": "miech"}, "split=msrvtt_1kb_miech"),
        ({"data_loader__args__cut": "full-val"}, "split=msrvtt_full selection=val"),
        ({"data_loader__args__cut": "full-test"}, FULL),
        ({"data_loader__args__reader": "av"}, "dataset.backend=pyav"),
        ({"data_loader__args__reader": "decord"}, ""),
        ({"data_loader__args__split": "val"}, ""),  # as checkpoints have it
        ({"data_loader__args__tsfm_split": "test"}, "model.augment=none"),
        ({"data_loader__args__text_params__caption_sample": "first"}, "split.captions.train=first"),
        ({"data_loader__args__num_workers": None}, "dataset.num_workers=1"),
        ({"data_loader__args__video_params__num_frames": 1}, "model.num_frames=1"),
        ({"arch__args__text_params__max_length": 64}, "model.max_words=64"),
        ({"arch__args__text_params__model": "bert-base-uncased"}, "model.text_model=bert-base-uncased"),
        ({"arch__args__projection": ""}, "model.projection=none"),
        ({"arch__args__projection_dim": 512}, "model.projection_dim=512"),
        ({"arch__args__load_temporal_fix": "bilinear"}, "model.load_temporal=bilinear"),
        ({"arch__args__load_checkpoint": "cc-webvid2m-4f.pth.tar"}, "model.pretrained=cc-webvid2m-4f.pth.tar"),
        ({"arch__args__load_checkpoint": "my runs/it's.pth"}, r"model.pretrained='my runs/it\'s.pth'"),
        ({"arch__args__video_params__pretrained": False}, "model.vit_weights=null"),
        ({"arch__args__video_params__time_init": "rand"}, "model.time_init=rand"),
        ({"loss__args__temperature": 0.1}, "model.temperature=0.1"),
        ({"loss": {"type": "MaxMarginRankingLoss", "args": {"margin": 0.2}}}, "model.loss=max_margin model.margin=0.2"),
        ({"optimizer__args__lr": None}, "optimizer.lr=0.001"),
        (
            {"optimizer__args": {"lr": 3e-5, "betas": [0.9, 0.98], "eps": 1e-8, "weight_decay": 0.01}},
            "optimizer.betas=[0.9,0.98] optimizer.eps=1e-08 optimizer.weight_decay=0.01",
        ),
        ({"lr_scheduler": {"type": "get_constant_schedule", "args": {}}}, ""),
        ({"lr_scheduler": {"type": "StepLR", "args": {"step_size": 5}}}, ""),  # not in transformers: upstream has none
        ({"trainer__monitor": "off"}, "callbacks=default selection=last"),
        ({"trainer__early_stop": None}, "callbacks=default"),
        ({"trainer__monitor": "max val_0_t2v_metrics_R1"}, "optimized_metric=val/t2v/R1"),
        ({"trainer__monitor": "min val_0_v2t_metrics_MedR"}, "optimized_metric=val/v2t/MdR"),
        (
            {"trainer__monitor": "max val_0_t2v_metrics_geometric_mean_R1-R5-R10"},
            "optimized_metric=val/t2v/GeoMean",
        ),
    ],
)
def test_changed_options(changes: dict[str, Any], added: str) -> None:
    words = words_of(settings_of(msrvtt(**changes)))
    assert " ".join(words) == f"experiment=frozen_msrvtt {added}".strip()
    values = composed(tuple(words))  # Hydra reads the values as they were meant
    if "arch__args__load_checkpoint" in changes:
        assert values["model"]["pretrained"] == changes["arch__args__load_checkpoint"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch__type": "FrozenInTime_v2"}, r"arch\.type=FrozenInTime_v2 \(expected FrozenInTime\)"),
        ({"arch__args__video_params__attention_style": "frozen-in-time-2"}, "attention_style=frozen-in-time-2"),
        ({"arch__args__video_params__arch_config": "large_patch16_224"}, "arch_config=large_patch16_224"),
        ({"arch__args__text_params__model": "t5-small"}, r"text_params\.model=t5-small"),
        ({"arch__args__text_params__pretrained": False}, r"text_params\.pretrained=false \(expected true\)"),
        ({"arch__args__projection": "large"}, r"arch\.args\.projection=large \(expected minimal or ''\)"),
        ({"data_loader__args__dataset_name": "ImageDirectory"}, "dataset_name=ImageDirectory"),
        ({"data_loader__args__dataset_name": "MSRVTT_zyzocranns"}, "dataset_name=MSRVTT_zyzocranns"),
        ({"data_loader__args__cut": "public_server_val"}, "cut=public_server_val"),
        ({"data_loader__args__cut": None}, r"no data_loader\.args\.cut"),
        ({"data_loader__args__subsample": 0.5}, r"subsample=0\.5 \(expected 1\)"),
        ({"data_loader__args__shuffle": False}, r"shuffle=false \(expected true\)"),
        ({"data_loader__args__split": "test"}, r"split=test \(expected train or val\)"),
        ({"data_loader__args__sliding_window_stride": 12}, "sliding_window_stride=12"),
        ({"data_loader__args__tsfm_params__center_crop": 336}, r"center_crop=336 \(expected 256\)"),
        ({"data_loader__args__video_params__input_res": 288}, r"input_res=288 \(expected 224\)"),
        ({"data_loader__args__video_params__num_frames": 8}, r"num_frames=8 \(expected at most those of .*, 4\)"),
        ({"data_loader__args__batch_size": "16"}, r"batch_size=16 \(expected a whole number of at least 1\)"),
        ({"optimizer__type": "Adafactor"}, r"optimizer\.type=Adafactor \(expected AdamW\)"),
        ({"optimizer__args__betas": 0.9}, r"betas=0\.9 \(expected two numbers\)"),
        ({"lr_scheduler__type": "get_linear_schedule_with_warmup"}, "lr_scheduler.type=get_linear"),
        ({"loss__type": "CrossEntropy"}, r"loss\.type=CrossEntropy"),
        ({"loss": {"type": "MaxMarginRankingLoss", "args": {"fix_norm": False}}}, "fix_norm=false"),
        ({"metrics": ["mean_average_precision"]}, "metrics="),
        ({"trainer__max_samples_per_epoch": None}, r"no trainer\.max_samples_per_epoch"),
        ({"trainer__max_samples_per_epoch": 10}, r"max_samples_per_epoch=10 \(expected at least a batch, 16\)"),
        ({"trainer__monitor": "max val_0_t2v_metrics_MedR"}, "monitor=max val_0_t2v_metrics_MedR"),
        ({"trainer__gradient_clip": 1.0}, r"trainer\.gradient_clip=1\.0 \(unknown key\)"),
        ({"sampler": {"type": "balanced"}}, r"sampler\.type=balanced \(unknown key\)"),
    ],
)
def test_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings_of(msrvtt(**changes))


def test_all_that_is_wrong_is_listed() -> None:
    with pytest.raises(UserError, match=r"CrossEntropy.*; .*; .*clip=1 \(unknown key\): there is nothing like it"):
        settings_of(msrvtt(loss__type="CrossEntropy", trainer__clip=1, optimizer__type="SGD"))


def test_two_data_loaders() -> None:
    one, other = (content(FROZEN[name]) for name in ("cc-pt-i2k", "webvid2m-pt-i2k"))
    alone = one | {"data_loader": [one["data_loader"]]}
    assert settings_of(alone) == settings_of(one)
    both = one | {"data_loader": [one["data_loader"], other["data_loader"]]}
    with pytest.raises(UserError, match="trains on ConceptualCaptions3M and WebVid in turn, expected one data_loader"):
        settings_of(both)


@pytest.mark.parametrize(
    ("name", "cut", "chosen", "words"),
    [
        ("MSRVTT", "split", None, "experiment=frozen_msrvtt model=textvr model.mode=vision"),
        ("MSRVTT_fusion_video", "split", None, "experiment=frozen_msrvtt model=textvr model.mode=vision"),
        ("MSRVTT_fusion", "split", ("frozen", "vision"), "experiment=frozen_msrvtt"),
        ("MSRVTT_fusion", "split", ("textvr", "ocr"), "experiment=frozen_msrvtt model=textvr model.mode=ocr"),
        ("fusion", "jsfusion", None, "experiment=frozen_msrvtt"),  # Frozen in Time has no versions
        ("x", "jsfusion", ("textvr", "fusion"), "experiment=frozen_msrvtt model=textvr"),
    ],
)
def test_what_the_model_reads(name: str, cut: str, chosen: Any, words: str) -> None:
    ties = "ties=average" if "textvr" in words else ""
    reads = READS if "textvr" in words and "vision" not in words else ties
    assert command(msrvtt(name=name, data_loader__args__cut=cut), chosen) == f"{words} {reads}".strip()


def test_video_alone_on_the_data_of_textvr() -> None:
    config = content(TEXTVR["TextVR_vision"])
    assert command(config, ("frozen", "vision")) == command(config, ("textvr", "vision")) == command(config)


def test_nothing_is_trained_offline() -> None:
    assert command(msrvtt(), ("textvr", "offline")).startswith("task=evaluate task.random_weights=true dataset=msrvtt ")
    words = words_of(settings_of(content(TEXTVR["TextVR_fusion"], name="TextVR_fusion_offline")))
    values = composed(tuple(words))
    assert (values["task"]["name"], values["split"]["name"], values["model"]["mode"]) == (
        "evaluate",
        "textvr",
        "offline",
    )
    assert (values["ties"], values["task"]["random_weights"]) == ("average", True)


def test_other_configurations() -> None:
    assert is_config(msrvtt())
    assert not is_config({"arch": {"type": "CENet", "args": {"use_ce": True}}, "data_loader": {}})
    assert not is_config({"arch": None, "data_loader": {}})
    assert not is_config([1])


def cfg(source: Path, model: dict[str, Any]) -> Any:
    task = {"name": "convert", "source": str(source), "output": None, "format": "ours", "trust": False}
    return OmegaConf.create({"task": task, "model": model, "paths": {"run_dir": str(source.parent)}})


def test_task_prints_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "config.json"
    source.write_text(json.dumps(content(TEXTVR["TextVR_fusion"], arch__args__load_checkpoint="my runs/a.pth")))
    with caplog.at_level(logging.INFO):
        convert.run(cfg(source, {"_target_": "src.models.clip2video.Clip2Video"}))
    shell = """'model.pretrained='"'"'my runs/a.pth'"'"''"""
    assert capsys.readouterr().out == f"python -m src.run experiment=textvr_fusion {shell}\n"
    assert "not used: n_gpu=8 (" in caplog.text
    convert.run(cfg(source, {"_target_": "src.models.textvr.TextVR", "mode": "vision"}))
    assert " experiment=textvr_vision " in capsys.readouterr().out


def test_within_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task composes other words while Hydra runs it, and leaves Hydra as it was."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": {"runtime": {"output_dir": "here"}}}))
    own = HydraConfig.instance().cfg
    with initialize_config_dir(str(CONF), version_base="1.3"):
        running = GlobalHydra.instance().hydra
        (values,) = compose.preflight(compose.parse(["experiment=frozen_msvd"]))
        assert values["dataset"]["name"] == "msvd"
        assert GlobalHydra.instance().hydra is running
        assert HydraConfig.instance().cfg is own


def test_training_of_a_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    model = {"_target_": "src.models.frozen.Frozen"}
    with caplog.at_level(logging.INFO):
        log_training(msrvtt(data_loader__args__split="val"), model)
        log_training(msrvtt(optimizer__type="SGD"), model)
        log_training(None, model)
    told = [record.message for record in caplog.records if record.message.startswith("how it was trained")]
    assert told[0] == "how it was trained: python -m src.run experiment=frozen_msrvtt"
    assert told[1].startswith("how it was trained has no command line here: the configuration has optimizer.type=SGD")
    assert len(told) == 2


def test_a_checkpoint_tells_how_it_was_trained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"text_model": "videotext-tiny", "vit": "videotext-tiny", "projection_dim": 32}
    config = msrvtt(arch__args__projection_dim=32, data_loader__args__split="val")
    source = tmp_path / "checkpoint-epoch3.pth"
    torch.save(
        {"arch": "FrozenInTime", "epoch": 3, "state_dict": Frozen(**options).state_dict(), "config": config}, source
    )
    with caplog.at_level(logging.INFO):
        convert.run(cfg(source, {"_target_": "src.models.frozen.Frozen", "needs": ["frames"], **options}))
    assert (tmp_path / "checkpoint-epoch3.safetensors").is_file()
    told = "how it was trained: python -m src.run experiment=frozen_msrvtt model.projection_dim=32"
    assert [record.message for record in caplog.records if record.message.startswith("how ")] == [told]
    assert "not used: trainer.save_dir=exps (" in caplog.text
