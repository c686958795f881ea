"""A folder as transformers writes it: where it is, what its json files say, and the network that is in it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from src.errors import UserError
from src.models.weights import load_strictly, read_state_dict

log = logging.getLogger(__name__)

OURS = Path(__file__).parent / "archs" / "hf"
"""Configurations without weights that come with the product."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")
FETCHED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessing:
    """How frames become pixels.

    Attributes:
        image_size: side of the square, pixels.
        resize: "crop" = short side and centre crop, "squash" = both sides.
        mean: of the three channels, pixels in 0-1.
        std: as `mean`.
    """

    image_size: int
    resize: Literal["crop", "squash"] = "crop"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD


@dataclass(frozen=True)
class HfFolder:
    """One folder with config.json and, mostly, weights, a tokeniser and the settings of an image processor.

    Attributes:
        path: the folder.
        trust: run the Python files that the folder brings.
    """

    path: Path
    trust: bool = False

    @classmethod
    def find(cls, name: str, trust: bool, option: str = "model.path") -> HfFolder:
        """A folder, one of our configurations by name, or else a repository of the hub, which is fetched.

        Args:
            name: which.
            trust: run the Python files that the folder brings.
            option: what the user sets it with, for messages.

        Raises:
            UserError: there is none, or the hub cannot be reached.
        """
        folder = Path(name).expanduser()
        if not folder.is_dir() and (OURS / name).is_dir():
            folder = OURS / name
        if not folder.is_dir():
            folder = _fetch(name, option, trust)
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} has no config.json, expected a transformers folder; check {option}")
        return cls(folder, trust)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What config.json says."""
        return _read_json(self.path / "config.json")

    def setting(self, *names: str) -> Any:
        """The first of these keys that config.json or its parts about text or vision give; None where none does.

        Args:
            names: keys; `vision_config.num_frames` looks into a part.
        """
        for name in names:
            node: Any = self.settings
            for key in name.split("."):
                node = node.get(key) if isinstance(node, Mapping) else None
            if node is not None:
                return node
        return None

    @property
    def has_weights(self) -> bool:
        return any((self.path / name).is_file() for name in WEIGHTS)

    @property
    def is_ours(self) -> bool:
        return self.path.parent == OURS

    @property
    def tokenizer_files(self) -> list[Path]:
        """Files that a tokeniser reads; empty where the folder has none."""
        known = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tokenizer.model")
        found = [self.path / name for name in known if (self.path / name).is_file()]
        others = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
        return found and found + [self.path / name for name in others if (self.path / name).is_file()]

    def preprocessing(self) -> Preprocessing:
        """What the image or video processor of the folder does, as far as frames are concerned.

        Raises:
            UserError: neither a processor's file nor config.json says how large frames are.
        """
        found = _processor(self.path)
        size = _side(found.get("crop_size") if found.get("do_center_crop", "crop_size" in found) else None)
        size = size or _side(found.get("size")) or _side(self.setting("vision_config.image_size", "image_size"))
        if size is None:
            raise UserError(f"{self.path}: no file says how large frames are; set model.image_size=224")
        if not found:
            log.info("%s has no preprocessor_config.json: frames are prepared as CLIP does", self.path)
            return Preprocessing(size)
        squash = not found.get("do_center_crop", "crop_size" in found) and "shortest_edge" not in found.get("size", {})
        if not found.get("do_normalize", True):
            return Preprocessing(size, "squash" if squash else "crop", (0.0,) * 3, (1.0,) * 3)
        mean, std = found.get("image_mean", CLIP_MEAN), found.get("image_std", CLIP_STD)
        return Preprocessing(size, "squash" if squash else "crop", tuple(mean), tuple(std))

    @property
    def is_only_configuration(self) -> bool:
        """Whether it is one of the product's own, which have no weights."""
        return self.is_ours and not self.has_weights

    def network(self, pretrained: str | None, network: str | None) -> nn.Module:
        """The network, in float32.

        Args:
            pretrained: "folder" = the folder's own safetensors, FILE = others with the same names, None = random.
            network: `module:function`, called with what config.json says, for classes that transformers does not
                know; None = transformers' own class.

        Raises:
            UserError: the class is unknown, or the weights are missing or do not fit.
        """
        own = pretrained == "folder" and not self.is_only_configuration
        if pretrained == "folder" and not own:
            log.warning("%s is a configuration without weights: the network starts at random", self.path.name)
        if own and not self.has_weights:
            raise UserError(
                f"{self.path} has no model.safetensors, expected weights in this form only (found "
                f"{', '.join(sorted(p.name for p in self.path.glob('*.bin'))) or 'none'}); save them with "
                "save_pretrained(FOLDER), or set model.pretrained=null for random weights"
            )
        if network is not None:
            model = _function(network)(self.settings)
            if own:
                load_strictly(model, read_state_dict(self.path / WEIGHTS[0]), str(self.path))
        else:
            model = self._known(own)
        if pretrained not in (None, "folder"):
            load_strictly(model, read_state_dict(pretrained), pretrained)
        return model.float().train()  # transformers loads into evaluation, where nothing switches dropout on again

    def _known(self, weights: bool) -> nn.Module:
        """A network of transformers, or of the folder's own Python files where these are trusted."""
        with transformers_module() as (transformers, options):
            options = {**options, "trust_remote_code": self.trust}
            try:
                config = transformers.AutoConfig.from_pretrained(str(self.path), **options)
                if not weights:
                    return transformers.AutoModel.from_config(config, trust_remote_code=self.trust)
                model, report = transformers.AutoModel.from_pretrained(
                    str(self.path), config=config, dtype=torch.float32, use_safetensors=True,
                    output_loading_info=True, **options,
                )  # fmt: skip
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                advice = "" if self.trust or "auto_map" not in self.settings else (
                    "; it brings its own Python files: read them, then allow them by model.trust=true"
                )  # fmt: skip
                raise UserError(
                    f"{self.path} is no network that this version of transformers builds ({reason}), expected a dual "
                    f"encoder's config.json and its safetensors{advice}; for a class of yours set "
                    "model.network=module:function"
                ) from None
        missing = sorted({*report["missing_keys"], *(str(name) for name in report["mismatched_keys"])})
        if missing:
            raise UserError(
                f"the weights in {self.path} do not fit its config.json: {len(missing)} tensors are missing or have "
                f"another shape (first: {missing[0]}); copy the folder again"
            )
        if report["unexpected_keys"]:
            log.info("%s: not used: %s", self.path, ", ".join(sorted(report["unexpected_keys"])))
        return model


