"""Sound: log-mel patches as VGGish cuts them, and VGGish itself from a local weights file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from src.errors import UserError
from src.extractors.base import Clip, Extractor, Request
from src.extractors.local_files import file_sha256, local_path
from src.models.weights import load_strictly, read_state_dict

SAMPLE_RATE = 16_000  # Hz
WINDOW = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
FFT = 512  # the next power of two
NUM_MEL = 64
LOW_HZ, HIGH_HZ = 125.0, 7500.0
LOG_OFFSET = 0.01
PATCH = 96  # windows, 0.96 s
PATCHES_AT_ONCE = 256  # bounds memory for long videos

MEL_RECIPE = {
    "sample_rate": SAMPLE_RATE,
    "window": WINDOW,
    "hop": HOP,
    "fft": FFT,
    "mel": [NUM_MEL, LOW_HZ, HIGH_HZ],
    "log_offset": LOG_OFFSET,
    "patch": PATCH,
}


@cache
def mel_matrix() -> np.ndarray:
    """float64 (FFT / 2 + 1, NUM_MEL): triangles that overlap by half and are straight on the mel scale.

    mel = 1127 ln(1 + Hz / 700); the bin of 0 Hz counts nowhere.
    Source: AudioSet VGGish, mel_features.
    """
    hertz_F = np.linspace(0.0, SAMPLE_RATE / 2, FFT // 2 + 1)
    mel_F = 1127.0 * np.log1p(hertz_F / 700.0)
    lowest, highest = 1127.0 * np.log1p(np.array([LOW_HZ, HIGH_HZ]) / 700.0)
    edges = np.linspace(lowest, highest, NUM_MEL + 2)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (mel_F[:, None] - low) / (centre - low)
    falling = (high - mel_F[:, None]) / (high - centre)
    weights = np.maximum(0.0, np.minimum(rising, falling))
    weights[0] = 0.0
    return weights


def log_mel_patches(wave_N: np.ndarray, last: Literal["drop", "pad"] = "drop") -> np.ndarray:
    """float32 (patches, 96, 64): log-mel spectrogram of a mono waveform at 16 kHz in pieces of 0.96 s.

    25 ms periodic Hann windows every 10 ms, magnitudes of a 512-point spectrum, 64 mel bands from 125 to 7500 Hz,
    log(x + 0.01). Pieces do not overlap; of a last incomplete one nothing is kept, or it is filled up with silence.
    """
    if last == "pad":
        windows = max(0, -(-(len(wave_N) - WINDOW) // HOP)) + 1
        wanted = -(-windows // PATCH) * PATCH
        wave_N = np.pad(wave_N, (0, max(0, WINDOW + (wanted - 1) * HOP - len(wave_N)))) if len(wave_N) else wave_N
    windows = 1 + (len(wave_N) - WINDOW) // HOP if len(wave_N) >= WINDOW else 0
    count = windows // PATCH
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    patches = np.empty((count, PATCH, NUM_MEL), dtype=np.float32)
    for start in range(0, count, PATCHES_AT_ONCE):
        stop = min(start + PATCHES_AT_ONCE, count)
        part = wave_N[start * PATCH * HOP : (stop * PATCH - 1) * HOP + WINDOW].astype(np.float64)
        frames = np.lib.stride_tricks.sliding_window_view(part, WINDOW)[::HOP]
        magnitudes = np.abs(np.fft.rfft(frames * hann, FFT))
        patches[start:stop] = np.log(magnitudes @ mel_matrix() + LOG_OFFSET).reshape(-1, PATCH, NUM_MEL)
    return patches


def mono_wave(clip: Clip) -> np.ndarray | None:
    """The waveform (samples,) of a clip; None where it has no sound.

    Raises:
        UserError: it is not at 16 kHz.
    """
    if clip.wave_CN is None or clip.wave_CN.size == 0:
        return None
    if clip.sample_rate != SAMPLE_RATE:
        raise UserError(
            f"{clip.id}: found sound at {clip.sample_rate} Hz, expected {SAMPLE_RATE} Hz; decode it at that"
        )
    return clip.wave_CN.mean(axis=0) if clip.wave_CN.shape[0] > 1 else clip.wave_CN[0]


class LogMel(Extractor):
    """Log-mel patches, one row per 0.96 s of sound. A video without sound, or with less than that, is missing.

    Args:
        name: of the store.
        pooling: patches = all 96 x 64 numbers, windows first (dim 6144); statistics = mean and standard deviation
            over the patch of each of the 64 bands (dim 128).
        last: what happens to an incomplete piece at the end: drop, as published, or pad with silence.
    """

    medium = "audio"
    nothing = "less than 0.96 s of sound"

    def __init__(
        self,
        *,
        name: str = "logmel",
        pooling: Literal["patches", "statistics"] = "patches",
        last: Literal["drop", "pad"] = "drop",
    ) -> None:
        self.name = name
        self.pooling = pooling
        self.last = last

    @property
    def dim(self) -> int:
        return PATCH * NUM_MEL if self.pooling == "patches" else 2 * NUM_MEL

    @property
    def request(self) -> Request:
        return Request(sample_rate=SAMPLE_RATE, mono=True)

    def recipe(self) -> Mapping[str, Any]:
        return {"extractor": "logmel", **MEL_RECIPE, "pooling": self.pooling, "last": self.last}

    def extract(self, clip: Clip) -> np.ndarray | None:
        wave_N = mono_wave(clip)
        patches = None if wave_N is None else log_mel_patches(wave_N, self.last)
        if patches is None or len(patches) == 0:
            return None
        if self.pooling == "patches":
            return patches.reshape(len(patches), -1)
        return np.concatenate([patches.mean(axis=1), patches.std(axis=1)], axis=1)


class VggishNetwork(nn.Module):
    """VGG configuration A without its last group, on log-mel patches (B, 96, 64); gives (B, 128).

    Source: AudioSet VGGish; parameter names as in the common torch ports (features.0, …, embeddings.4).
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool"):
            if isinstance(width, int):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        sizes = (512 * 6 * 4, 4096, 4096, 128)
        linear = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.embeddings = nn.Sequential(*(layer for one in linear for layer in (one, nn.ReLU(inplace=True))))

    def forward(self, patches_BTF: Tensor) -> Tensor:
        features_BCTF = self.features(patches_BTF[:, None])
        # TensorFlow, in which the weights were trained, keeps channels last.
        return self.embeddings(features_BCTF.permute(0, 2, 3, 1).flatten(1))


