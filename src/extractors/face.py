"""Faces: where they are (MTCNN, whose weights come inside its package) and, with a network for it, whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from src.errors import UserError
from src.extractors.base import Clip, Extractor, Medium, Request, need
from src.extractors.local_files import file_sha256, local_path, versions
from src.extractors.networks import frozen, state_sha256
from src.extractors.windows import load_network
from src.models.weights import load_strictly, read_state_dict

INCEPTION = "inception_resnet_v1"
# What a vector without an embedder holds.
BOX_FACTS = ("faces", "x", "y", "width", "height", "confidence", "area")


class FaceExtractor(Extractor):
    """Without `embedder` one vector per frame that shows a face: number of faces; centre, size and confidence of the
    largest one; share of the picture that all cover together (summed). Lengths are shares of width and height.

    With `embedder` one vector per face: frames in order, in each the largest face first.

    The store's details hold the frame and the box (pixels of the file) of every face.

    Args:
        name: of the store.
        embedder: null; `inception_resnet_v1` (facenet-pytorch) with a file of `weights`; or `module:function` or a
            file, as for extractor=plugin, that takes (N, 3, face_size, face_size).
        weights: of the embedder.
        face_size: side to which faces are scaled for the embedder, pixels.
        min_face: smaller ones are not looked for, pixels of the frame.
        confidence: of the detector, at least.
        short_side: frames are scaled to it, pixels; null = as they are.
        fps: frames per second of video; null = all.
        max_frames: at most so many, evenly spread; null = no limit.

    Raises:
        UserError: facenet-pytorch is not installed, or weights are missing or do not fit.

    Source: timesler/facenet-pytorch; Zhang et al., Joint face detection and alignment (MTCNN), 2016.
    """

    medium: ClassVar[Medium] = "frames"
    nothing: ClassVar[str] = "no face"

    def __init__(
        self,
        *,
        name: str = "face",
        embedder: str | None = None,
        weights: str | None = None,
        face_size: int = 160,
        min_face: int = 20,
        confidence: float = 0.9,
        short_side: int | None = None,
        fps: float | None = 1.0,
        max_frames: int | None = None,
    ) -> None:
        self.name = name
        self.face_size = face_size
        self.confidence = confidence
        self._request = Request(fps=fps, max_frames=max_frames, short_side=short_side)
        self._settings = {"min_face": min_face, "confidence": confidence}
        self._detector = _detector(min_face)
        self._embedder, self._facts = _embedder(embedder, weights)
        self._device = torch.device("cpu")
        self._dim = len(BOX_FACTS) if self._embedder is None else self._measure()
        self._found: dict[str, list[dict[str, Any]]] = {}

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def request(self) -> Request:
        return self._request

    def recipe(self) -> Mapping[str, Any]:
        embedder = {**self._facts, "face_size": self.face_size} if self._facts else None
        detector = {"sha256": state_sha256(self._detector), **self._settings, **versions("facenet-pytorch")}
        return {"detector": detector, "embedder": embedder, "vector": None if embedder else list(BOX_FACTS)}

    def extract(self, clip: Clip) -> np.ndarray | None:
        frames_THWC = clip.frames_THWC
        assert frames_THWC is not None
        scale = clip.size_hw[0] / frames_THWC.shape[1]
        rows: list[np.ndarray] = []
        facts = []
        for number, frame_HWC in zip(clip.frame_indices, frames_THWC, strict=True):
            boxes_N4, scores_N = self._detect(frame_HWC)
            if not len(boxes_N4):
                continue
            if self._embedder is None:
                rows.append(box_facts(boxes_N4, scores_N, frame_HWC.shape[:2])[None])
            else:
                rows.append(self._embed(np.stack([_crop(frame_HWC, box, self.face_size) for box in boxes_N4])))
            for box, score in zip(boxes_N4, scores_N, strict=True):
                corners = [round(float(corner), 1) for corner in box * scale]
                facts.append({"frame": number, "box": corners, "confidence": round(float(score), 4)})
        self._found = {clip.id: facts}
        return np.concatenate(rows) if rows else None

    def extract_many(self, clips: list[Clip]) -> list[np.ndarray | None]:
        found: dict[str, list[dict[str, Any]]] = {}
        results = []
        for clip in clips:
            results.append(self.extract(clip))
            found |= self._found
        self._found = found
        return results

    def details(self, clip: Clip) -> Mapping[str, Any] | None:
        faces = self._found.get(clip.id)
        return {"faces": faces} if faces else None

    def to(self, device: torch.device) -> None:
        self._device = device
        self._detector.to(device)
        self._detector.device = device
        if self._embedder is not None:
            self._embedder.to(device)

    def _detect(self, frame_HWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corners (N, 4), pixels, the largest face first, and confidences (N,)."""
        # The detector fails on pictures that are smaller than the faces it looks for.
        fits = min(frame_HWC.shape[:2]) >= self._settings["min_face"]
        boxes, scores = self._detector.detect(frame_HWC) if fits else (None, None)
        if boxes is None:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        corners_N4, scores_N = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
        sure_N = scores_N >= self.confidence
        return corners_N4[sure_N], scores_N[sure_N]

    def _embed(self, faces_NSSC: np.ndarray) -> np.ndarray:
        assert self._embedder is not None
        pixels_NCSS = torch.from_numpy(faces_NSSC).to(self._device).permute(0, 3, 1, 2).float()
        with torch.inference_mode():
            return self._embedder((pixels_NCSS - 127.5) / 128).flatten(1).float().cpu().numpy()

    def _measure(self) -> int:
        return self._embed(np.zeros((2, self.face_size, self.face_size, 3), np.uint8)).shape[1]


