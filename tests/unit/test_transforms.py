from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from src.batch import FrameSpec
from src.data.transforms import to_square


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [32, 31])
@pytest.mark.parametrize(
    "shape", [(48, 64), (70, 40), (32, 32), (31, 57), (33, 35), (240, 426), (32, 33), (7, 90), (41, 41)]
)
def test_crop_is_clips_transform(shape: tuple[int, int], size: int) -> None:
    frames_THWC = noise(2, *shape)
    clip = Compose([Resize(size, InterpolationMode.BICUBIC), CenterCrop(size)])
    expected = np.stack([np.asarray(clip(Image.fromarray(frame))) for frame in frames_THWC])
    found = to_square(frames_THWC, FrameSpec(2, size))
    assert found.shape == (2, 3, size, size)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found.transpose(0, 2, 3, 1), expected)


def test_squash_keeps_the_corners_that_crop_loses() -> None:
    frames_THWC = np.zeros((1, 40, 120, 3), np.uint8)
    frames_THWC[:, :, :20] = 255
    squashed = to_square(frames_THWC, FrameSpec(1, 40, resize="squash"))
    assert squashed.shape == (1, 3, 40, 40)
    assert squashed[..., :5].min() > 250
    assert to_square(frames_THWC, FrameSpec(1, 40)).max() == 0


def test_does_not_change_its_input() -> None:
    frames_THWC = noise(1, 32, 32)
    before = frames_THWC.copy()
    to_square(frames_THWC, FrameSpec(1, 32))[:] = 0
    np.testing.assert_array_equal(frames_THWC, before)


def test_takes_rotated_views() -> None:
    frames_THWC = np.rot90(noise(1, 48, 64), axes=(1, 2))
    np.testing.assert_array_equal(
        to_square(frames_THWC, FrameSpec(1, 32)), to_square(frames_THWC.copy(), FrameSpec(1, 32))
    )
