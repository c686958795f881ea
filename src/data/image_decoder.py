"""Pictures as videos of one frame, read by Pillow: the pixels on which image-text models are trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Event
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageOps

from src.data.decoders import DecodeError

# First bytes -> format. Animated pictures (GIF) stay with the decoders of videos.
SIGNATURES = MappingProxyType(
    {
        b"\xff\xd8\xff": "JPEG",
        b"\x89PNG\r\n\x1a\n": "PNG",
        b"II*\x00": "TIFF",
        b"MM\x00*": "TIFF",
    }
)
# Streams of many pictures that begin as one.
STREAMS = frozenset({".mjpeg", ".mjpg", ".apng"})


def is_image(path: Path) -> bool:
    """Whether a file is a still picture, by its first bytes: files of Conceptual Captions have no extension."""
    if path.suffix.lower() in STREAMS or not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(16)
    still_webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return still_webp or any(start.startswith(signature) for signature in SIGNATURES)


class ImageDecoder:
    """One picture as a video of one frame, upright, transparency and palettes flattened to RGB.

    Source: `Image.open(...).convert("RGB")`, as Frozen in Time reads pictures.
    Deviates: a picture that says which side is up is turned.
    """

    name = "pillow"
    num_frames = 1
    fps = 1.0

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, indices: Sequence[int], stop: Event) -> np.ndarray:
        """uint8 (n, H, W, 3); every index is the picture."""
        try:
            with Image.open(self._path) as picture:
                frame_HWC = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DecodeError(f"not a readable picture ({error})") from error
        return np.repeat(frame_HWC[None], len(indices), axis=0)

    def close(self) -> None:
        """Nothing is kept open."""
