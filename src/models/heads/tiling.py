"""Scores of all pairs when the work per pair is large: tile by tile, so that memory stays bounded.

Shape suffixes: N captions, V videos.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Parts = Mapping[str, Tensor]

ELEMENTS_AT_ONCE = 2**26
"""Numbers that the intermediate results of one tile may hold: 0.27 GB in float32."""


def tiled(score: Callable[[Parts, Parts], Tensor], text: Parts, video: Parts, pair_elements: int) -> Tensor:
    """Scores (N, V) of every caption with every video.

    While gradients are recorded, only the scores of a tile are kept, and the rest is computed again in the backward
    pass.

    Args:
        score: gives (n, v) of any n captions and v videos.
        text: tensors whose first dimension is the caption.
        video: tensors whose first dimension is the video.
        pair_elements: numbers that `score` holds for one pair at its peak.
    """
    count_N, count_V = _length(text), _length(video)
    rows, columns = tile_shape(count_N, count_V, max(1, ELEMENTS_AT_ONCE // max(1, pair_elements)))
    if rows >= count_N and columns >= count_V:
        return score(text, video)
    lines = []
    for rows_text in _pieces(text, rows):
        tiles = [_tile(score, rows_text, columns_video) for columns_video in _pieces(video, columns)]
        lines.append(torch.cat(tiles, dim=1))
    return torch.cat(lines)


def tile_shape(captions: int, videos: int, pairs: int) -> tuple[int, int]:
    """Captions and videos of a tile of at most `pairs` pairs, nearly square, and all tiles nearly equal."""
    columns = min(max(videos, 1), max(1, math.isqrt(pairs)))
    rows = min(max(captions, 1), pairs // columns)
    columns = _even(videos, pairs // rows)
    return _even(captions, pairs // columns), columns


def _even(count: int, most: int) -> int:
    pieces = max(1, math.ceil(count / most))
    return max(1, math.ceil(count / pieces))


def _tile(score: Callable[[Parts, Parts], Tensor], text: Parts, video: Parts) -> Tensor:
    if torch.is_grad_enabled():
        return checkpoint(score, text, video, use_reentrant=False)
    return score(text, video)


def _length(parts: Parts) -> int:
    return len(next(iter(parts.values())))


def _pieces(parts: Parts, size: int) -> list[dict[str, Tensor]]:
    cut = {name: value.split(size) for name, value in parts.items()}
    return [dict(zip(cut, piece, strict=True)) for piece in zip(*cut.values(), strict=True)]
