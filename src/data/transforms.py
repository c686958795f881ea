"""Decoded frames to the square uint8 pictures that a model takes; normalisation is the model's."""

from __future__ import annotations

import numpy as np
from PIL import Image

from src.batch import FrameSpec


def to_square(frames_THWC: np.ndarray, spec: FrameSpec) -> np.ndarray:
    """Resize and crop every frame to `spec.image_size`.

    Args:
        frames_THWC: uint8 RGB of any size.
        spec: `resize="crop"`: short side to the size (bicubic, antialiased), then the centre, as CLIP's transform;
            `"squash"`: both sides to the size (bilinear, antialiased), the aspect ratio is lost, no text is cut off;
            `"frozen"`, `"textvr"`: see `src.data.frozen_transforms.evaluation_squares`.

    Returns:
        uint8 (T, 3, S, S), contiguous.

    Source: CLIP's transform as torchvision computes it on PIL images, whose fixed-point arithmetic is kept by using
        PIL itself: torchvision's uint8 tensor path rounds some pixels differently.
    """
    size = spec.image_size
    if spec.resize == "frozen" or spec.resize == "textvr":
        from src.data.frozen_transforms import evaluation_squares  # here: torchvision takes a second

        return evaluation_squares(frames_THWC, spec.resize, size)
    squares_TSSC = np.empty((len(frames_THWC), size, size, 3), dtype=np.uint8)
    for i, frame_HWC in enumerate(frames_THWC):
        squares_TSSC[i] = _squash(frame_HWC, size) if spec.resize == "squash" else _crop(frame_HWC, size)
    return np.ascontiguousarray(squares_TSSC.transpose(0, 3, 1, 2))


def to_training_square(frames_THWC: np.ndarray, spec: FrameSpec, rng: np.random.Generator) -> np.ndarray:
    """As `to_square`, changed at random as `spec.augment` says, all frames of the video alike.

    Args:
        frames_THWC: uint8 RGB of any size; squares of a cache, too.
        spec: see `FrameSpec.augment`.
        rng: source of all randomness.
    """
    if spec.augment == "none":
        return to_square(frames_THWC, spec)
    from src.data.frozen_transforms import training_squares  # here: torchvision takes a second

    return training_squares(frames_THWC, spec.augment, spec.image_size, rng)


def _squash(frame_HWC: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(frame_HWC).resize((size, size), Image.Resampling.BILINEAR))


def _crop(frame_HWC: np.ndarray, size: int) -> np.ndarray:
    height, width = frame_HWC.shape[:2]
    # torchvision truncates the long side and rounds the crop's corner half to even.
    if width <= height:
        new_width, new_height = size, int(size * height / width)
    else:
        new_width, new_height = int(size * width / height), size
    image = Image.fromarray(frame_HWC)
    if (new_width, new_height) != (width, height):
        image = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))
