"""Finding, checking and loading checkpoints of ours."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.text import Text
from safetensors import SafetensorError

from src.errors import UserError
from src.models.base import RetrievalModule
from src.models.clip_retrieval import ClipRetrievalModule
from src.models.heads.base import Head
from src.models.weights import load_strictly, read_safetensors

log = logging.getLogger(__name__)

STARTS = ("pretrained", "vit_weights")
"""Options that name the weights which a model starts from."""


def resolve_checkpoint(name: str, run_dir: Path, key: str = "ckpt_path") -> Path:
    """Turn `ckpt_path=` into a file.

    Args:
        name: a file, a run folder (its best.ckpt is meant), or "last": the newest last.ckpt of this run folder
            or of its siblings, that is of runs of the same task, data set and model.
        run_dir: folder of the current run.
        key: what the user typed, for messages.

    Raises:
        UserError: there is no such file.
    """
    if name == "last":
        folders = [run_dir, *sorted((p for p in run_dir.parent.iterdir() if p != run_dir), reverse=True)]
        for folder in folders:
            if (path := folder / "checkpoints" / "last.ckpt").is_file():
                return path
        raise UserError(
            f"{key}=last found no checkpoints/last.ckpt in {run_dir.parent}, expected an earlier run of the same "
            f"task, data set and model; give the file itself, or start without {key}"
        )
    path = Path(name)
    if path.is_dir():
        path = path / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise UserError(f"{key}={name}: found no file {path}, expected a checkpoint; check the path")
    return path


def without_pretrained_file(cfg: DictConfig) -> DictConfig:
    """The configuration of a model whose weights all come from a checkpoint: no other file need be there, or fetched.

    A tag of `pretrained` stays, for it also says how the frames of the tower are normalised.
    """
    pretrained = cfg.model.get("pretrained")
    is_file = pretrained is not None and (Path(pretrained).suffix or Path(pretrained).is_file())
    return without_start(cfg, STARTS if is_file else [key for key in STARTS if key != "pretrained"])


def without_start(cfg: DictConfig, keys: Iterable[str] = STARTS) -> DictConfig:
    """The configuration with null for those of `keys` that the model has."""
    nulls = {key: None for key in keys if cfg.model.get(key) is not None}
    return OmegaConf.merge(cfg, {"model": nulls}) if nulls else cfg  # type: ignore[return-value]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours (`.ckpt`) or converted weights (`.safetensors`), never executing code.

    Returns:
        At least `state_dict`; of converted weights also what stands beside the tensors.

    Raises:
        UserError: the file is damaged, or not one of ours.
    """
    if path.suffix == ".safetensors":
        try:
            tensors, rest = read_safetensors(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a readable safetensors file ({error}); convert it again") from None
        return {**rest, "state_dict": tensors}
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = Text.from_ansi(str(error)).plain.splitlines()[0][:120]  # torch writes some words bold
        raise UserError(
            f"{path} cannot be read as a checkpoint ({reason}), expected a file written by "
            f"task=fit; convert a foreign one with: python -m src.run task=convert task.source={path}"
        ) from error
    if not isinstance(content, Mapping) or "state_dict" not in content:
        raise UserError(
            f"{path} holds no `state_dict`, expected a file written by task=fit; "
            f"convert a foreign one with: python -m src.run task=convert task.source={path}"
        )
    return dict(content)


def load_weights(model: RetrievalModule, path: Path) -> None:
    """Load weights strictly.

    Raises:
        UserError: names or shapes differ from the model's, and the message lists the first of each kind; or the model
            finds that the weights belong to other words.
    """
    content = read_checkpoint(path)
    found = content["state_dict"]
    if not found.keys() & model.state_dict().keys():
        raise UserError(
            f"{path} holds none of the tensors of this model (found {', '.join(sorted(found)[:3])}, …), expected a "
            "checkpoint of it; choose the model that it is of, or convert a published file with: "
            f"python -m src.run task=convert task.source={path}"
        )
    model.on_load_checkpoint(content)
    load_strictly(model, content["state_dict"], str(path))
    if isinstance(model, ClipRetrievalModule):
        _note_other_head(model.head, content, path)


def _note_other_head(head: Head, content: Mapping[str, Any], path: Path) -> None:
    """Warn where weights fit that were trained with another head: some heads have no tensors of their own."""
    config = content.get("videotext", {}).get("config")
    trained = OmegaConf.select(OmegaConf.create(config), "model.head._target_") if config else None
    found = type(head).__name__
    if trained and trained.rsplit(".", 1)[-1] != found:
        log.warning(
            "%s was trained with a %s, which fits a %s, too: its scores are not those of the trained model; "
            "choose the model.head that it was trained with",
            path,
            trained.rsplit(".", 1)[-1],
            found,
        )
