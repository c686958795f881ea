"""Frames to normalised tensors as Frozen in Time and TextVR do it, on float tensors.

All frames of a clip share one draw of the random parameters. `antialias=False` gives the published numbers: the
torchvision of the time resized tensors without it; True is today's default and looks better.

`evaluation_squares` and `training_squares` are the same for the data sets, which hand out uint8 and leave the
normalisation to the model.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import functional as F

Recipe = Literal["frozen", "textvr"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FROZEN_CENTRE = 256 / 224  # side of the evaluation's centre crop, relative to the result
TEXTVR_TRAIN_SIDE = 242 / 224  # of the square that the crop is taken from, relative to the crop
JITTER, HUE = 0.5, 0.1  # of brightness, contrast, saturation; of hue
JITTER_PROBABILITY, GRAY_PROBABILITY = 0.8, 0.3


def evaluation_frames(
    frames_TCHW: Tensor, recipe: Recipe, *, size: int = 224, center_crop: int = 256, antialias: bool = False
) -> Tensor:
    """Frames of one video for validation and test.

    Args:
        frames_TCHW: float RGB in [0, 1], any size.
        recipe: `frozen` = short side to `center_crop`, the centre of that size, then to `size`; `textvr` = both sides
            to `size`, so that no text is cut off and the aspect ratio is lost.
        size: side of the result.
        center_crop: `frozen` only.
        antialias: smooth before shrinking.

    Returns:
        float (T, 3, size, size), normalised by ImageNet's mean and deviation.

    Source: m-bain/frozen-in-time@e1f13e1 and callsys/TextVR@ae16786, data_loader/transforms.py.
    """
    return _normalise(_evaluation(frames_TCHW, recipe, size, center_crop, antialias))


def _evaluation(frames_TCHW: Tensor, recipe: Recipe, size: int, center_crop: int, antialias: bool) -> Tensor:
    if recipe == "textvr":
        return F.resize(frames_TCHW, [size, size], antialias=antialias)
    frames_TCHW = F.center_crop(F.resize(frames_TCHW, [center_crop], antialias=antialias), [center_crop, center_crop])
    return F.resize(frames_TCHW, [size], antialias=antialias)


def training_frames(
    frames_TCHW: Tensor,
    recipe: Recipe,
    generator: torch.Generator,
    *,
    size: int = 224,
    antialias: bool = False,
) -> Tensor:
    """Frames of one video for training.

    Args:
        frames_TCHW: float RGB in [0, 1], any size.
        recipe: `frozen` = a random rectangle of half to all of the picture, flipped half of the time; its colour
            jitter is 0 as published. `textvr` = a square, of which a random part is cut, then colour jitter (80 %)
            and grey (30 %); never flipped, so that text stays readable.
        generator: source of all randomness.
        size: side of the result.
        antialias: smooth before shrinking.

    Returns:
        float (T, 3, size, size), normalised.

    Source: as `evaluation_frames`.
    """
    return _normalise(_training(frames_TCHW, recipe, generator, size, antialias))


def _training(frames_TCHW: Tensor, recipe: Recipe, generator: torch.Generator, size: int, antialias: bool) -> Tensor:
    if recipe == "frozen":
        top, left, height, width = _rectangle(frames_TCHW.shape[-2], frames_TCHW.shape[-1], generator)
        frames_TCHW = F.resized_crop(frames_TCHW, top, left, height, width, [size, size], antialias=antialias)
        if _draw(generator) < 0.5:
            frames_TCHW = F.hflip(frames_TCHW)
        return frames_TCHW
    side = round(size * TEXTVR_TRAIN_SIDE)
    frames_TCHW = F.resize(frames_TCHW, [side, side], antialias=antialias)
    top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for _ in range(2))
    frames_TCHW = F.crop(frames_TCHW, top, left, size, size)
    if _draw(generator) < JITTER_PROBABILITY:
        frames_TCHW = _jitter(frames_TCHW, generator)
    if _draw(generator) < GRAY_PROBABILITY:
        frames_TCHW = F.rgb_to_grayscale(frames_TCHW, num_output_channels=3)
    return frames_TCHW


def evaluation_squares(frames_THWC: np.ndarray, recipe: Recipe, size: int) -> np.ndarray:
    """As `evaluation_frames` without antialiasing and normalisation: uint8 frames to uint8 (T, 3, `size`, `size`).

    Deviates: pixels are rounded to 8 bits, by at most half a level.
    """
    return _to_uint8(_evaluation(_to_float(frames_THWC), recipe, size, round(size * FROZEN_CENTRE), False))


def training_squares(frames_THWC: np.ndarray, recipe: Recipe, size: int, rng: np.random.Generator) -> np.ndarray:
    """As `training_frames`, likewise; `rng` is the source of all randomness."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**63 - 1)))
    return _to_uint8(_training(_to_float(frames_THWC), recipe, generator, size, False))


def _to_float(frames_THWC: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2).float() / 255


def _to_uint8(frames_TCHW: Tensor) -> np.ndarray:
    return (frames_TCHW.clamp(0, 1) * 255).round().to(torch.uint8).contiguous().numpy()


def _normalise(frames_TCHW: Tensor) -> Tensor:
    return F.normalize(frames_TCHW, list(IMAGENET_MEAN), list(IMAGENET_STD))


def _draw(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _rectangle(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height, width of 50 to 100 % of the area, ratio 3:4 to 4:3; the centre when ten draws fail."""
    for _ in range(10):
        area = height * width * _draw(generator, 0.5, 1.0)
        ratio = math.exp(_draw(generator, math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(height - h + 1, (), generator=generator))
            left = int(torch.randint(width - w + 1, (), generator=generator))
            return top, left, h, w
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def _jitter(frames_TCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue in random order, one strength each."""
    factors = [_draw(generator, 1 - JITTER, 1 + JITTER) for _ in range(3)] + [_draw(generator, -HUE, HUE)]
    changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for index in torch.randperm(4, generator=generator).tolist():
        frames_TCHW = changes[index](frames_TCHW, factors[index])
    return frames_TCHW
