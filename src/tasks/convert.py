"""task=convert: a foreign checkpoint to ours, and ours to safetensors, strictly checked against the model.

Features go another way: see `src.tasks.convert_features`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor

from src.convert.clip4clip import from_upstream, to_upstream
from src.data.features.detect import holds_features
from src.data.features.store import file_sha256
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

    A folder, or a file of features, becomes feature stores; nothing of the following concerns them.
    The model of the configuration (`model=…` and its options) is the contract: every tensor has to fit it.
    A bare CLIP archive is checked against its tower alone and keeps open_clip's names, ready for
    `model.pretrained=FILE`.

    Raises:
        UserError: no source, an unknown format, or tensors that do not fit; they are listed.
    """
    if cfg.task.source is not None and holds_features(Path(cfg.task.source)):
        return convert_features(cfg)
    source, output = _paths(cfg)
    state = read_state_dict(source, trust=cfg.task.trust)
    model = empty_model(cfg)
    if _is_bare_clip(state):
        tensors, kind = _convert_clip(model, state, source), "clip"
    else:
        ours = dict(state) if any(name.startswith("tower.") for name in state) else from_upstream(state)
        check_fit(model, ours, str(source))
        tensors, kind = (to_upstream(ours), "upstream") if cfg.task.format == "upstream" else (ours, "videotext")
    facts = {
        "kind": kind,
        "model": plain(cfg.model),
        "source": source.name,
        "source_sha256": file_sha256(source),
        "tensors": len(tensors),
        "parameters": sum(value.numel() for value in tensors.values()),
    }
    _write(output, tensors, facts)
    log.info("converted %s tensors (%s parameters)", facts["tensors"], f"{facts['parameters']:,}")
    log.info("weights: %s", output)


def _paths(cfg: DictConfig) -> tuple[Path, Path]:
    if cfg.task.source is None:
        raise UserError(
            "task=convert found no task.source=, expected a checkpoint or features; add task.source=FILE or FOLDER"
        )
    if cfg.task.format not in ("ours", "upstream"):
        raise UserError(f"task.format={cfg.task.format}, expected ours or upstream for a checkpoint")
    source = Path(cfg.task.source)
    name = cfg.task.output or Path(cfg.paths.run_dir) / f"{source.stem}.safetensors"
    output = Path(name)
    if output.suffix != ".safetensors":
        raise UserError(f"task.output={output}, expected a name that ends in .safetensors; rename it")
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


def _write(output: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    """Write the weights and the facts beside them; a file is either complete or absent."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{os.getpid()}.part")
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
    partial.replace(output)
    facts_file = output.with_suffix(".json")
    facts_file.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
