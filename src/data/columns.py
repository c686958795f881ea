"""Columns of millions of rows without a Python object for each row.

A row becomes an object when it is asked for. The bytes lie in tensors, which the processes of a loader share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Self, TypeVar, overload

import numpy as np
import pandas as pd
import torch
from torch import Tensor

T = TypeVar("T", covariant=True)
STEP = 65_536  # rows that are made plain integers at a time


class TextColumn(Sequence[str]):
    """Texts in one buffer of UTF-8.

    Args:
        bytes_N: uint8, all texts one after another.
        ends_R: int64, where each text ends.
    """

    def __init__(self, bytes_N: Tensor, ends_R: Tensor) -> None:
        self.bytes_N = bytes_N
        self.ends_R = ends_R

    @classmethod
    def of(cls, chunks: Iterable[Sequence[str]]) -> Self:
        """Collect texts that arrive in chunks."""
        builder = TextBuilder()
        for chunk in chunks:
            builder.add(chunk)
        return cls(*builder.tensors())

    def __len__(self) -> int:
        return len(self.ends_R)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        ends = self.ends_R.numpy()
        start = int(ends[row - 1]) if row else 0
        return self.bytes_N.numpy()[start : int(ends[row])].tobytes().decode("utf-8", "surrogatepass")


class TextBuilder:
    """Collects the texts of a `TextColumn`."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._lengths: list[np.ndarray] = []

    def add(self, texts: Sequence[str]) -> None:
        """Append texts."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        self._buffer += b"".join(encoded)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """What `TextColumn` takes; the builder is used up."""
        lengths = np.concatenate([np.zeros(0, np.int64), *self._lengths])
        # An empty buffer cannot become a tensor without a copy.
        bytes_N = torch.frombuffer(self._buffer, dtype=torch.uint8) if self._buffer else torch.zeros(0).byte()
        return bytes_N, torch.from_numpy(np.cumsum(lengths))


class RowSequence(Sequence[T], ABC):
    """A sequence whose items are made from the rows of a table when they are asked for.

    Args:
        rows_R: int64, rows of the table, in the order of the sequence.
    """

    def __init__(self, rows_R: Tensor) -> None:
        self.rows_R = rows_R

    @abstractmethod
    def at(self, row: int) -> T:
        """The item of one row of the table."""

    def __len__(self) -> int:
        return len(self.rows_R)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self.at(row) for row in self.rows_R.numpy()[index].tolist()]
        return self.at(int(self.rows_R.numpy()[range(len(self))[index]]))

    def __iter__(self) -> Iterator[T]:
        rows = self.rows_R.numpy()
        for start in range(0, len(rows), STEP):
            yield from map(self.at, rows[start : start + STEP].tolist())


class Chained(Sequence[T]):
    """Several sequences one after another, without a copy."""

    def __init__(self, parts: Sequence[Sequence[T]]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        for part in self.parts:
            if place < len(part):
                return part[place]
            place -= len(part)
        raise IndexError(index)

    def __iter__(self) -> Iterator[T]:
        for part in self.parts:
            yield from part


def hashes(texts: Sequence[str]) -> np.ndarray:
    """uint64 (N,): 64 bits of each text; among millions, two different texts never share them in practice."""
    values = np.empty(len(texts), dtype=object)
    values[:] = texts
    return pd.util.hash_array(values, categorize=False)


def occurrence(values_N: np.ndarray) -> np.ndarray:
    """int32 (N,): how many times each value occurred before."""
    order = np.argsort(values_N, kind="stable")
    ranked = values_N[order]
    places = np.arange(len(ranked))
    first = np.maximum.accumulate(np.where(np.r_[True, ranked[1:] != ranked[:-1]][: len(ranked)], places, 0))
    counts_N = np.empty(len(ranked), dtype=np.int32)
    counts_N[order] = places - first
    return counts_N
