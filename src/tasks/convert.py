"""task=convert: a foreign checkpoint to ours, and ours to safetensors, strictly checked against the model.

Features go another way: see `src.tasks.convert_features`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor

from src.convert.collaborative_experts_config import is_config, settings_of
from src.convert.dual_encoding import holds_vocabulary, read_vocabulary_words, vocabulary_pickle
from src.convert.formats import FORMATS, Family, family_of
from src.data.features.detect import holds_features
from src.data.features.store import file_sha256
from src.data.whole_file import write_whole
from src.errors import UserError
from src.models.base import RetrievalModule
from src.models.clip_retrieval import ClipRetrievalModule
from src.models.clip_tower import ClipTower, clip_state
from src.models.evl_tower import EvlTower
from src.models.evl_weights import knows_video
from src.models.vocabulary import read_vocabulary
from src.models.weights import check_fit, metadata_of, read_weights
from src.tasks.build import empty_model, plain
from src.tasks.convert_config import command_of, convert_config, log_training
from src.tasks.convert_features import convert_features
from src.tasks.convert_mask import convert_mask

log = logging.getLogger(__name__)
PUBLISHED = (".tar", ".pth", ".bin")
"""Endings of published files: Dual Encoding's model_best.pth.tar, collaborative-experts' trained_model.pth, and
pytorch_model.bin of CLIP4Clip and its descendants, a bare state dict."""


@dataclass(frozen=True)
class Found:
    """A checkpoint that was read.

    Attributes:
        family: what it is of.
        ours: its tensors under our names.
        extras: what it says beside them.
    """

    family: Family
    ours: Mapping[str, Tensor]
    extras: Mapping[str, Any]


def run(cfg: DictConfig) -> None:
    """Convert `task.source` and write `task.output` with a JSON that says what it is.

    A folder, or a file of features, becomes feature stores, a published vocabulary one of ours, and one of ours
    published ones, a published config.json a command line; nothing of the following concerns them.
    The model of the configuration (`model=…` and its options) is the contract: every tensor has to fit it.
    A bare CLIP archive is checked against its tower alone and keeps open_clip's names, ready for
    `model.pretrained=FILE`.

    Raises:
        UserError: no source, an unknown format, or tensors that do not fit; they are listed.
    """
    if cfg.task.source is not None and holds_vocabulary(Path(cfg.task.source)):
        return _convert_vocabulary(cfg, Path(cfg.task.source))
    if cfg.task.source is not None and cfg.task.source.endswith(".json"):
        return _convert_json(cfg, Path(cfg.task.source))
    if cfg.task.source is not None and holds_features(Path(cfg.task.source)):
        is_mask = cfg.task.output is not None and cfg.task.output.endswith(".json")
        return convert_mask(cfg) if is_mask else convert_features(cfg)
    source, output = _paths(cfg)
    state, rest = read_weights(source, trust=cfg.task.trust)
    family = family_of(state)
    beside: dict[str, Any] = {}
    if _is_bare_clip(state):
        tensors, kind = _convert_clip(empty_model(cfg), state, source), "clip"
    else:
        tensors, kind, beside = _convert_checkpoint(cfg, family, state, rest, source)
    facts = _facts(cfg, kind, source, tensors)
    if output.suffix in PUBLISHED:
        _write_published(output, family, tensors, (plain(cfg.model), beside.get("published", {})))
    else:
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        save_file(contiguous, partial := _partial(output), metadata=metadata_of(beside))
        partial.replace(output)
    _write_facts(output, facts)
    log.info("converted %s tensors (%s parameters)", facts["tensors"], f"{facts['parameters']:,}")
    log.info("weights: %s", output)


def _convert_checkpoint(
    cfg: DictConfig, family: Family, state: Mapping[str, Tensor], rest: dict[str, Any], source: Path
) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """The tensors under the names of `task.format`, what they are, and what stands beside them in a file of ours."""
    # Some have the same names here and there; a trainer's file says what it is.
    is_ours = family.is_ours(state) and not {"arch", "config"} <= rest.keys()
    ours = dict(state) if is_ours else family.from_upstream(state)
    extras = rest.get("published", {}) if is_ours else family.extras(state, rest)
    model = empty_model(cfg)
    _check_model(model, plain(cfg.model), Found(family, ours, extras), source)
    fits, changes = family.fitted(model, ours, plain(cfg.model))
    beside = _beside(model, fits, rest, str(source)) | ({"published": extras} if extras else {})
    ours = {name: fits[name] for name in model.state_dict()}  # files may have them in any order
    for note in [*changes, *(() if is_ours else family.left_out(state, rest))]:
        log.info("%s", note)
    if not is_ours:
        log_training(extras.get("config"), plain(cfg.model))
    return *_exported(cfg.task.format, family, ours), beside


def _paths(cfg: DictConfig) -> tuple[Path, Path]:
    if cfg.task.source is None:
        raise UserError(
            "task=convert found no task.source=, expected a checkpoint or features; add task.source=FILE or FOLDER"
        )
    if cfg.task.format not in FORMATS:
        raise UserError(f"task.format={cfg.task.format}, expected one of {', '.join(FORMATS)} for a checkpoint")
    source = Path(cfg.task.source)
    name = cfg.task.output or Path(cfg.paths.run_dir) / f"{source.stem}.safetensors"
    output = Path(name)
    if output.suffix != ".safetensors" and (cfg.task.format == "ours" or output.suffix not in PUBLISHED):
        raise UserError(
            f"task.output={output}, expected a name that ends in .safetensors, or in .pth.tar, .pth or .bin with a "
            "published task.format; rename it"
        )
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"task.output={output} is the source itself; give another name")
    if not source.exists():
        raise UserError(f"task.source={source} not found, expected a checkpoint or features; check the path")
    return source, output


def _is_bare_clip(state: Mapping[str, Tensor]) -> bool:
    return "visual.class_embedding" in {name.removeprefix("module.") for name in state} and not knows_video(state)


def _convert_clip(model: RetrievalModule, state: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    if not (isinstance(model, ClipRetrievalModule) and isinstance(model.tower, ClipTower | EvlTower)):
        raise UserError(f"{source} is a CLIP, the chosen model has no CLIP tower; choose model=clip4clip")
    tensors = clip_state(state)
    model.tower.check_file(tensors, str(source))
    return tensors


def _check_model(model: RetrievalModule, chosen: dict[str, Any], found: Found, source: Path) -> None:
    """Raise UserError where the model is not that of the file, with the file's own configuration if it has one."""
    try:
        found.family.check_inputs(model, found.ours, found.extras, str(source))
        told = found.family.options_of(found.ours) | found.family.options_told(found.extras)
        _check_options(found.family.resolved(chosen), told, source)
    except UserError as error:
        if not found.extras.get("config"):
            raise
        try:
            words = " ".join(command_of(settings_of(found.extras["config"])))
        except UserError:  # it has no counterpart here: what does not fit is all that can be said
            raise error from None
        raise UserError(f"{error} (its own configuration: {words})") from None


