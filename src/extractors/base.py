"""What a feature extractor is: one item (decoded frames, a waveform or a caption) to an array of vectors.

An extractor knows nothing of data sets and files: `task=extract` decodes, calls it, and writes the store. A new one
is a file here and a yaml in conf/extractor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from src.errors import UserError

Medium = Literal["frames", "audio", "text"]


@dataclass(frozen=True)
class Clip:
    """One decoded item.

    Attributes:
        id: video id, or the key of a caption.
        path: the video file; None for captions.
        frames_THWC: uint8 RGB at the request's rate and size, for `medium = "frames"`.
        frame_indices: position of each frame in the file.
        fps: frames per second of the file.
        size_hw: height and width of the file's frames, pixels, before any resizing.
        wave_CN: float32 in [-1, 1], for `medium = "audio"`.
        sample_rate: of the waveform, Hz.
        text: for `medium = "text"`.
    """

    id: str
    path: Path | None = None
    frames_THWC: np.ndarray | None = None
    frame_indices: tuple[int, ...] = ()
    fps: float = 0.0
    size_hw: tuple[int, int] = (0, 0)
    wave_CN: np.ndarray | None = None
    sample_rate: int = 0
    text: str = ""


@dataclass(frozen=True)
class Request:
    """What is to be decoded for an extractor.

    Attributes:
        fps: frames per second of video time; None = every frame.
        max_frames: at most so many frames, evenly spread over those of `fps`; None = all.
        short_side: frames are scaled so that their shorter side has so many pixels; None = as they are.
        sample_rate: Hz, of the waveform; None = that of the file.
        mono: channels are averaged.
    """

    fps: float | None = 1.0
    max_frames: int | None = None
    short_side: int | None = None
    sample_rate: int | None = None
    mono: bool = True


class Extractor(ABC):
    """One kind of features.

    Attributes:
        medium: what is decoded for it.
        name: of the store it fills, unless the user gives another.
    """

    medium: ClassVar[Medium]
    name: str

    @property
    @abstractmethod
    def dim(self) -> int:
        """Length of one vector."""

    @property
    def request(self) -> Request:
        """What to decode; captions need nothing."""
        return Request()

    @abstractmethod
    def recipe(self) -> Mapping[str, Any]:
        """Everything that the numbers depend on, as plain JSON: versions, weights and their sha256, sizes, rates."""

    @abstractmethod
    def extract(self, clip: Clip) -> np.ndarray | None:
        """float32 (steps, dim); None when the item has nothing to extract (no sound, no face, no text): "missing".

        Raises:
            UserError: the item cannot be used; it is listed as failed and the others go on.
        """

    def extract_many(self, clips: list[Clip]) -> list[np.ndarray | None]:
        """As `extract`, for extractors that are faster on several items at once."""
        return [self.extract(clip) for clip in clips]

    def details(self, clip: Clip) -> Mapping[str, Any] | None:
        """Further facts about the item just extracted that the store keeps as JSON beside the vectors (OCR words)."""
        return None

    def to(self, device: torch.device) -> None:  # noqa: B027  an extractor without a network has nothing to move
        """Move the network, if there is one, to the device on which it will be called."""


def need(package: str, extra: str) -> UserError:
    """The error for an optional package that is not installed."""
    return UserError(f"the package {package} is not installed; install it with: pip install 'videotext[{extra}]'")
