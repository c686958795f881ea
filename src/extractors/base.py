"""What a feature extractor is: one item (decoded frames, a waveform or a caption) to an array of vectors.

An extractor knows nothing of data sets and files: `task=extract` decodes, calls it, and writes the store. A new one
is a file here and a yaml in conf/extractor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from src.clip import Clip, Medium, Request
from src.errors import UserError

__all__ = ["Clip", "Extractor", "Medium", "Request", "need"]


class Extractor(ABC):
    """One kind of features.

    Attributes:
        medium: what is decoded for it.
        nothing: what the store says of an item for which `extract` gave None.
        name: of the store it fills, unless the user gives another.
    """

    medium: ClassVar[Medium]
    nothing: ClassVar[str] = "nothing to extract"
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
        """Further facts that the store keeps as JSON beside the vectors (OCR words).

        Called after `extract` or `extract_many`, for each of their clips in order.
        """
        return None

    def to(self, device: torch.device) -> None:  # noqa: B027  an extractor without a network has nothing to move
        """Move the network, if there is one, to the device on which it will be called."""


def need(package: str, extra: str) -> UserError:
    """The error for an optional package that is not installed."""
    return UserError(f"the package {package} is not installed; install it with: pip install 'videotext[{extra}]'")
