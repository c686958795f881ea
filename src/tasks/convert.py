"""task=convert: a foreign checkpoint to ours, and ours to safetensors, strictly checked against the model.

Features go another way: see `src.tasks.convert_features`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor

from src.convert.dual_encoding import holds_vocabulary, read_vocabulary_words
from src.convert.formats import FORMATS, Family, family_of
from src.data.features.detect import holds_features
from src.data.features.store import file_sha256
from src.data.whole_file import write_whole
from src.errors import UserError
from src.models.base import RetrievalModule
from src.models.clip_retrieval import ClipRetrievalModule
from src.models.clip_tower import clip_state
from src.models.weights import check_fit, read_state_dict
from src.tasks.build import empty_model, plain
from src.tasks.convert_features import convert_features

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> None:
    """Convert `task.source` and write `task.output` with a JSON that says what it is.

    A folder, or a file of features, becomes feature stores, and a published vocabulary one of ours; nothing of the
    following concerns them.
    The model of the configuration (`model=…` and its options) is the contract: every tensor has to fit it.
    A bare CLIP archive is checked against its tower alone and keeps open_clip's names, ready for
    `model.pretrained=FILE`.

    Raises:
        UserError: no source, an unknown format, or tensors that do not fit; they are listed.
    """
    if cfg.task.source is not None and holds_vocabulary(Path(cfg.task.source)):
        return _convert_vocabulary(cfg, Path(cfg.task.source))
    if cfg.task.source is not None and holds_features(Path(cfg.task.source)):
        return convert_features(cfg)
    source, output = _paths(cfg)
    state = read_state_dict(source, trust=cfg.task.trust)
    family = family_of(state)
    if _is_bare_clip(state):
        tensors, kind = _convert_clip(empty_model(cfg), state, source), "clip"
    else:
        ours = dict(state) if family.is_ours(state) else family.from_upstream(state)
        _check_options(cfg, family.options_of(ours), source)
        check_fit(empty_model(cfg), ours, str(source))
        tensors, kind = _exported(cfg.task.format, family, ours)
    facts = {
        "kind": kind,
        "model": plain(cfg.model),
        "source": source.name,
        "source_sha256": file_sha256(source),
        "tensors": len(tensors),
        "parameters": sum(value.numel() for value in tensors.values()),
    }
    if output.suffix == ".tar":
        _write_published(output, family, tensors, plain(cfg.model))
    else:
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial := _partial(output))
        partial.replace(output)
    _write_facts(output, facts)
    log.info("converted %s tensors (%s parameters)", facts["tensors"], f"{facts['parameters']:,}")
    log.info("weights: %s", output)


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
    if output.suffix != ".safetensors" and (cfg.task.format == "ours" or output.suffix != ".tar"):
        raise UserError(
            f"task.output={output}, expected a name that ends in .safetensors, or in .pth.tar with a published "
            "task.format that is no bare state dict; rename it"
        )
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"task.output={output} is the source itself; give another name")
    if not source.exists():
        raise UserError(f"task.source={source} not found, expected a checkpoint or features; check the path")
    return source, output


def _is_bare_clip(state: Mapping[str, Tensor]) -> bool:
    return any(name.removeprefix("module.") == "visual.class_embedding" for name in state)


def _convert_clip(model: RetrievalModule, state: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    if not isinstance(model, ClipRetrievalModule):
        raise UserError(f"{source} is a CLIP, the chosen model has no CLIP tower; choose model=clip4clip")
    tensors = clip_state(state)
    check_fit(model.tower.clip, tensors, str(source))
    return tensors


def _check_options(cfg: DictConfig, told: Mapping[str, Any], source: Path) -> None:
    """What the tensors tell of the model's options, in the words of the command line."""
    chosen = plain(cfg.model)
    wrong = [f"model.{k}={_typed(v)}" for k, v in told.items() if k in chosen and chosen[k] != v]
    if wrong:
        raise UserError(f"{source} was made with other options; add {' '.join(wrong)}")


def _typed(value: Any) -> str:
    return str(value).replace(" ", "")


def _exported(name: str, family: Family, ours: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors under the names of `task.format`, and what they are."""
    if name == "ours":
        return dict(ours), "videotext"
    if name not in family.exports:
        known = ", ".join(("ours", *family.exports))
        raise UserError(f"task.format={name}, expected one of {known} for {family.name}")
    return family.exports[name](ours), name


def _write_published(output: Path, family: Family, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> None:
    if family.content is None:
        raise UserError(f"task.output={output}: {family.name} publish bare state dicts; name it .safetensors")
    partial = _partial(output)
    torch.save(family.content(tensors, options), partial)
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


def _partial(output: Path) -> Path:
    """Where the file is written before it gets its name: it is either complete or absent."""
    output.parent.mkdir(parents=True, exist_ok=True)
    return output.with_name(f".{output.name}.{os.getpid()}.part")


def _write_facts(output: Path, facts: Mapping[str, object]) -> None:
    """The facts beside the weights."""
    facts_file = output.with_suffix(".json")
    facts_file.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
