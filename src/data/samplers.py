"""Which samples form which batch: a pure function of (seed, epoch), for any number of processes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from torch.utils.data import Sampler

from src.errors import UserError

# What the sampler hands to the training data set. The epoch travels with the index, because a loader's
# workers hold copies of the data set from the first epoch.
SampleKey = tuple[int, int]
# How far a sample may be moved to meet others of its length.
BUCKET_BATCHES = 50


class TrainBatchSampler(Sampler[list[SampleKey]]):
    """Batches of (epoch, index) for one process.

    A global batch (`batch_size` samples for each of `world_size` processes) is a run of consecutive samples of
    the epoch's permutation; process r takes the r-th slice of it. So 1, 2 and 4 processes with the same global
    batch size train on the same global batches. The last, incomplete one is dropped unless `drop_last` is false.

    Args:
        videos: video of each sample; its length is the number of samples.
        batch_size: samples per batch and process.
        seed: seed of the run; the permutation is seeded by (seed, epoch).
        rank: this process.
        world_size: number of processes.
        unique_videos: no global batch holds two samples of one video (they would be false negatives of each other).
        groups: group of each sample's video or None; samples of one group enter the same global batch
            (hard negatives meet). One caption per video of the group at a time: with five captions per video,
            a group of two videos forms five pairs.
        lengths: length of each sample (tokens, steps). Samples of similar length meet in a batch, so that little is
            padded: within runs of `BUCKET_BATCHES` batches of the permutation, samples are sorted by length, then
            the batches are shuffled. None = lengths do not matter.
        drop_last: false: the last batch is shared out evenly, as long as every process has two samples or more:
            one alone has no negatives. What cannot be shared out is dropped.

    Raises:
        UserError: there are fewer samples than one global batch, or the options leave no full batch, or contradict.
    """

    def __init__(
        self,
        videos: Sequence[int],
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        unique_videos: bool = False,
        groups: Sequence[str | None] | None = None,
        lengths: np.ndarray | None = None,
        drop_last: bool = True,
    ) -> None:
        self.videos = np.asarray(videos, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.unique_videos = unique_videos
        self.groups = groups
        self.lengths = lengths
        self.epoch = 0
        self.start = 0  # batches of the next iteration to leave out: they were trained on before an interruption
        self.global_batch = batch_size * world_size
        # Lightning announces the epoch to `batch_sampler.sampler`.
        self.sampler = self
        self._packed: tuple[int, list[list[int]]] | None = None
        rest = len(self.videos) % max(self.global_batch, 1) // world_size
        self._rest = 0 if drop_last or rest < 2 else rest * world_size  # samples of the last, incomplete batch
        self._check(drop_last)
        whole = len(self.videos) // self.global_batch if self._is_plain else len(self._pack(0))
        self._num_batches = whole + (self._rest > 0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration yields; resuming an epoch needs nothing else."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, done = self.epoch, self.start
        self.start = 0
        for batch in islice(self.global_batches(epoch), done, None):
            share = len(batch) // self.world_size
            yield [(epoch, int(index)) for index in batch[self.rank * share : (self.rank + 1) * share]]

    def global_batches(self, epoch: int) -> Iterator[Sequence[int]]:
        """Sample indices of every global batch of an epoch."""
        if not self._is_plain:
            # Packing may find a batch more or less than in epoch 0, but learning-rate schedules and the other
            # processes count on one length: a surplus is dropped, a shortfall repeats the epoch's first batches.
            packed = self._pack(epoch) or self._pack(0)
            yield from (packed[position % len(packed)] for position in self._turns(epoch, len(self)))
            return
        order = self._permutation(epoch)
        order = order[: len(order) // self.global_batch * self.global_batch + self._rest]
        for batch in self._turns(epoch, len(self)):
            yield order[batch * self.global_batch : (batch + 1) * self.global_batch].tolist()

    @property
    def _is_plain(self) -> bool:
        return not self.unique_videos and self.groups is None

    def _permutation(self, epoch: int) -> np.ndarray:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.videos))
        if self.lengths is None:
            return order
        window = BUCKET_BATCHES * self.global_batch
        runs = [order[start : start + window] for start in range(0, len(order), window)]
        return np.concatenate([run[np.argsort(self.lengths[run], kind="stable")] for run in runs])

    def _turns(self, epoch: int, count: int) -> np.ndarray:
        """The order in which the epoch's batches come: that of the permutation, unless it sorted them by length."""
        if self.lengths is None:
            return np.arange(count)
        return np.random.default_rng([self.seed, epoch, 1]).permutation(count)

    def _check(self, drop_last: bool) -> None:
        if self.batch_size < 1:
            raise UserError(f"dataset.batch_size={self.global_batch}, expected a positive number")
        if not (drop_last or self._is_plain):
            raise UserError(
                "dataset.drop_last=false with unique_videos_in_batch or keep_groups_together, whose leftovers fill no "
                "batch; choose one of them"
            )
        if len(self.videos) < self.global_batch and not self._rest:
            raise UserError(
                f"the train part has {len(self.videos)} samples, fewer than one batch of {self.global_batch} "
                f"({self.world_size} processes); set dataset.batch_size={self._largest_batch()} or smaller"
            )
        if not self._is_plain and not self._pack(0):
            distinct = len(np.unique(self.videos))
            raise UserError(
                f"no full batch of {self.global_batch} samples can be formed from {distinct} train videos with "
                "unique_videos_in_batch or keep_groups_together; lower dataset.batch_size to a multiple of the "
                "group size, or switch the option off"
            )

    def _largest_batch(self) -> int:
        return max(1, len(self.videos) // self.world_size) * self.world_size

    def _pack(self, epoch: int) -> list[list[int]]:
        """Fill global batches with whole units (see `_units`); leftovers that fill no batch are dropped."""
        if self._packed is not None and self._packed[0] == epoch:
            return self._packed[1]
        remaining = deque(self._units(epoch))
        batches: list[list[int]] = []
        is_random = True
        while remaining:
            placed, refused = self._fill(remaining)
            batch = [index for unit in placed for index in unit]
            if len(batch) == self.global_batch:
                batches.append(batch)
                # What one batch refused is offered to the next one first.
                remaining.extendleft(reversed(refused))
            elif is_random:
                # The random order ran into a dead end: go on with the units that are hardest to place.
                is_random = False
                remaining = self._hardest_first(placed + refused)
            else:
                break
        self._packed = (epoch, batches)
        return batches

    def _fill(self, remaining: deque[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        """Take units from the left until one batch is full; return those placed and those that did not fit."""
        placed: list[list[int]] = []
        refused: list[list[int]] = []
        inside: set[int] = set()
        room = self.global_batch
        while remaining and room:
            unit = remaining.popleft()
            videos = {int(self.videos[index]) for index in unit}
            if len(unit) > room or (self.unique_videos and videos & inside):
                refused.append(unit)
                continue
            placed.append(unit)
            inside |= videos
            room -= len(unit)
        return placed, refused

    def _hardest_first(self, units: list[list[int]]) -> deque[list[int]]:
        """Large units first, and those of the videos that most samples remain of."""
        left = Counter(int(self.videos[index]) for unit in units for index in unit)
        return deque(sorted(units, key=lambda unit: (-len(unit), -max(left[int(self.videos[i])] for i in unit))))

    def _units(self, epoch: int) -> list[list[int]]:
        """Shuffled lists of samples that must stay together: one sample, or one sample per video of a group."""
        order = self._permutation(epoch).tolist()
        if self.groups is None:
            return [[index] for index in order]
        units: dict[tuple[str, int], list[int]] = {}
        taken: dict[int, int] = {}
        for index in order:
            group = self.groups[index]
            video = int(self.videos[index])
            turn = taken.get(video, 0)
            taken[video] = turn + 1
            # Videos without a group are alone; the key cannot clash with a group's name.
            key = (f"video {video}", turn) if group is None else (f"group {group}", turn)
            units.setdefault(key, []).append(index)
        return list(units.values())


class ShardBatchSampler(Sampler[list[int]]):
    """Every world_size-th batch of items from `rank` on, without padding: each item is seen by exactly one process.

    Whole batches are dealt out, so an item is encoded in the same company by one process as by several, and its
    embedding has the same bits.
    """

    def __init__(self, length: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        starts = range(rank * batch_size, length, world_size * batch_size)
        self.batches = [list(range(start, min(start + batch_size, length))) for start in starts]
        # One empty batch where there is nothing to do: Lightning would skip the whole evaluation on this process,
        # while the others wait for it to exchange embeddings.
        self.batches = self.batches or [[]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
