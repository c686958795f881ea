"""Similarities of captions and videos in one space: as training differentiates them, and as evaluation ranks by them.

Both return rows text, columns video, higher = more alike. They differ where the published code differs: evaluation
normalises for the cosine and takes the distance where training takes its square.

Shape suffixes: T captions, V videos, D dimensions, R captions and C videos of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from src.errors import UserError

Measure = Literal["cosine", "order", "euclidean", "l1", "l2", "l1_norm", "l2_norm", "jaccard"]
MeasureFn = Callable[[Tensor, Tensor], Tensor]

TILE_BYTES = {"cpu": 1 << 19, "cuda": 1 << 27}
"""Size of the (captions × videos × dimensions) buffer: on a CPU it has to stay in the core's own cache."""
STRIP = 1024  # captions finished together
TINY = torch.finfo(torch.float32).tiny


def training_measure(name: Measure) -> MeasureFn:
    """The similarity `f(text_TD, video_VD) -> s_TV` of a training loss.

    - cosine: inner product; the vectors are unit vectors already.
    - order: minus the norm of what the video lacks of the caption, max(0, s − v).
    - euclidean, l2: minus the squared distance. l1: minus the sum of absolute differences.
    - l1_norm, l2_norm: one minus the sum of absolute, or squared, differences divided by D.
    - jaccard: Σ min / Σ max, for non-negative vectors; 0 where both are zero.

    Raises:
        UserError: an unknown name.

    Source: hybrid_space loss.py @ b934eff.
    Deviates: l1_norm and l2_norm have the opposite sign, since upstream's grow with the distance; an unknown name is
        refused instead of read as cosine; two equal vectors have a finite gradient in order.
    """
    return _find(_TRAINING, name)


def evaluation_measure(name: Measure) -> MeasureFn:
    """The score `f(text_TD, video_VD) -> s_TV` that evaluation ranks by; memory above the result is bounded.

    - cosine: inner product of the vectors brought to unit length.
    - order, l1, jaccard: as in training.
    - euclidean, l2: minus the distance.
    - l1_norm, l2_norm: one minus the L1 distance, or the Euclidean distance, divided by D.

    Raises:
        UserError: an unknown name.

    Source: hybrid_space evaluation.py cal_error @ b934eff, whose errors are minus these scores (l1_norm, l2_norm:
        these scores minus two).
    Deviates: l1_norm and l2_norm rank the nearest first; upstream ranks it last.
    """
    return torch.no_grad()(_find(_EVALUATION, name))


def jaccard_tiled(text_TD: Tensor, video_VD: Tensor) -> Tensor:
    """Generalised Jaccard Σ min / Σ max without the (T, V, D) tensor, cut into tiles on both axes.

    One sum decides, since Σ max = Σ s + Σ v − Σ min; the L1 distance, Σ s + Σ v − 2 Σ min, is the same identity, but
    a vectorised minimum and a matrix product with ones take 60 % of the time of `torch.cdist`. No gradient.
    """
    texts_TD, videos_VD = text_TD.contiguous(), video_VD.contiguous()
    s_TV = texts_TD.new_empty(len(texts_TD), len(videos_VD))
    for start in range(0, len(texts_TD), STRIP):
        texts_RD = texts_TD[start : start + STRIP]
        shared_RV = s_TV[start : start + STRIP]
        _shared_mass(texts_RD, videos_VD, shared_RV)
        # The sums in float64: what they round would count twice.
        all_RV = texts_RD.sum(1, dtype=torch.float64)[:, None] + videos_VD.sum(1, dtype=torch.float64) - shared_RV
        shared_RV.copy_(shared_RV / all_RV.clamp_min(TINY))
    return s_TV


