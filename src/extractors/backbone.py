"""Image classifiers as frame features: ImageNet backbones, and Places365 networks of the same layouts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from src.errors import UserError
from src.extractors.base import Clip, Extractor, Medium, Request, need
from src.extractors.local_files import versions
from src.extractors.networks import Pixels, Weights

Library = Literal["timm", "torchvision", "efficientnet_lite"]
Output = Literal["features", "logits", "probabilities"]
_DISTRIBUTION = {"timm": "timm", "torchvision": "torchvision", "efficientnet_lite": "efficientnet-lite-pytorch"}
# EfficientNet-lite leaves 32 pixels around the crop and knows no per-channel statistics.
# Source: tensorflow/tpu, models/official/efficientnet/{preprocessing,lite/efficientnet_lite_builder}.py.
_LITE_BORDER, _LITE_MEAN, _LITE_STD = 32, 127 / 255, 128 / 255


class BackboneExtractor(Extractor):
    """One vector per frame from an image classifier.

    Args:
        name: of the store.
        library: where the architecture comes from; its preprocessing is used.
        arch: as the library calls it (resnet50, efficientnet-lite2, …).
        weights: local file with a state dict, or `package:NAME/PATH`.
        random_weights: random ones instead, to try things out.
        seed: of the random weights.
        num_classes: outputs of the classifier that the weights have (1000 ImageNet, 365 Places).
        output: features = the input of the last linear layer; logits; probabilities = their softmax.
        fps: frames per second of video; null = all.
        max_frames: at most so many, evenly spread; null = no limit.
        frames_per_batch: through the network at once.

    Raises:
        UserError: unknown architecture, a package that is not installed, or weights that do not fit.
    """

    medium: ClassVar[Medium] = "frames"

    def __init__(
        self,
        *,
        name: str = "imagenet",
        library: Library,
        arch: str,
        weights: str | None = None,
        random_weights: bool = False,
        seed: int = 0,
        num_classes: int = 1000,
        output: Output = "features",
        fps: float | None = 1.0,
        max_frames: int | None = None,
        frames_per_batch: int = 64,
    ) -> None:
        self.name = name
        self.output: Output = output
        self.frames_per_batch = frames_per_batch
        self._facts = {"library": library, "arch": arch, **versions(_DISTRIBUTION[library])}
        self._weights = Weights(weights, random_weights, seed)
        network = self._weights.fill(lambda: make_network(library, arch, num_classes))
        self._pixels = preprocessing(library, arch, network)
        self._head = take_head(network, arch)
        self._body = network
        self._request = Request(fps=fps, max_frames=max_frames, short_side=self._pixels.short_side)
        self._device = torch.device("cpu")

    @property
    def dim(self) -> int:
        return int(self._head.in_features if self.output == "features" else self._head.out_features)

    @property
    def request(self) -> Request:
        return self._request

    def recipe(self) -> Mapping[str, Any]:
        pixels = self._pixels
        return {
            **self._facts,
            "weights": self._weights.recipe(),
            "output": self.output,
            "pixels": {"size": pixels.size, "mean": list(pixels.mean), "std": list(pixels.std)},
        }

    def extract(self, clip: Clip) -> np.ndarray:
        assert clip.frames_THWC is not None
        frames_TSSC = self._pixels.cut(clip.frames_THWC)
        rows = []
        for at in range(0, len(frames_TSSC), self.frames_per_batch):
            pixels_TCHW = self._pixels.tensor(frames_TSSC[at : at + self.frames_per_batch], self._device)
            with torch.inference_mode():
                rows.append(self._forward(pixels_TCHW).float().cpu().numpy())
        return np.concatenate(rows)

    def _forward(self, pixels_TCHW: Tensor) -> Tensor:
        features_TD = self._body(pixels_TCHW)
        if self.output == "features":
            return features_TD
        logits_TD = self._head(features_TD)
        return logits_TD.softmax(dim=-1) if self.output == "probabilities" else logits_TD

    def to(self, device: torch.device) -> None:
        self._device = device
        self._body.to(device)
        self._head.to(device)


def make_network(library: Library, arch: str, num_classes: int) -> nn.Module:
    """An untrained classifier.

    Raises:
        UserError: the library does not know the architecture, or is not installed.
    """
    if library == "timm":
        import timm

        if not timm.is_model(arch):
            raise _unknown(arch, library, timm.list_models(f"*{arch[:6]}*")[:5])
        return timm.create_model(arch, pretrained=False, num_classes=num_classes)
    if library == "torchvision":
        import torchvision

        if arch not in torchvision.models.list_models(torchvision.models):
            raise _unknown(arch, library, ["resnet50", "convnext_tiny", "vit_b_16"])
        # Two networks start with random numbers of their own making, which takes long, unless told.
        options = {"init_weights": True} if arch in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **options)
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise need("efficientnet-lite-pytorch", "extract") from None
    sizes = [f"efficientnet-lite{number}" for number in range(5)]
    if arch not in sizes:
        raise _unknown(arch, library, sizes)
    return EfficientNet.from_name(arch, num_classes=num_classes)


def preprocessing(library: Library, arch: str, network: nn.Module) -> Pixels:
    """The input that the published weights of an architecture were trained with."""
    if library == "timm":
        from timm.data import resolve_data_config

        config = resolve_data_config({}, model=network)
        size = int(config["input_size"][-1])
        return Pixels(size, int(size / config["crop_pct"]), tuple(config["mean"]), tuple(config["std"]))
    if library == "torchvision":
        import torchvision

        published = torchvision.models.get_model_weights(arch).DEFAULT.transforms()
        size, border = int(published.crop_size[0]), int(published.resize_size[0])
        return Pixels(size, border, tuple(published.mean), tuple(published.std))
    size = int(network.get_image_size(arch))  # type: ignore[operator]
    return Pixels(size, size + _LITE_BORDER, (_LITE_MEAN,) * 3, (_LITE_STD,) * 3)


def take_head(network: nn.Module, arch: str) -> nn.Linear:
    """Cut the last linear layer off a classifier, in place; the network then gives the features.

    Raises:
        UserError: the classifier does not end in a linear layer.
    """
    linear = [name for name, module in network.named_modules() if _is_linear(module)]
    if not linear:
        raise UserError(f"extractor.arch={arch} has no linear layer, expected a classifier that ends in one")
    parent, _, name = linear[-1].rpartition(".")
    owner = network.get_submodule(parent)
    head = getattr(owner, name)
    setattr(owner, name, nn.Identity())
    return head if isinstance(head, nn.Linear) else _as_linear(head)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv3d) and set(module.kernel_size) == {1})


def _as_linear(head: nn.Conv3d) -> nn.Linear:
    """S3D averages over time behind its pointwise convolution; before it is the same."""
    linear = nn.Linear(head.in_channels, head.out_channels)
    with torch.no_grad():
        linear.weight.copy_(head.weight.flatten(1))
        linear.bias.copy_(head.bias if head.bias is not None else torch.zeros(head.out_channels))
    linear.requires_grad_(False)
    return linear


@cache
def imagenet_classes() -> tuple[str, ...]:
    """Names of the 1000 ImageNet classes in the order of the outputs, as WordNet has them: "goldfish, Carassius"."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.index_to_description(index) for index in range(info.num_classes()))


def _unknown(arch: str, library: str, known: list[str]) -> UserError:
    return UserError(f"extractor.arch={arch} is not known to {library}, expected for example {', '.join(known)}")