def _check_options(chosen: Mapping[str, Any], told: Mapping[str, Any], source: Path) -> None:
    """What the file tells of the model's options, in the words of the command line; options it lacks do not count."""
    wrong = []
    for key, value in told.items():
        *tables, name = key.split(".")
        table: Any = chosen
        for one in tables:
            table = table.get(one) if isinstance(table, Mapping) else None
        if not isinstance(table, Mapping) or (name not in table and not tables):
            continue
        allowed = value if isinstance(value, tuple) else (value,)
        if name not in table or table[name] not in allowed:
            wrong.append(f"{'' if name in table else '+'}model.{key}={_typed(allowed[0])}")
    if wrong:
        raise UserError(f"{source} was made with other options; add {' '.join(wrong)}")


def _beside(model: RetrievalModule, ours: Mapping[str, Tensor], rest: dict[str, Any], source: str) -> dict[str, Any]:
    """What a file of ours holds beside the tensors, after both were checked against the model."""
    model.on_load_checkpoint({**rest, "state_dict": dict(ours)})
    check_fit(model, ours, source)
    beside: dict[str, Any] = {}
    model.on_save_checkpoint(beside)
    return beside


def _typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def _exported(name: str, family: Family, ours: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors under the names of `task.format`, and what they are."""
    if name == "ours":
        return dict(ours), "videotext"
    if name not in family.exports:
        known = ", ".join(("ours", *family.exports))
        raise UserError(f"task.format={name}, expected one of {known} for {family.name}")
    return family.exports[name](ours), name


def _write_published(
    output: Path, family: Family, tensors: Mapping[str, Tensor], known: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """`known`: the model's options, and the extras of the file from which the tensors came."""
    if family.content is None and output.suffix != ".bin":
        raise UserError(f"task.output={output}: {family.name} publish bare state dicts; name it .bin or .safetensors")
    partial = _partial(output)
    torch.save(dict(tensors) if family.content is None else family.content(tensors, *known), partial)
    partial.replace(output)


def _convert_vocabulary(cfg: DictConfig, source: Path) -> None:
    """A published vocabulary to `vocabulary.json`."""
    words = read_vocabulary_words(source)
    output = Path(cfg.task.output or Path(cfg.paths.run_dir) / "vocabulary.json")
    if output.suffix != ".json":
        raise UserError(f"task.output={output}, expected a name that ends in .json for a vocabulary; rename it")
    output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"source": source.name, "source_sha256": file_sha256(source), "words": words}
    write_whole(output, json.dumps(facts, indent=0, ensure_ascii=False).encode() + b"\n")
    log.info("converted %s words", f"{len(words):,}")
    log.info("vocabulary: %s", output)


