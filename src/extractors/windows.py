"""Networks that see windows of consecutive frames: torchvision's video models, and any network of yours."""

from __future__ import annotations

import importlib
import zipfile
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from src.errors import UserError
from src.extractors.backbone import Output, take_head
from src.extractors.base import Clip, Extractor, Medium, Request
from src.extractors.local_files import file_sha256, local_path, versions
from src.extractors.networks import Pixels, Weights, frozen, state_sha256

Layout = Literal["NCHW", "NCTHW", "NTCHW"]


@dataclass(frozen=True)
class Windows:
    """How a video is cut.

    Attributes:
        length: frames in a window.
        stride: frames from the start of one window to the start of the next.
        fps: frames per second of video; None = all.
        max_frames: at most so many, evenly spread; None = no limit.
        per_batch: windows through the network at once.
    """

    length: int
    stride: int
    fps: float | None
    max_frames: int | None
    per_batch: int

    def __post_init__(self) -> None:
        if min(self.length, self.stride, self.per_batch) < 1:
            raise UserError(
                f"found windows of {self.length} frames every {self.stride}, {self.per_batch} at once; "
                "expected positive numbers"
            )

    def starts(self, num_frames: int) -> range:
        """First frame of each window; frames behind the last whole window are left out."""
        return range(0, max(num_frames - self.length, 0) + 1, self.stride)


class WindowExtractor(Extractor):
    """One vector per window; a video shorter than one window is filled up with its last frame."""

    medium: ClassVar[Medium] = "frames"

    def __init__(self, name: str, windows: Windows, pixels: Pixels, layout: Layout) -> None:
        self.name = name
        self.windows = windows
        self.pixels = pixels
        self.layout: Layout = layout
        self._device = torch.device("cpu")

    @property
    def request(self) -> Request:
        return Request(fps=self.windows.fps, max_frames=self.windows.max_frames, short_side=self.pixels.short_side)

    def recipe(self) -> Mapping[str, Any]:
        pixels = self.pixels
        return {
            "window": [self.windows.length, self.windows.stride],
            "pixels": {"size": pixels.size, "mean": list(pixels.mean), "std": list(pixels.std)},
            "layout": self.layout,
        }

    @abstractmethod
    def forward(self, windows: Tensor) -> Tensor:
        """(N, dim) of N windows in the layout of the network."""

    def extract(self, clip: Clip) -> np.ndarray:
        assert clip.frames_THWC is not None
        frames_TSSC = self.pixels.cut(clip.frames_THWC)
        short = self.windows.length - len(frames_TSSC)
        if short > 0:
            frames_TSSC = np.concatenate([frames_TSSC, np.repeat(frames_TSSC[-1:], short, axis=0)])
        starts = self.windows.starts(len(frames_TSSC))
        rows = []
        for at in range(0, len(starts), self.windows.per_batch):
            chosen = [frames_TSSC[s : s + self.windows.length] for s in starts[at : at + self.windows.per_batch]]
            rows.append(self._run(np.stack(chosen)))
        return np.concatenate(rows)

    def _run(self, windows_NTSSC: np.ndarray) -> np.ndarray:
        count, length = windows_NTSSC.shape[:2]
        pixels = self.pixels.tensor(windows_NTSSC.reshape(count * length, *windows_NTSSC.shape[2:]), self._device)
        with torch.inference_mode():
            return self.forward(self._arranged(pixels, count)).float().cpu().numpy()

    def _arranged(self, pixels: Tensor, count: int) -> Tensor:
        if self.layout == "NCHW":
            return pixels
        windows_NTCHW = pixels.unflatten(0, (count, -1))
        return windows_NTCHW.transpose(1, 2) if self.layout == "NCTHW" else windows_NTCHW

    def _measure(self) -> int:
        """Length of the vectors, by a window of black frames.

        Raises:
            UserError: the network does not take the declared input, or gives something else than one vector each.
        """
        black = np.zeros((2, self.windows.length, self.pixels.size, self.pixels.size, 3), np.uint8)
        try:
            rows = self._run(black)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise UserError(
                f"extractor {self.name!r}: the network refuses two windows of {self.windows.length} frames of "
                f"{self.pixels.size} px as {self.layout} ({reason}); correct extractor.window, .size or .layout"
            ) from None
        if rows.ndim != 2 or len(rows) != 2:
            raise UserError(
                f"extractor {self.name!r}: the network gives shape {rows.shape} for two windows, expected (2, dim)"
            )
        return rows.shape[1]