def box_facts(boxes_N4: np.ndarray, scores_N: np.ndarray, size_hw: tuple[int, ...]) -> np.ndarray:
    """(7,), named by BOX_FACTS; the largest face comes first."""
    height, width = size_hw[:2]
    relative_N4 = boxes_N4 / np.array([width, height, width, height], np.float32)
    sizes_N2 = relative_N4[:, 2:] - relative_N4[:, :2]
    centre = (relative_N4[0, :2] + relative_N4[0, 2:]) / 2
    area = sizes_N2.prod(axis=1).sum()
    return np.array([len(boxes_N4), *centre, *sizes_N2[0], scores_N[0], area], np.float32)


def _crop(frame_HWC: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """The part of the picture inside the box, scaled to a square."""
    height, width = frame_HWC.shape[:2]
    left, top = (int(np.clip(box[i], 0, limit - 1)) for i, limit in ((0, width), (1, height)))
    right, bottom = max(left + 1, min(int(box[2]), width)), max(top + 1, min(int(box[3]), height))
    face = Image.fromarray(frame_HWC[top:bottom, left:right])
    return np.asarray(face.resize((size, size), Image.Resampling.BILINEAR))


def _detector(min_face: int) -> Any:
    try:
        from facenet_pytorch import MTCNN
    except ImportError:
        raise UserError(
            f"{need('facenet-pytorch', 'extract')}; its own list of requirements asks for an old torch: "
            "pip install --no-deps facenet-pytorch"
        ) from None
    return frozen(MTCNN(keep_all=True, min_face_size=min_face))


def _embedder(source: str | None, weights: str | None) -> tuple[nn.Module | None, dict[str, Any]]:
    if source is None:
        return None, {}
    if source != INCEPTION:
        return load_network(source, weights, trust=False)
    from facenet_pytorch import InceptionResnetV1

    if weights is None:
        raise UserError(f"extractor.embedder={INCEPTION} has no weights; give extractor.weights=FILE")
    path = local_path(weights, "extractor.weights", "extract")
    network = frozen(InceptionResnetV1())
    # The published files carry the classifier that they were trained with.
    kept = {name: value for name, value in read_state_dict(path).items() if not name.startswith("logits.")}
    load_strictly(network, kept, str(path))
    return network, {"network": INCEPTION, "file": path.name, "sha256": file_sha256(path)}