def _convert_json(cfg: DictConfig, source: Path) -> None:
    """A published configuration to a command line, or a vocabulary of ours to published ones."""
    if source.is_file() and is_config(_json(source)):
        return convert_config(source, plain(cfg.model))
    return _export_vocabulary(cfg, source)


def _json(source: Path) -> Any:
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{source} cannot be read as JSON ({error}); check the file") from None


def _export_vocabulary(cfg: DictConfig, source: Path) -> None:
    """`vocabulary.json` to published vocabularies, below a folder."""
    words = read_vocabulary(source).words
    folder = Path(cfg.task.output or Path(cfg.paths.run_dir) / "vocabulary")
    if folder.suffix or cfg.task.format != "upstream":
        raise UserError(
            f"task.source={source} is a vocabulary of ours, found task.format={cfg.task.format} task.output={folder}; "
            "expected task.format=upstream and a folder, which gets bow/word_vocab_5.pkl and rnn/word_vocab_5.pkl"
        )
    for style in ("bow", "rnn"):
        path = folder / style / "word_vocab_5.pkl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, vocabulary_pickle(words, style))
    log.info("converted %s words", f"{len(words):,}")
    log.info("vocabularies: %s", folder)


def _partial(output: Path) -> Path:
    """Where the file is written before it gets its name: it is either complete or absent."""
    output.parent.mkdir(parents=True, exist_ok=True)
    return output.with_name(f".{output.name}.{os.getpid()}.part")


def _facts(cfg: DictConfig, kind: str, source: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "kind": kind,
        "model": plain(cfg.model),
        "source": source.name,
        "source_sha256": file_sha256(source),
        "tensors": len(tensors),
        "parameters": sum(value.numel() for value in tensors.values()),
    }


def _write_facts(output: Path, facts: Mapping[str, object]) -> None:
    """The facts beside the weights."""
    facts_file = output.with_suffix(".json")
    facts_file.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
