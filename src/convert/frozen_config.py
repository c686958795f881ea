"""Configurations of Frozen in Time and TextVR (`config.json`) in our words.

Each key is translated, named as not used with the reason, or refused; a key that neither publication reads is refused,
too. Numbers that a file leaves out are those that the published code then takes.

Source: m-bain/frozen-in-time @ e1f13e1 and callsys/TextVR @ ae16786: configs/, train.py, parse_config.py,
base/base_trainer.py, base/base_dataset.py, data_loader/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from src.convert.config_keys import Keys
from src.errors import UserError
from src.models.textvr import Mode

Config = Mapping[str, Any]
Model = Literal["frozen", "textvr"]

DATASETS = {
    "MSRVTT": "msrvtt",
    "LSMDC": "lsmdc",
    "WebVid": "webvid",
    "ConceptualCaptions3M": "cc3m",
    "TextVR": "textvr",
}
UNRELEASED = {"VITVR": "textvr", "MSVD": "msvd", "DIDEMO": "didemo", "YOUCOOK2SEG": "youcook2", "WEBVID": "webvid"}
"""TextVR's names before `_zyzanns` and `_zyzocranns`: annotation files of its authors' own, never released."""
FIRST_OF_FULL: dict[str, Any] = {
    **{"split": "msrvtt_full", "selection": "test"},
    **{"split.captions.test": "first", "split.expected.test.captions": 2990},
}
"""Of MSR-VTT's 2,990 test videos upstream reads the first caption, and it selects on them, too."""
CUTS: dict[str, dict[str, Any]] = {
    "jsfusion": {},
    "miech": {"split": "msrvtt_1kb_miech"},
    "full-val": {"split": "msrvtt_full", "selection": "val"},
    "full-test": FIRST_OF_FULL,
}
VERSIONS: dict[str, Mode] = {"video": "vision", "base": "vision", **{mode: mode for mode in get_args(Mode)}}
"""What TextVR's params.py may say, and what stands at the end of the names of its runs."""
METRICS = {"R1": "R1", "R5": "R5", "R10": "R10", "R50": "R50", "MedR": "MdR", "MeanR": "MnR"}
METRICS |= {"geometric_mean_R1-R5-R10": "GeoMean"}

TEXT, VIDEO = "arch.args.text_params", "arch.args.video_params"
DATA = "data_loader.args"
FRAMES = f"{DATA}.video_params"
_UNUSED = {
    "no published code reads it": (
        *(f"{VIDEO}.vit_init", f"{VIDEO}.loading", f"{TEXT}.input", f"{DATA}.text_params.input"),
        *(f"{FRAMES}.extraction_fps", f"{FRAMES}.extraction_res", f"{FRAMES}.stride"),
    ),
    "run folders are named by data set, model and time; tags=[…] keeps a name": ("name",),
    "the batch is that of all processes, whatever their number; trainer=ddp trainer.devices=…": ("n_gpu",),
    "a place on the machine where it ran; dataset.annotations_dir=… dataset.videos_dir=… are ours": (
        *(f"{DATA}.data_dir", f"{DATA}.metadata_dir"),
    ),
    "run folders are below runs; hydra.run.dir=…": ("trainer.save_dir",),
    "the best and the last checkpoint are kept": ("trainer.save_period",),
    "logger=… draws curves, log.txt keeps the lines": ("trainer.verbosity", "trainer.neptune", "trainer.tensorboard"),
    "a validation before training changes nothing; task=evaluate measures the start": ("trainer.init_val",),
    "report/index.html shows rankings": ("visualizer.",),
}
_OF_FRAMES = (f"{VIDEO}.", f"{FRAMES}.", f"{DATA}.reader", f"{DATA}.tsfm_params.", f"{DATA}.tsfm_split")
_TRANSFORMS = {
    **{"input_res": (224,), "center_crop": (256,), "randcrop_scale": ([0.5, 1.0],), "color_jitter": ([0, 0, 0],)},
    **{"norm_mean": ([0.485, 0.456, 0.406],), "norm_std": ([0.229, 0.224, 0.225],)},
}


@dataclass(frozen=True)
class Settings:
    """A configuration in our words.

    Attributes:
        words: of the command line to begin with: the experiment, and options of groups.
        values: dotted key -> value, complete: what the words do not set has to be added.
        notes: what was not used and why, and what was decided, for the log.
    """

    words: tuple[str, ...]
    values: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Data:
    """The data set.

    Attributes:
        name: option of our group.
        values: keys that its cut sets.
        by_textvr: whether the code of TextVR reads it, which changes frames in its own way.
    """

    name: str
    values: dict[str, Any]
    by_textvr: bool


def is_config(content: Any) -> bool:
    """Whether the content of a JSON file, or what a checkpoint holds, is such a configuration."""
    args: Any = content
    for name in ("arch", "args"):
        args = args.get(name) if isinstance(args, Mapping) else None
    return isinstance(args, Mapping) and "video_params" in args and "text_params" in args