class ActionExtractor(WindowExtractor):
    """torchvision's video classifiers: r3d_18, mc3_18, r2plus1d_18, s3d, mvit_v2_s, swin3d_t, ….

    Args:
        name: of the store.
        arch: as torchvision calls it.
        weights: local file with a state dict, or `package:NAME/PATH`.
        random_weights: random ones instead, to try things out.
        seed: of the random weights.
        num_classes: outputs of the classifier that the weights have (400 Kinetics).
        output: features = the input of the last linear layer; logits; probabilities = their softmax.
        window: frames in a window.
        stride: frames between the starts of two windows.
        fps: frames per second of video; null = all.
        max_frames: at most so many, evenly spread; null = no limit.
        windows_per_batch: through the network at once.

    Raises:
        UserError: unknown architecture, or weights that do not fit.

    Deviates: the aspect ratio is kept where torchvision's preset squashes frames to 171 x 128 before the crop.
    """

    def __init__(
        self,
        *,
        name: str = "action",
        arch: str = "r2plus1d_18",
        weights: str | None = None,
        random_weights: bool = False,
        seed: int = 0,
        num_classes: int = 400,
        output: Output = "features",
        window: int = 16,
        stride: int = 16,
        fps: float | None = 15.0,
        max_frames: int | None = None,
        windows_per_batch: int = 8,
    ) -> None:
        from torchvision import models

        known = models.list_models(models.video)
        if arch not in known:
            raise UserError(f"extractor.arch={arch} is not known to torchvision, expected one of {', '.join(known)}")
        published = models.get_model_weights(arch).DEFAULT.transforms()
        size, border = int(published.crop_size[0]), int(min(published.resize_size))
        pixels = Pixels(size, border, tuple(published.mean), tuple(published.std))
        super().__init__(name, Windows(window, stride, fps, max_frames, windows_per_batch), pixels, "NCTHW")
        self.arch = arch
        self.output: Output = output
        self._weights = Weights(weights, random_weights, seed)
        self._body = self._weights.fill(lambda: models.get_model(arch, weights=None, num_classes=num_classes))
        self._head = take_head(self._body, arch)
        self._dim = self._measure()

    @property
    def dim(self) -> int:
        return self._dim

    def recipe(self) -> Mapping[str, Any]:
        facts = {"arch": self.arch, "weights": self._weights.recipe(), "output": self.output}
        return {**super().recipe(), **facts, **versions("torchvision")}

    def forward(self, windows: Tensor) -> Tensor:
        features_ND = self._body(windows)
        if self.output == "features":
            return features_ND
        logits_ND = self._head(features_ND)
        return logits_ND.softmax(dim=-1) if self.output == "probabilities" else logits_ND

    def to(self, device: torch.device) -> None:
        self._device = device
        self._body.to(device)
        self._head.to(device)


class PluginExtractor(WindowExtractor):
    """Any network of yours; docs/extractors.md has the interface and examples (I3D, Places365, R(2+1)D).

    Args:
        name: of the store.
        network: `module:function` of an installed package, called without arguments to make a `torch.nn.Module`;
            or a file: TorchScript (.pt, .jit) or an exported program (.pt2).
        weights: local file with a state dict for the module; null = as the function made it.
        trust: allow a .pt2 file, which can run code while it is read.
        layout: of the input: NCHW (single frames, window=1), NCTHW or NTCHW.
        window: frames in a window.
        stride: frames between the starts of two windows.
        size: side of the square, pixels.
        short_side: of the frame before its centre is cut out; null = size.
        mean: of the pixels in 0-1, per channel.
        std: likewise; I3D's -1 to 1 is mean 0.5, std 0.5.
        fps: frames per second of video; null = all.
        max_frames: at most so many, evenly spread; null = no limit.
        windows_per_batch: through the network at once.

    Raises:
        UserError: no such function or file, weights that do not fit, or an input that the network refuses.
    """

    def __init__(
        self,
        *,
        name: str = "plugin",
        network: str,
        weights: str | None = None,
        trust: bool = False,
        layout: Layout = "NCTHW",
        window: int = 16,
        stride: int = 16,
        size: int = 224,
        short_side: int | None = None,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        fps: float | None = 1.0,
        max_frames: int | None = None,
        windows_per_batch: int = 8,
    ) -> None:
        if layout == "NCHW" and window != 1:
            raise UserError(f"extractor.layout=NCHW is one frame, found extractor.window={window}; set it to 1")
        pixels = Pixels(size, short_side or size, mean, std)
        super().__init__(name, Windows(window, stride, fps, max_frames, windows_per_batch), pixels, layout)
        self._network, self._facts = load_network(network, weights, trust)
        self._dim = self._measure()

    @property
    def dim(self) -> int:
        return self._dim

    def recipe(self) -> Mapping[str, Any]:
        return {**super().recipe(), **self._facts}

    def forward(self, windows: Tensor) -> Tensor:
        output = self._network(windows)
        return output.flatten(1) if output.dim() > 2 and output[0].numel() == output.shape[1] else output

    def to(self, device: torch.device) -> None:
        self._device = device
        self._network.to(device)


def load_network(source: str, weights: str | None, trust: bool) -> tuple[nn.Module, dict[str, Any]]:
    """A network and what identifies it.

    Raises:
        UserError: see `PluginExtractor`.
    """
    if ":" in source and not source.startswith("package:"):
        network = _call(source)
        if weights is not None:
            network = Weights(weights).fill(lambda: network)
        frozen(network)
        return network, {"network": source, "sha256": state_sha256(network)}
    path = local_path(source, "extractor.network", "extract")
    if weights is not None:
        raise UserError(f"extractor.network={source} holds its own weights; remove extractor.weights={weights}")
    facts = {"network": path.name, "sha256": file_sha256(path)}
    return _exported(path) if path.suffix == ".pt2" and _trusted(path, trust) else _scripted(path), facts


def _call(source: str) -> nn.Module:
    module_name, _, function_name = source.partition(":")
    try:
        made = getattr(importlib.import_module(module_name), function_name)()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"extractor.network={source}: {error}; give module:function of something that Python can import"
        ) from None
    if not isinstance(made, nn.Module):
        raise UserError(f"extractor.network={source} made a {type(made).__name__}, expected a torch.nn.Module")
    return made


def _trusted(path: Path, trust: bool) -> bool:
    if not trust:
        raise UserError(f"{path} can run code while it is read; if you trust its source, add extractor.trust=true")
    return True


def _exported(path: Path) -> nn.Module:
    try:
        module = torch.export.load(path).module()
    except (RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no exported program ({str(error).splitlines()[0][:160]}); save it again") from None
    assert isinstance(module, nn.Module)
    return module


def _scripted(path: Path) -> nn.Module:
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".torch.jit")  # deprecated, but much is published in it
            return torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        raise UserError(
            f"{path} is no TorchScript file ({str(error).splitlines()[0][:160]}); a state dict needs its code: "
            "give extractor.network=module:function extractor.weights=FILE"
        ) from None
