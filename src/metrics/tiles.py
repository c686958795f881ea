"""How the similarity matrix is cut: a function of the sizes alone, never of the number of processes.

Captions are counted in the order of their videos; `start_V` (V+1,) says where each video's captions begin.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np


def column_tiles(start_V: np.ndarray, block: int) -> Iterator[slice]:
    """Cut the gallery into tiles of at least block/2 videos with block/2 captions, at most 4 blocks wide."""
    num_videos, least = len(start_V) - 1, max(1, block // 2)
    first = 0
    while first < num_videos:
        enough = int(np.searchsorted(start_V, start_V[first] + least))
        last = min(max(first + least, enough), first + 4 * block, num_videos)
        # A sliver would take another matmul kernel and round differently: it joins its neighbour.
        last = num_videos if num_videos - last < least else last
        yield slice(first, last)
        first = last


def deal(plan: list[tuple[slice, list[slice]]], rank: int, world: int) -> list[list[int]]:
    """Which row blocks of each column tile fall to one of the processes: all blocks in turn."""
    dealt, seen = [], 0
    for _, every in plan:
        dealt.append([n for n in range(len(every)) if (seen + n) % world == rank])
        seen += len(every)
    return dealt


def row_blocks(start_V: np.ndarray, cols: slice, block: int) -> list[slice]:
    """Cut the captions of some videos into even blocks; captions of one video stay together."""
    starts = start_V[cols.start : cols.stop + 1]
    pieces = -(-int(starts[-1] - starts[0]) // block)
    ideal = np.linspace(starts[0], starts[-1], pieces + 1)
    cuts = np.unique(starts[np.searchsorted(starts, ideal)])
    return [slice(int(a), int(b)) for a, b in pairwise(cuts)]