def settings_of(config: Config, chosen: tuple[Model, Mode] | None = None) -> Settings:
    """The configuration in our words.

    Args:
        config: its content.
        chosen: the model and what it reads, where this is known from elsewhere: the file does not say it, TextVR's
            params.py does. None = by the name of the run.

    Raises:
        UserError: keys that are missing, unknown or ask for what does not exist here; all of them are listed.
    """
    keys = Keys(_with_one_loader(config))
    data = _data(keys)
    kind, mode = _variant(keys, data, chosen)
    for reason, names in _UNUSED.items():
        keys.unused(names, reason)
    if mode == "offline":
        keys.unused(("",), "model.mode=offline has no parameters, nothing is trained")
        words = ("task=evaluate", "task.random_weights=true", f"dataset={data.name}", "model=textvr")
        part = ["split=textvr_test"] if data.name == "textvr" else []
        return Settings((*words, *part), {"model.mode": mode, "ties": "average"}, keys.notes())
    if mode == "ocr":
        keys.unused(_OF_FRAMES, "model.mode=ocr has no video tower")
    values = data.values | ({"model.mode": mode} if kind == "textvr" else {})
    values |= _text(keys) | (_video(keys, data) if mode != "ocr" else {})
    values |= _loss(keys) | _optimizer(keys) | _loader(keys)
    callbacks, training = _training(keys, values["dataset.batch_size"])
    values |= training
    if kind == "textvr":
        values |= {"ties": "average"}
        values |= {} if mode == "vision" else {"model.ocr_rule": "upstream", "model.ocr_positions": "upstream"}
    experiment = f"textvr_{mode}" if data.name == "textvr" else f"frozen_{data.name}"
    groups = [f"model={kind}"] if (kind == "textvr") != (data.name == "textvr") else []
    groups += [f"split={values.pop('split')}"] if "split" in values else []
    return Settings((f"experiment={experiment}", *groups, *callbacks), values, keys.notes())


def _with_one_loader(config: Config) -> Config:
    """The configuration with the loader in place of a list of one."""
    loaders = config.get("data_loader")
    if not isinstance(loaders, list) or not loaders:
        return config
    if len(loaders) > 1:
        names = [str(Keys(one).leaves.get("args.dataset_name")) for one in loaders if isinstance(one, Mapping)]
        raise UserError(
            f"the configuration trains on {' and '.join(names)} in turn, expected one data_loader; train on one after "
            "the other: leave one in the list, convert it, and the other with load_checkpoint"
        )
    return {**config, "data_loader": loaders[0]}


def _data(keys: Keys) -> _Data:
    """The data set and its part, with notes where they are not those of the file."""
    name, cut = str(keys.get(f"{DATA}.dataset_name", "")), keys.get(f"{DATA}.cut", None)
    first, own, part = name.partition("_zyz")
    if own:
        known = {**UNRELEASED, "MSRVTT": "msrvtt"} if part.rpartition("_")[2] in ("official", "oneka") else UNRELEASED
        option = known.get(first)
        keys.decided.append(
            f"{name} is read from a file of TextVR's authors that was not released: the data set, its parts and "
            "captions are as we have them"
        )
    else:
        option = DATASETS.get(name)
    if option is None:
        keys.wrong.append(
            f"{DATA}.dataset_name={name} (expected one of {', '.join(DATASETS)}, or TextVR's MSRVTT_zyz…_official, "
            f"MSRVTT_zyz…_oneka, {', '.join(f'{one}_zyz…' for one in UNRELEASED)})"
        )
        return _Data("", {}, bool(own))
    if option == "msrvtt" and not own and cut != "split":
        return _Data(option, keys.choice(f"{DATA}.cut", CUTS) or {}, by_textvr=False)
    values = FIRST_OF_FULL if own and part.endswith("_official") else {}
    if option == "webvid":
        values = {"dataset.cut": "10M" if cut == "10M" else "2M"}
    if cut is not None and not (option == "webvid" and cut in ("2M", "10M")):
        keys.decided.append(f"{DATA}.cut={cut}: {name} is split there by a file of TextVR's; split={option} is ours")
    return _Data(option, values, bool(own) or cut == "split" or name == "TextVR")


