"""Scores that are needed more than once: in memory while they are small, else in a temporary file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding

IN_MEMORY = 2**30  # bytes


class Recorder:
    """A similarity whose values are kept as they are asked for, so that a second look costs no second scoring.

    Args:
        similarity: of captions and videos, rows text.
        text: all captions, ascending by id.
        video: all videos, ascending by id.

    Attributes:
        matrix: (captions, videos), float32, or float64 where the scores are; zeros where nothing was asked.
    """

    def __init__(
        self,
        similarity: Callable[[TextEmbedding, VideoEmbedding], Tensor],
        text: TextEmbedding,
        video: VideoEmbedding,
    ) -> None:
        self.similarity = similarity
        self.text_ids, self.video_ids = text.ids.cpu(), video.ids.cpu()
        self.matrix: np.ndarray = np.empty((0, len(video)), dtype=np.float32)

    def __call__(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        tile = self.similarity(text, video)
        if not len(self.matrix):
            kind = np.float64 if tile.dtype == torch.float64 else np.float32
            self.matrix = zeros((len(self.text_ids), len(self.video_ids)), kind)
        rows = torch.searchsorted(self.text_ids, text.ids.cpu()).numpy()
        columns = torch.searchsorted(self.video_ids, video.ids.cpu()).numpy()
        values = tile.to("cpu", torch.float64 if tile.dtype == torch.float64 else torch.float32)
        self.matrix[rows[:, None], columns] = values.numpy()
        return tile


def zeros(shape: tuple[int, int], kind: type[np.floating]) -> np.ndarray:
    """An array, mapped from an unnamed file when it is large."""
    if shape[0] * shape[1] * np.dtype(kind).itemsize <= IN_MEMORY:
        return np.zeros(shape, kind)
    with tempfile.TemporaryFile() as file:  # the mapping keeps it alive
        return np.memmap(file, dtype=kind, mode="w+", shape=shape)


class KeptBlocks:
    """Blocks of rows, written to an unnamed file as they come and read back as often as they are needed.

    Args:
        blocks: each (rows, columns), float32 or float64.
    """

    def __init__(self, blocks: Iterable[Tensor]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the object
        self._shapes: list[tuple[tuple[int, int], type[np.floating]]] = []
        for block in blocks:
            kind = np.float64 if block.dtype == torch.float64 else np.float32
            block.detach().cpu().numpy().astype(kind, copy=False).tofile(self._file)
            self._shapes.append(((block.shape[0], block.shape[1]), kind))

    def __call__(self) -> Iterator[Tensor]:
        self._file.seek(0)
        for shape, kind in self._shapes:
            yield torch.from_numpy(np.fromfile(self._file, kind, shape[0] * shape[1]).reshape(shape))

    def close(self) -> None:
        self._file.close()
