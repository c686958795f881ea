"""Embeddings of a published teacher (TeachText) to scores of all its captions with all its videos.

A file is a dict video -> {"vid_embds": {expert: (D,)}, "text_embds": {expert: (D,) for each caption}}. The teacher's
weights of the experts are not in it: as in the published training, a score is the plain sum of inner products.
Source: collaborative-experts data_loader and trainer/trainer.py @ 7eb3b9d.

Shape suffixes: V videos, K captions of a video, D dimensions of all experts side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from src.data.features.source import Source, Value
from src.errors import UserError

VIDEO, TEXT = "vid_embds", "text_embds"


def is_teacher(content: object) -> bool:
    """Whether a pickle holds embeddings of a teacher."""
    if not isinstance(content, Mapping) or not content:
        return False
    first = next(iter(content.values()))
    return isinstance(first, Mapping) and {VIDEO, TEXT} <= set(first)


def teacher_source(name: str, content: Mapping[Any, Any], where: str, recipe: Mapping[str, Any]) -> Source:
    """Rows of scores, computed when they are read: one for each caption `<video>#<number>`, a column for each video.

    Raises:
        UserError: a video lacks an expert, or dimensions differ.
    """
    embeddings = {str(video): one for video, one in content.items()}
    videos = list(embeddings)
    experts = sorted(embeddings[videos[0]][VIDEO])
    dims = {expert: np.size(embeddings[videos[0]][VIDEO][expert]) for expert in experts}
    captions_VKD = {video: _texts(embeddings[video], dims, f"{where}: {video!r}") for video in videos}
    videos_VD = np.concatenate([_vector(embeddings[video], dims, f"{where}: {video!r}") for video in videos])

    def read(ids: Sequence[str]) -> Iterator[Value]:
        for video, run in groupby(ids, lambda item: item.rpartition("#")[0]):
            s_KV = captions_VKD[video] @ videos_VD.T
            yield from (s_KV[int(item.rpartition("#")[2])][None] for item in run)

    ids = tuple(f"{video}#{n}" for video in videos for n in range(len(captions_VKD[video])))
    note = f"scores of {len(ids):,} captions with {len(videos):,} videos, summed over {', '.join(experts)}"
    return Source(name, ids, read, {**recipe, "experts": dims, "videos": videos}, (note,), "float16")


def _vector(one: Mapping[str, Any], dims: Mapping[str, int], where: str) -> np.ndarray:
    """float32 (1, D)."""
    return _side_by_side(one, VIDEO, dims, where, 1)


def _texts(one: Mapping[str, Any], dims: Mapping[str, int], where: str) -> np.ndarray:
    """float32 (K, D)."""
    captions = len(np.atleast_2d(np.asarray(next(iter(one[TEXT].values()), ()), dtype=np.float32)))
    return _side_by_side(one, TEXT, dims, where, captions)


def _side_by_side(one: Mapping[str, Any], key: str, dims: Mapping[str, int], where: str, rows: int) -> np.ndarray:
    if key not in one or set(one[key]) != set(dims):
        found = ", ".join(sorted(one.get(key, ()))) or "nothing"
        raise UserError(f"{where} has {key} of {found}, expected {', '.join(dims)}; fetch the file again")
    arrays = {expert: np.asarray(one[key][expert], dtype=np.float32) for expert in dims}
    odd = [expert for expert, dim in dims.items() if arrays[expert].size % dim]
    if odd:
        shape = arrays[odd[0]].shape
        raise UserError(f"{where} has {key} of {odd[0]} of shape {shape}, expected dim {dims[odd[0]]}; fetch it again")
    parts = [arrays[expert].reshape(-1, dim) for expert, dim in dims.items()]
    if any(len(part) != rows for part in parts):
        counts = ", ".join(f"{len(part)} of {expert}" for part, expert in zip(parts, dims, strict=True))
        raise UserError(f"{where} has {key} {counts}, expected {rows} of each; fetch the file again")
    return np.concatenate(parts, axis=1)
