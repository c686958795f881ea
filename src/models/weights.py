"""Read weight files safely and load them strictly."""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from src.errors import UserError

# Scalars that the TorchScript archives of OpenAI carry beside the weights.
ARCHIVE_SCALARS = ("input_resolution", "context_length", "vocab_size")


def read_state_dict(path: str | Path, trust: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a weight file on the CPU, under the names that the file uses.

    Understands safetensors, `torch.save` files (bare state dict, one under the key `state_dict`, or a list of them
    under `model`, whose names then begin with their place: `0.…`) and TorchScript archives (OpenAI CLIP). Leaves names,
    precisions and the archive's scalars as they are.

    Args:
        path: the file.
        trust: allow a foreign pickle to run code while it is read. The default reads tensors only.

    Raises:
        UserError: the file is missing, damaged, holds no tensors, or would need `trust`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weight file at {path}, expected .safetensors, .pt, .bin or .ckpt; check the path")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a readable safetensors file ({error}); fetch or convert it again") from None
    content = _read_archive(path) if _is_torchscript(path) else _read_pickle(path, trust)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if isinstance(content, Mapping) and isinstance(content.get("model"), list):
        parts = [part for part in content["model"] if isinstance(part, Mapping)]
        content = {f"{index}.{name}": value for index, part in enumerate(parts) for name, value in part.items()}
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise UserError(f"{path} holds no tensors (found {type(content).__name__}), expected a state dict")
    return tensors


def _is_torchscript(path: Path) -> bool:
    """TorchScript archives hold the code of the module beside its tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())


def _read_archive(path: Path) -> Mapping[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".torch.jit")  # deprecated, but OpenAI publishes it
            return torch.jit.load(path, map_location="cpu").state_dict()
    except RuntimeError as error:
        raise UserError(f"{path} is a damaged TorchScript archive ({_first_line(error)}); fetch it again") from None


def _read_pickle(path: Path, trust: bool) -> Any:
    try:
        try:
            # Options that many trainers save beside the weights: a class that only holds values.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, UnicodeDecodeError):
            if not trust:  # trust is for the files that the restricted reader refuses, and only for them
                raise
            # Strings of files that Python 2 wrote; those of Python 3 do not depend on it.
            return torch.load(path, map_location="cpu", weights_only=False, encoding="latin1")
    except pickle.UnpicklingError as error:
        if trust:
            raise UserError(f"{path} cannot be read ({_first_line(error)}); fetch it again") from None
        raise UserError(
            f"{path} holds more than tensors ({_first_line(error)}); reading it could run foreign code: "
            "if you trust its source, convert it once with task=convert task.trust=true"
        ) from None
    except (RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path} is not a readable weight file ({_first_line(error)}); fetch it again") from None


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:120] if text else type(error).__name__


def check_fit(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Compare names and shapes with those of the module.

    Raises:
        UserError: lists missing, unexpected and wrongly shaped names.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    problems = [
        f"{len(names)} {title}: {_listing(names)}"
        for title, names in (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", shapes))
        if names
    ]
    if problems:
        raise UserError(
            f"{source} does not fit the model: {'; '.join(problems)}; "
            "choose the model options with which the checkpoint was made"
        )


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `module`; every name and every shape has to agree (see `check_fit`)."""
    check_fit(module, state, source)
    module.load_state_dict(dict(state), strict=True)


def _listing(names: list[str], most: int = 12) -> str:
    more = f", … ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + more