def _fetch(name: str, option: str, trust: bool) -> Path:
    """Copy a repository of the hub into its cache, or find it there."""
    parts = name.split("/")
    if len(parts) > 2 or not all(parts) or name.startswith((".", "~")):
        ours = ", ".join(sorted(path.name for path in OURS.iterdir() if path.is_dir()))
        raise UserError(
            f"found no folder at {option}={name}, expected one with config.json, a hub name such as "
            f"openai/clip-vit-base-patch32, or one of ours ({ours})"
        )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise _need("huggingface_hub")
    from huggingface_hub import snapshot_download

    try:
        patterns = [*FETCHED, "*.py"] if trust else FETCHED
        return Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=10))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise UserError(
            f"{option}={name} is no folder here and could not be fetched from the hub ({reason}); fetch it on a "
            f"machine with network (hf download {name} --local-dir FOLDER) and set {option}=FOLDER"
        ) from None


@contextmanager
def transformers_module():  # type: ignore[no-untyped-def]
    """The package, imported late because that takes seconds, and options under which it asks nobody."""
    if importlib.util.find_spec("transformers") is None:
        raise _need("transformers")
    import transformers
    from transformers.utils import logging as their_logging

    their_logging.disable_progress_bar()  # it would draw into our own while weights load
    before = their_logging.get_verbosity()
    their_logging.set_verbosity_error()
    try:
        yield transformers, {"local_files_only": True}
    finally:
        their_logging.set_verbosity(before)


def _need(package: str) -> UserError:
    return UserError(f"model=hf needs {package}, which is not installed; pip install 'videotext[text]'")


def _function(name: str) -> Callable[[dict[str, Any]], nn.Module]:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"model.network={name} cannot be imported ({error}), expected module:function; "
            "check the name and that its folder is on PYTHONPATH"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no JSON file ({error}); copy the folder again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, expected an object; copy the folder again")
    return found


def _processor(folder: Path) -> dict[str, Any]:
    """Settings of the video processor, else of the image processor, of whichever file has them."""
    for name in PROCESSORS:
        if (folder / name).is_file():
            found = _read_json(folder / name)
            inner = found.get("video_processor") or found.get("image_processor")
            if isinstance(inner, dict) or "size" in found:
                return inner if isinstance(inner, dict) else found
    return {}


def _side(size: Any) -> int | None:
    """Side of a square from the forms that processors write; None where it is not given."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height")
    return size if isinstance(size, int) else None