def _variant(keys: Keys, data: _Data, chosen: tuple[Model, Mode] | None) -> tuple[Model, Mode]:
    """The model and what it reads: as chosen, by the last version in the name of the run, or as TextVR ships it."""
    keys.only("arch.type", "FrozenInTime")
    words = str(keys.leaves.get("name", "")).replace("-", "_").split("_")
    named = [VERSIONS[word] for word in words if word in VERSIONS] if data.by_textvr else []
    if chosen is not None:  # our experiments of TextVR's data take its own class for the video alone, too
        return ("textvr" if data.name == "textvr" else chosen[0]), chosen[1]
    mode: Mode = named[-1] if named else "fusion" if data.name == "textvr" else "vision"
    kind: Model = "textvr" if data.name == "textvr" or mode != "vision" else "frozen"
    if data.by_textvr:
        why = f"the name {keys.get('name')} says so" if named else "nothing in the file says it"
        keys.decided.append(f"it trains mode={mode}: {why}; add model=frozen, or model=textvr model.mode=…, to choose")
    if keys.leaves.get(f"{DATA}.cut") == "split" and mode == "vision":
        kind = "textvr"  # whose frames are TextVR's
    return kind, mode


def _text(keys: Keys) -> dict[str, Any]:
    """The text tower and the projections."""
    name = keys.get(f"{TEXT}.model")
    if name is not None and not str(name).startswith(("distilbert", "bert")):
        keys.wrong.append(f"{TEXT}.model={name} (expected a name that begins with distilbert or bert)")
    keys.only(f"{TEXT}.pretrained", True)
    checkpoint = keys.get("arch.args.load_checkpoint", None)
    values = {
        "model.text_model": name,
        "model.projection": keys.choice("arch.args.projection", {"minimal": "minimal", "": "none"}, "minimal"),
        "model.projection_dim": keys.number("arch.args.projection_dim", 256, least=1),
        "model.load_temporal": keys.choice(
            "arch.args.load_temporal_fix", {how: how for how in ("zeros", "interp", "bilinear")}, "zeros"
        ),
        "model.pretrained": checkpoint or None,
    }
    longest = [
        keys.number(f"{place}.max_length", least=1)
        for place in (TEXT, f"{DATA}.text_params")
        if f"{place}.max_length" in keys.leaves
    ]
    return values | ({"model.max_words": longest[0]} if longest else {})


def _video(keys: Keys, data: _Data) -> dict[str, Any]:
    """The video tower and its frames."""
    keys.only(f"{VIDEO}.model", "SpaceTimeTransformer")
    keys.only(f"{VIDEO}.attention_style", "frozen-in-time")
    places, read = keys.number(f"{VIDEO}.num_frames", 4, least=1), keys.number(f"{FRAMES}.num_frames", least=1)
    if places is not None and read is not None and read != places:
        if read > places:
            keys.wrong.append(f"{FRAMES}.num_frames={read} (expected at most those of {VIDEO}, {places})")
        keys.decided.append(
            f"{VIDEO}.num_frames={places}, but {read} are read: model.num_frames={read}, as further positions get no "
            "gradient; a later model.num_frames=… starts them as model.load_temporal says"
        )
    keys.only(f"{FRAMES}.input_res", 224)
    weights = {True: "orig_in21k_ft_in1k", False: None}
    values = {
        "model.vit": keys.choice(
            f"{VIDEO}.arch_config", {"base_patch16_224": "vit_base_patch16_224"}, "base_patch16_224"
        ),
        "model.vit_weights": keys.choice(f"{VIDEO}.pretrained", weights),
        "model.time_init": keys.choice(f"{VIDEO}.time_init", {"zeros": "zeros", "rand": "rand"}, "zeros"),
        "model.num_frames": read,
    }
    if data.by_textvr:
        keys.unused((f"{DATA}.tsfm_params.", f"{DATA}.tsfm_split"), "TextVR's code fixes how frames are changed")
        keys.unused((f"{FRAMES}.loading",), "a video that cannot be read is left out and counted")
        keys.unused((f"{DATA}.reader",), "decord reads frames; dataset.backend=pyav is the other reader")
        return values
    for name, allowed in _TRANSFORMS.items():
        keys.only(f"{DATA}.tsfm_params.{name}", *allowed)
    plain = keys.choice(f"{DATA}.tsfm_split", {None: False, "train": False, "val": True, "test": True}, None)
    values |= {"model.augment": "none"} if plain else {}
    loading = keys.get(f"{FRAMES}.loading", "strict")
    if loading != "strict":
        values["split.subset"] = "available"
        keys.decided.append(
            f"{FRAMES}.loading={loading}: files that are missing or broken are left out and counted, not black"
        )
    return values | _reader(keys, data)


def _reader(keys: Keys, data: _Data) -> dict[str, Any]:
    if data.name == "cc3m":
        keys.unused((f"{DATA}.reader",), "pictures are read by Pillow, there as well")
        return {}
    if keys.leaves.get(f"{DATA}.reader") == "cv2":
        keys.unused((f"{DATA}.reader",), "decord takes the frames asked for, cv2 there those before them")
        return {}
    ours = keys.choice(f"{DATA}.reader", {"decord": None, "av": "pyav", "cv2": None}, "decord")
    return {"dataset.backend": ours} if ours else {}


