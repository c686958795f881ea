"""Read weight files safely and load them strictly."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from src.errors import UserError
from src.models.stand_ins import stand_ins

METADATA = "videotext"
"""Name of our entry in the metadata of a safetensors file."""
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
    return read_weights(path, trust)[0]


def read_weights(path: str | Path, trust: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As `read_state_dict`, and what else the file holds beside the tensors, by name."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weight file at {path}, expected .safetensors, .pt, .bin or .ckpt; check the path")
    if path.suffix == ".safetensors":
        try:
            return read_safetensors(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a readable safetensors file ({error}); fetch or convert it again") from None
    content = _read_archive(path) if _is_torchscript(path) else _read_pickle(path, trust)
    rest: dict[str, Any] = {}
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        rest = {str(name): value for name, value in content.items() if name != "state_dict"}
        content = content["state_dict"]
    if isinstance(content, Mapping) and isinstance(content.get("model"), list):
        rest |= {str(name): value for name, value in content.items() if name != "model"}
        parts = [part for part in content["model"] if isinstance(part, Mapping)]
        content = {f"{index}.{name}": value for index, part in enumerate(parts) for name, value in part.items()}
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise UserError(f"{path} holds no tensors (found {type(content).__name__}), expected a state dict")
    return tensors, rest


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and what `metadata_of` wrote beside them.

    Raises:
        SafetensorError: no such file.
    """
    with safe_open(path, "pt") as file:
        rest = json.loads((file.metadata() or {}).get(METADATA, "{}"))
        return {name: file.get_tensor(name) for name in file.keys()}, rest  # noqa: SIM118 no mapping


def metadata_of(rest: Mapping[str, Any]) -> dict[str, str]:
    """Plain values as the metadata of a safetensors file, which holds texts only."""
    return {METADATA: json.dumps(rest, ensure_ascii=False)}


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
            with torch.serialization.safe_globals(stand_ins()):
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
            f"{path} holds more than tensors ({_asked_for(error)}); reading it could run foreign code: "
            "if you trust its source, convert it once with task=convert task.trust=true"
        ) from None
    except (RuntimeError, EOFError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise UserError(f"{path} is not a readable weight file ({_first_line(error)}); fetch it again") from None


def _asked_for(error: Exception) -> str:
    """The class or function that the restricted reader refused, or the first line of its message."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"it asks for {found[1]}" if found else _first_line(error)


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