class Vggish(Extractor):
    """VGGish vectors, one row of 128 per 0.96 s of sound.

    Args:
        weights: a local state dict of a torch VGGish (features.{0,3,6,8,11,13} and embeddings.{0,2,4}; with
            pproc.pca_eigen_vectors and pproc.pca_means where `postprocess` needs them).
        random_weights: random numbers instead, on purpose, to try things out; such features mean nothing.
        name: of the store.
        postprocess: none = output of the network, as Collaborative Experts used; pca = rotated and whitened;
            quantized = that, clipped to [-2, 2] and rounded to 0 … 255, as the released AudioSet features.
        last: what happens to an incomplete piece at the end: drop, as published, or pad with silence.
        batch_size: pieces at once.
        seed: of random weights.
    """

    medium = "audio"
    nothing = "less than 0.96 s of sound"

    def __init__(
        self,
        *,
        weights: str | None,
        random_weights: bool = False,
        name: str = "vggish",
        postprocess: Literal["none", "pca", "quantized"] = "none",
        last: Literal["drop", "pad"] = "drop",
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        if (weights is None) != random_weights:
            found = "no weights" if weights is None else f"weights={weights} and random_weights=true"
            raise UserError(
                f"the extractor has {found}; give extractor.weights=FILE, or extractor.random_weights=true for a "
                "test of the plumbing"
            )
        if weights is None and postprocess != "none":
            raise UserError(f"extractor.postprocess={postprocess} with random weights; give extractor.weights=FILE")
        self.name = name
        self.path = None if weights is None else local_path(weights, "extractor.weights")
        self.postprocess = postprocess
        self.last = last
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device("cpu")
        self._loaded: tuple[VggishNetwork, tuple[Tensor, Tensor] | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    @property
    def dim(self) -> int:
        return 128

    @property
    def request(self) -> Request:
        return Request(sample_rate=SAMPLE_RATE, mono=True)

    def to(self, device: torch.device) -> None:
        self.device = device
        self._loaded = None

    def recipe(self) -> Mapping[str, Any]:
        random = {"random_seed": self.seed}
        return {
            "extractor": "vggish",
            "weights": random if self.path is None else {"file": self.path.name, "sha256": file_sha256(self.path)},
            **MEL_RECIPE,
            "postprocess": self.postprocess,
            "last": self.last,
            "batch_size": self.batch_size,
            "torch": torch.__version__,
        }

    @torch.inference_mode()
    def extract(self, clip: Clip) -> np.ndarray | None:
        wave_N = mono_wave(clip)
        patches = None if wave_N is None else log_mel_patches(wave_N, self.last)
        if patches is None or len(patches) == 0:
            return None
        if self._loaded is None:
            self._loaded = self._load()
        network, pca = self._loaded
        parts = torch.from_numpy(patches).split(self.batch_size)
        rows_ND = torch.cat([network(part.to(self.device)) for part in parts])
        if pca is not None:
            matrix_DD, means_D = pca
            rows_ND = (rows_ND - means_D) @ matrix_DD.T
        if self.postprocess == "quantized":
            rows_ND = ((rows_ND.clamp(-2.0, 2.0) + 2.0) * (255.0 / 4.0)).round()
        return rows_ND.float().cpu().numpy()

    def _load(self) -> tuple[VggishNetwork, tuple[Tensor, Tensor] | None]:
        if self.path is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                return VggishNetwork().eval().to(self.device), None
        state = read_state_dict(self.path)
        pca = _pca(state, self.path) if self.postprocess != "none" else None
        network = VggishNetwork()
        load_strictly(network, {name: x for name, x in state.items() if "pca_" not in name}, str(self.path))
        return network.eval().to(self.device), None if pca is None else (pca[0].to(self.device), pca[1].to(self.device))


def _pca(state: Mapping[str, Tensor], path: Path) -> tuple[Tensor, Tensor]:
    """Matrix (128, 128) of row vectors and means (128,)."""
    found = {name.rpartition(".")[2]: x.float() for name, x in state.items() if "pca_" in name}
    try:
        return found["pca_eigen_vectors"].reshape(128, 128), found["pca_means"].reshape(128)
    except (KeyError, RuntimeError):
        raise UserError(
            f"{path} holds {sorted(found) or 'no PCA'}, expected pca_eigen_vectors (128, 128) and pca_means (128); "
            "set extractor.postprocess=none or take a file that has them"
        ) from None
