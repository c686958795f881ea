"""CLIP's image tower, one vector per frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from src.errors import UserError
from src.extractors.base import Clip, Extractor, Medium, Request
from src.extractors.local_files import versions
from src.extractors.networks import Pixels, frozen, state_sha256
from src.models.clip_tower import ClipTower


class ClipExtractor(Extractor):
    """Image vectors of any open_clip architecture.

    Args:
        name: of the store.
        arch: open_clip architecture; OpenAI's weights need one that ends in -quickgelu.
        weights: `openai` or another tag that open_clip can fetch, or a local file.
        random_weights: random ones instead, to try things out.
        seed: of the random weights.
        normalise: vectors of length 1, as CLIP compares them.
        fps: frames per second of video; null = all.
        max_frames: at most so many, evenly spread; null = no limit.
        frames_per_batch: through the network at once.

    Raises:
        UserError: unknown architecture, or weights that cannot be had or do not fit.
    """

    medium: ClassVar[Medium] = "frames"

    def __init__(
        self,
        *,
        name: str = "clip",
        arch: str = "ViT-B-32-quickgelu",
        weights: str | None = None,
        random_weights: bool = False,
        seed: int = 0,
        normalise: bool = True,
        fps: float | None = 1.0,
        max_frames: int | None = None,
        frames_per_batch: int = 64,
    ) -> None:
        self.name = name
        self.normalise = normalise
        self.frames_per_batch = frames_per_batch
        self._weights = {"random_seed": seed} if random_weights else {"source": (weights or "").rpartition("/")[2]}
        self._tower = _tower(arch, None if random_weights else weights, seed)
        size = self._tower.image_size
        mean, std = (tuple(values.tolist()) for values in (self._tower.mean, self._tower.std))
        self._pixels = Pixels(size, size, mean, std)
        self._request = Request(fps=fps, max_frames=max_frames, short_side=size)
        self._device = torch.device("cpu")

    @property
    def dim(self) -> int:
        return self._tower.embed_dim

    @property
    def request(self) -> Request:
        return self._request

    def recipe(self) -> Mapping[str, Any]:
        return {
            "arch": self._tower.arch,
            "weights": {**self._weights, "sha256": state_sha256(self._tower.clip.visual)},
            "normalise": self.normalise,
            "image_size": self._pixels.size,
            **versions("open_clip_torch"),
        }

    def extract(self, clip: Clip) -> np.ndarray:
        assert clip.frames_THWC is not None
        frames_TSSC = self._pixels.cut(clip.frames_THWC)
        rows = []
        for at in range(0, len(frames_TSSC), self.frames_per_batch):
            pixels_TCHW = self._pixels.tensor(frames_TSSC[at : at + self.frames_per_batch], self._device)
            with torch.inference_mode():
                vectors_TD = self._tower.clip.encode_image(pixels_TCHW, normalize=self.normalise)
            rows.append(vectors_TD.float().cpu().numpy())
        return np.concatenate(rows)

    def to(self, device: torch.device) -> None:
        self._device = device
        self._tower.to(device)


def _tower(arch: str, weights: str | None, seed: int) -> ClipTower:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tower = ClipTower(arch, weights)
    except UserError as error:
        # The tower speaks of the group `model`, where it is used otherwise.
        words = str(error).replace("model.pretrained", "extractor.weights").replace("model.arch", "extractor.arch")
        raise UserError(words) from None
    frozen(tower)
    return tower
