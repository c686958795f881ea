"""What the extractors with a network share: where its weights come from, and pixels to its input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from src.errors import UserError
from src.extractors.local_files import file_sha256, local_path
from src.models.weights import load_strictly, read_state_dict


@dataclass(frozen=True)
class Weights:
    """Where the numbers of a network come from.

    Attributes:
        file: local file, or `package:NAME/PATH` for one inside an installed package; None with `random`.
        random: random numbers on purpose, to try things out.
        seed: of the random ones.
        extra: what to install when the package of `file` is missing.
    """

    file: str | None
    random: bool = False
    seed: int = 0
    extra: str = "extract"

    def fill(self, make: Callable[[], nn.Module]) -> nn.Module:
        """The network that `make` makes, with these weights, for inference only.

        Raises:
            UserError: no weights, or they do not fit.
        """
        if self.random:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                return frozen(make())
        network = make()
        path = local_path(self._file(), "extractor.weights", self.extra)
        state = read_state_dict(path)
        prefix = "module." if all(name.startswith("module.") for name in state) else ""
        load_strictly(network, {name.removeprefix(prefix): value for name, value in state.items()}, str(path))
        return frozen(network)

    def recipe(self) -> dict[str, Any]:
        """For the manifest: the name and sha256 of the file, or the seed."""
        if self.random:
            return {"random_seed": self.seed}
        path = local_path(self._file(), "extractor.weights", self.extra)
        return {"file": path.name, "sha256": file_sha256(path)}

    def _file(self) -> str:
        if self.file is None:
            raise UserError(
                "the extractor has no weights; give extractor.weights=FILE, or extractor.random_weights=true for a "
                "test of the plumbing"
            )
        return self.file


def frozen(network: nn.Module) -> nn.Module:
    """For inference only."""
    return network.eval().requires_grad_(False)


def state_sha256(network: nn.Module) -> str:
    """Of all numbers of a network, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Pixels:
    """How frames become the input of an image or video network.

    Attributes:
        size: side of the square, pixels.
        short_side: the shorter side of the frame before its centre is cut out.
        mean: of the pixels in 0-1, per channel.
        std: likewise.
    """

    size: int
    short_side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.short_side:
            raise UserError(
                f"found a square of {self.size} px cut out of frames with a short side of {self.short_side} px, "
                "expected a smaller square; give extractor.short_side at least extractor.size"
            )

    def cut(self, frames_THWC: np.ndarray) -> np.ndarray:
        """uint8 (T, size, size, 3) of frames whose shorter side is `short_side` already."""
        height, width = frames_THWC.shape[1:3]
        # torchvision rounds the crop's corner half to even.
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return frames_THWC[:, top : top + self.size, left : left + self.size]

    def tensor(self, frames_THWC: np.ndarray, device: torch.device) -> Tensor:
        """float32 (T, 3, size, size), normalised, on the device."""
        pixels = torch.from_numpy(np.ascontiguousarray(frames_THWC)).to(device)
        scaled_TCHW = pixels.permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (self.mean, self.std))
        return (scaled_TCHW - mean) / std