def _shared_mass(text_RD: Tensor, video_VD: Tensor, out_RV: Tensor) -> None:
    """Σ min of every pair into `out_RV`, in tiles whose (captions, videos, D) buffer fits TILE_BYTES."""
    dim, on_cpu = text_RD.shape[1], text_RD.device.type == "cpu"
    cells = max(1, TILE_BYTES["cpu" if on_cpu else "cuda"] // max(1, dim * text_RD.element_size()))
    width = min(len(video_VD), 32 if on_cpu else 1024, cells)
    height = min(len(text_RD), cells // max(1, width))
    buffer = text_RD.new_empty(height * width * dim)
    ones_D = text_RD.new_ones(dim)
    for left in range(0, len(video_VD), max(1, width)):
        video_CD = video_VD[left : left + width]
        for top in range(0, len(text_RD), max(1, height)):
            tile_RD = text_RD[top : top + height]
            shape = (len(tile_RD), len(video_CD))
            least_RCD = buffer[: shape[0] * shape[1] * dim].view(*shape, dim)
            torch.minimum(tile_RD[:, None], video_CD[None], out=least_RCD)
            sums_RC = torch.mv(least_RCD.view(-1, dim), ones_D).view(shape)
            out_RV[top : top + shape[0], left : left + shape[1]] = sums_RC


def _jaccard(text_TD: Tensor, video_VD: Tensor) -> Tensor:
    """The L1 identity; `cdist` keeps neither minima nor masks for the backward pass."""
    both_TV = text_TD.sum(1)[:, None] + video_VD.sum(1)
    apart_TV = _l1(text_TD, video_VD)
    return (both_TV - apart_TV) / (both_TV + apart_TV).clamp_min(TINY)


def _inner(text_TD: Tensor, video_VD: Tensor) -> Tensor:
    return text_TD @ video_VD.T


def cosine(text_TD: Tensor, video_VD: Tensor) -> Tensor:
    """s_TV of vectors of any length."""
    return normalize(text_TD, dim=1) @ normalize(video_VD, dim=1).T


def _l1(text_TD: Tensor, video_VD: Tensor) -> Tensor:
    return torch.cdist(text_TD, video_VD, p=1)


def _squared(text_TD: Tensor, video_VD: Tensor) -> Tensor:
    """Squared distances; in float64, because the identity cancels for close vectors."""
    text_TD, video_VD, dtype = text_TD.double(), video_VD.double(), text_TD.dtype
    both_TV = text_TD.square().sum(1)[:, None] + video_VD.square().sum(1)
    return (both_TV - 2 * text_TD @ video_VD.T).clamp_min(0).to(dtype)


def _distance(text_TD: Tensor, video_VD: Tensor) -> Tensor:
    return _squared(text_TD, video_VD).sqrt()


def _missing(text_TD: Tensor, video_VD: Tensor) -> Tensor:
    """‖max(0, s − v)‖; vector_norm has gradient 0 at 0, where a square root has none."""
    rows = max(1, TILE_BYTES["cuda"] // max(1, video_VD.nbytes))
    return torch.cat(
        [
            torch.linalg.vector_norm((texts_RD[:, None] - video_VD[None]).clamp_min(0), dim=2)
            for texts_RD in text_TD.split(rows)
        ]
    )


def _find(known: dict[str, MeasureFn], name: str) -> MeasureFn:
    if name not in known:
        raise UserError(f"measure: found {name!r}, expected one of {', '.join(known)}; check the model's measures")
    return known[name]


_TRAINING: dict[str, MeasureFn] = {
    "cosine": _inner,
    "order": lambda s, v: -_missing(s, v),
    "euclidean": lambda s, v: -_squared(s, v),
    "l1": lambda s, v: -_l1(s, v),
    "l2": lambda s, v: -_squared(s, v),
    "l1_norm": lambda s, v: 1 - _l1(s, v) / s.shape[1],
    "l2_norm": lambda s, v: 1 - _squared(s, v) / s.shape[1],
    "jaccard": _jaccard,
}
_EVALUATION: dict[str, MeasureFn] = {
    "cosine": cosine,
    "order": lambda s, v: -_missing(s, v),
    "euclidean": lambda s, v: -_distance(s, v),
    "l1": lambda s, v: -_l1(s, v),
    "l2": lambda s, v: -_distance(s, v),
    "l1_norm": lambda s, v: 1 - _l1(s, v) / s.shape[1],
    "l2_norm": lambda s, v: 1 - _distance(s, v) / s.shape[1],
    "jaccard": jaccard_tiled,
}
