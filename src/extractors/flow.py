"""Statistics of dense optical flow between neighbouring frames: how much moves, where, and in which direction."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from src.extractors.base import Clip, Extractor, Medium, Request, need
from src.extractors.local_files import versions
from src.extractors.networks import Weights

# RAFT works on an eighth of the picture and needs at least 16 of its pixels.
_RAFT_STEP, _RAFT_LEAST = 8, 128


class FlowExtractor(Extractor):
    """One vector per pair of neighbouring frames, from the flow field (u right, v down, both in short sides a second).

    A vector holds, for each cell of a grid row by row, the means of u, v and of the speed; then the histogram of
    directions, weighted by speed (the first bin is centred on "to the right", they go clockwise), which adds up to
    the mean speed.

    Args:
        name: of the store.
        method: farneback (OpenCV, no weights), raft_small or raft_large (torchvision).
        weights: RAFT: local file with torchvision's state dict.
        random_weights: RAFT: random ones instead, to try things out.
        seed: of the random weights.
        grid: cells in a row and in a column.
        directions: bins of the histogram.
        short_side: frames are scaled to it, pixels.
        fps: frames per second of video; null = all.
        max_frames: at most so many, evenly spread, which lengthens the time between neighbours; null = no limit.
        pairs_per_batch: RAFT: through the network at once.

    Raises:
        UserError: OpenCV is not installed, or weights are missing or do not fit.

    Source: Farnebäck, Two-frame motion estimation based on polynomial expansion, 2003; Teed and Deng, RAFT, 2020.
    """

    medium: ClassVar[Medium] = "frames"
    nothing: ClassVar[str] = "fewer than two frames"

    def __init__(
        self,
        *,
        name: str = "flow",
        method: Literal["farneback", "raft_small", "raft_large"] = "farneback",
        weights: str | None = None,
        random_weights: bool = False,
        seed: int = 0,
        grid: int = 4,
        directions: int = 8,
        short_side: int = 128,
        fps: float | None = 8.0,
        max_frames: int | None = None,
        pairs_per_batch: int = 8,
    ) -> None:
        self.name = name
        self.method = method
        self.grid = grid
        self.directions = directions
        self.pairs_per_batch = pairs_per_batch
        self._request = Request(fps=fps, max_frames=max_frames, short_side=short_side)
        self._device = torch.device("cpu")
        self._weights = Weights(weights, random_weights, seed)
        self._network: Any = None
        if method == "farneback":
            self._library = versions(_opencv())
        else:
            from torchvision.models import get_model

            self._library = versions("torchvision")
            self._network = self._weights.fill(lambda: get_model(method, weights=None))

    @property
    def dim(self) -> int:
        return 3 * self.grid**2 + self.directions

    @property
    def request(self) -> Request:
        return self._request

    def recipe(self) -> Mapping[str, Any]:
        facts = {"method": self.method, "grid": self.grid, "directions": self.directions, **self._library}
        return facts if self._network is None else {**facts, "weights": self._weights.recipe()}

    def extract(self, clip: Clip) -> np.ndarray | None:
        frames_THWC = clip.frames_THWC
        assert frames_THWC is not None
        if len(frames_THWC) < 2:
            return None
        steps_s = np.diff(clip.frame_indices) / clip.fps
        short_side = min(frames_THWC.shape[1:3])
        rows = []
        for at in range(0, len(steps_s), self.pairs_per_batch):
            pairs = frames_THWC[at : at + self.pairs_per_batch + 1]
            flow_NHW2 = self._farneback(pairs) if self._network is None else self._raft(pairs)
            seconds_N = steps_s[at : at + self.pairs_per_batch, None, None, None]
            rows += [self.statistics(flow_HW2) for flow_HW2 in flow_NHW2 / (short_side * seconds_N)]
        return np.stack(rows).astype(np.float32)

    def statistics(self, flow_HW2: np.ndarray) -> np.ndarray:
        """(dim,) of one flow field (H, W, 2)."""
        speed_HW = np.linalg.norm(flow_HW2, axis=-1)
        all_HW3 = np.concatenate([flow_HW2, speed_HW[..., None]], axis=-1)
        rows = np.array_split(all_HW3, self.grid, axis=0)
        cells = [cell.mean(axis=(0, 1)) for row in rows for cell in np.array_split(row, self.grid, axis=1)]
        turn_HW = np.arctan2(flow_HW2[..., 1], flow_HW2[..., 0]) / (2 * np.pi)
        bin_HW = np.floor(turn_HW * self.directions + 0.5).astype(int) % self.directions
        histogram = np.bincount(bin_HW.ravel(), speed_HW.ravel(), minlength=self.directions) / speed_HW.size
        return np.concatenate([*cells, histogram])

    def _farneback(self, frames_THWC: np.ndarray) -> np.ndarray:
        """(T - 1, H, W, 2), pixels."""
        import cv2

        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames_THWC]
        flows = []
        for before, after in itertools.pairwise(grey):
            # Pyramid of 3 at half size each, windows of 15 px, 3 rounds, polynomials over 5 px.
            flows.append(cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0))  # type: ignore[call-overload]
        return np.stack(flows)

    def _raft(self, frames_THWC: np.ndarray) -> np.ndarray:
        """(T - 1, H, W, 2), pixels; frames are filled up at the edges to the size that RAFT needs."""
        height, width = frames_THWC.shape[1:3]
        fill = [max(_RAFT_LEAST, -(-side // _RAFT_STEP) * _RAFT_STEP) - side for side in (height, width)]
        padded = np.pad(frames_THWC, ((0, 0), (0, fill[0]), (0, fill[1]), (0, 0)), mode="edge")
        pixels_TCHW = torch.from_numpy(padded).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            flow_N2HW = self._network(pixels_TCHW[:-1], pixels_TCHW[1:])[-1]
        return flow_N2HW[..., :height, :width].permute(0, 2, 3, 1).cpu().numpy()

    def to(self, device: torch.device) -> None:
        if self._network is not None:
            self._device = device
            self._network.to(device)


def _opencv() -> str:
    """Name of the installed distribution of OpenCV; there are several of the same module."""
    import importlib.metadata

    try:
        import cv2  # noqa: F401
    except ImportError:
        raise need("opencv-python-headless", "extract") from None
    return sorted(set(importlib.metadata.packages_distributions()["cv2"]))[0]