def _loader(keys: Keys) -> dict[str, Any]:
    """Batches and captions."""
    keys.only("data_loader.type", "TextVideoDataLoader")
    keys.only(f"{DATA}.shuffle", True)
    keys.only(f"{DATA}.subsample", 1)
    keys.only(f"{DATA}.sliding_window_stride", -1)  # test.py's -s: task.window_stride
    keys.only(f"{DATA}.split", "train", "val")  # validation leaves its own in what checkpoints hold
    batch = keys.number(f"{DATA}.batch_size", 1, least=1)
    values = {"dataset.batch_size": batch, "dataset.eval_batch_size": batch}
    values["dataset.num_workers"] = keys.number(f"{DATA}.num_workers", 1, least=0)
    if keys.get(f"{DATA}.text_params.caption_sample", "rand") != "rand":
        values["split.captions.train"] = "first"
    return values


def _loss(keys: Keys) -> dict[str, Any]:
    names = {"NormSoftmaxLoss": "norm_softmax", "MaxMarginRankingLoss": "max_margin"}
    loss = keys.choice("loss.type", names)
    if loss == "norm_softmax":
        return {"model.loss": loss, "model.temperature": keys.number("loss.args.temperature", 0.05)}
    keys.only("loss.args.fix_norm", True)
    return {"model.loss": loss, "model.margin": keys.number("loss.args.margin", 1.0)}


def _optimizer(keys: Keys) -> dict[str, Any]:
    """AdamW of transformers 4, the only one that both publications use; no schedule."""
    keys.only("optimizer.type", "AdamW")
    keys.only("optimizer.args.correct_bias", True)
    betas = keys.get("optimizer.args.betas", [0.9, 0.999])
    if not (isinstance(betas, list) and len(betas) == 2 and all(isinstance(one, int | float) for one in betas)):
        keys.wrong.append(f"optimizer.args.betas={betas} (expected two numbers)")
    schedule = str(keys.leaves.get("lr_scheduler.type", ""))
    if schedule.startswith("get_"):
        keys.only("lr_scheduler.type", "get_constant_schedule")
    elif schedule:
        keys.unused(("lr_scheduler.",), "transformers has none of this name, and the published code goes on without")
    return {
        "optimizer.lr": keys.number("optimizer.args.lr", 1e-3),
        "optimizer.betas": betas,
        "optimizer.eps": keys.number("optimizer.args.eps", 1e-6),
        "optimizer.weight_decay": keys.number("optimizer.args.weight_decay", 0.0),
    }


def _training(keys: Keys, batch: int | None) -> tuple[list[str], dict[str, Any]]:
    """Options of the group callbacks, and values: epochs, their lengths, selection and early stop."""
    samples = keys.number("trainer.max_samples_per_epoch", least=1)
    values: dict[str, Any] = {"trainer.max_epochs": keys.number("trainer.epochs", least=1)}
    if samples is not None and batch is not None:
        if samples < batch:
            keys.wrong.append(f"trainer.max_samples_per_epoch={samples} (expected at least a batch, {batch})")
        values["trainer.limit_train_batches"] = samples // batch
    metrics = keys.get("metrics", [])
    if not isinstance(metrics, list) or not {"t2v_metrics", "v2t_metrics"}.issuperset(map(str, metrics)):
        keys.wrong.append(f"metrics={metrics} (expected t2v_metrics and v2t_metrics)")
    monitor, patience = str(keys.get("trainer.monitor", "off")), keys.get("trainer.early_stop", None)
    if monitor == "off":
        if patience is not None:
            keys.left.add("trainer.early_stop")
            keys.unused(("trainer.early_stop",), "without monitor nothing stops early")
        return ["callbacks=default"], values | {"selection": "last"}
    values |= {"optimized_metric": _monitored(keys, monitor), "selection_tie": "last"}
    if patience is None:
        return ["callbacks=default"], values
    keys.number("trainer.early_stop", least=0)
    return [], values | {"callbacks.early_stop.patience": patience + 1 if isinstance(patience, int) else None}


def _monitored(keys: Keys, monitor: str) -> str | None:
    """`min val_loss_0`, or the likes of `max val_0_t2v_metrics_R1`."""
    mode, _, metric = monitor.partition(" ")
    if (mode, metric) in (("min", "val_loss_0"), ("min", "val_loss")):
        return "val/loss"
    for direction in ("t2v", "v2t"):
        ours = METRICS.get(metric.removeprefix(f"val_0_{direction}_metrics_"))
        if ours and mode == ("min" if ours in ("MdR", "MnR") else "max") and f"_{direction}_" in metric:
            return f"val/{direction}/{ours}"
    keys.wrong.append(
        f"trainer.monitor={monitor} (expected off, min val_loss_0, or max val_0_t2v_metrics_R1 and its like)"
    )
    return None
