"""The batch sampler as a pure function of (seed, epoch), for any number of processes."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.samplers import ShardBatchSampler, TrainBatchSampler
from src.errors import UserError


def batches(sampler: TrainBatchSampler, epoch: int = 0) -> list[list[int]]:
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler)
    assert all(key[0] == epoch for batch in found for key in batch)
    return [[index for _, index in batch] for batch in found]


def flat(lists: Iterable[list[int]]) -> list[int]:
    return [item for listed in lists for item in listed]


@given(
    num_samples=st.integers(4, 200),
    per_process=st.integers(1, 6),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 50),
)
@settings(max_examples=60, deadline=None)
def test_any_number_of_processes_sees_the_same_global_batches(
    num_samples: int, per_process: int, seed: int, epoch: int
) -> None:
    global_batch = 4 * per_process
    videos = list(range(max(num_samples, global_batch)))
    seen = {}
    for world_size in (1, 2, 4):
        shards = [
            batches(TrainBatchSampler(videos, global_batch // world_size, seed, rank=r, world_size=world_size), epoch)
            for r in range(world_size)
        ]
        seen[world_size] = [flat(parts) for parts in zip(*shards, strict=True)]
    assert seen[1] == seen[2] == seen[4]
    indices = flat(seen[1])
    assert max(Counter(indices).values()) == 1
    assert len(indices) == len(videos) // global_batch * global_batch


def test_every_sample_once_when_batches_divide_the_part_and_epochs_differ() -> None:
    sampler = TrainBatchSampler(range(24), 4, seed=3)
    first, second = batches(sampler, 0), batches(sampler, 1)
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(24))
    assert first != second
    assert batches(sampler, 0) == first  # going back, as a resumed run does
    assert batches(TrainBatchSampler(range(24), 4, seed=4), 0) != first


@given(
    counts=st.lists(st.integers(1, 8), min_size=6, max_size=40),
    batch_size=st.integers(1, 6),
    epoch=st.integers(0, 3),
)
@settings(max_examples=100, deadline=None)
def test_unique_videos_in_batch(counts: list[int], batch_size: int, epoch: int) -> None:
    videos = [video for video, count in enumerate(counts) for _ in range(count)]
    sampler = TrainBatchSampler(videos, batch_size, seed=0, unique_videos=True)
    found = batches(sampler, epoch)
    for batch in found:
        assert len(batch) == batch_size
        assert len({videos[index] for index in batch}) == batch_size
    # An epoch may repeat its first batches to keep its length; nothing else is repeated.
    distinct = {tuple(batch) for batch in found}
    assert max(Counter(index for batch in distinct for index in batch).values()) == 1


def test_unique_videos_uses_nearly_every_sample() -> None:
    videos = [video for video in range(100) for _ in range(20)]
    sampler = TrainBatchSampler(videos, 16, seed=0, unique_videos=True)
    assert len(sampler) >= 2000 // 16 - 3


@given(
    num_pairs=st.integers(2, 20),
    num_single=st.integers(0, 20),
    captions=st.integers(1, 4),
    epoch=st.integers(0, 3),
    unique=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_groups_stay_together(num_pairs: int, num_single: int, captions: int, epoch: int, unique: bool) -> None:
    group_of = {v: f"pair{v // 2}" if v < 2 * num_pairs else None for v in range(2 * num_pairs + num_single)}
    videos = [video for video in group_of for _ in range(captions)]
    groups = [group_of[video] for video in videos]
    per_world = {}
    for world_size in (1, 2):
        shards = [
            batches(
                TrainBatchSampler(
                    videos, 4 // world_size, 0, rank=r, world_size=world_size, groups=groups, unique_videos=unique
                ),
                epoch,
            )
            for r in range(world_size)
        ]
        per_world[world_size] = [flat(parts) for parts in zip(*shards, strict=True)]
    assert per_world[1] == per_world[2]
    for batch in per_world[1]:
        present = Counter(videos[index] for index in batch)
        for video, count in present.items():
            partner = video ^ 1
            if video < 2 * num_pairs:
                assert present[partner] == count
            if unique:
                assert count == 1


def test_odd_batch_cannot_be_filled_with_pairs() -> None:
    with pytest.raises(UserError, match="no full batch of 3 samples can be formed from 8 train videos"):
        TrainBatchSampler(range(8), 3, 0, groups=[f"g{k // 2}" for k in range(8)])


def test_fewer_videos_than_a_batch_of_unique_videos() -> None:
    with pytest.raises(UserError, match="no full batch of 4 samples can be formed from 2 train videos"):
        TrainBatchSampler([0, 0, 0, 1, 1, 1], 4, 0, unique_videos=True)


def test_part_smaller_than_a_batch_says_what_to_type() -> None:
    with pytest.raises(UserError, match=r"10 samples, fewer than one batch of 16 \(4 processes\).*batch_size=8"):
        TrainBatchSampler(range(10), 4, 0, world_size=4)
    with pytest.raises(UserError, match=r"dataset.batch_size=0"):
        TrainBatchSampler(range(10), 0, 0)


def test_lightning_reaches_set_epoch_and_workers_can_copy_the_sampler() -> None:
    sampler = TrainBatchSampler(range(8), 2, 0)
    sampler.sampler.set_epoch(5)
    copy = pickle.loads(pickle.dumps(sampler))  # noqa: S301
    assert list(copy) == list(sampler)
    assert next(iter(sampler))[0][0] == 5


def test_an_interrupted_epoch_goes_on_with_the_next_batch() -> None:
    whole, resumed = TrainBatchSampler(range(20), 2, 0), TrainBatchSampler(range(20), 2, 0)
    resumed.start = 3
    assert list(resumed) == list(whole)[3:]
    assert list(resumed) == list(whole), "only the resumed epoch is cut"


@given(length=st.integers(0, 40), batch_size=st.integers(1, 7), world_size=st.integers(1, 5))
@settings(deadline=None)
def test_evaluation_shards_are_the_batches_of_one_process_dealt_out(
    length: int, batch_size: int, world_size: int
) -> None:
    alone = list(ShardBatchSampler(length, batch_size))
    shards = [list(ShardBatchSampler(length, batch_size, rank, world_size)) for rank in range(world_size)]
    assert flat(alone) == list(range(length))
    assert all(shard for shard in shards), "a process without a batch would be skipped, and the others would wait"
    assert sorted(batch for shard in shards for batch in shard if batch) == [batch for batch in alone if batch]
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("unique", [False, True])
def test_bucketing_pads_less_and_trains_on_the_same_samples(unique: bool) -> None:
    rng = np.random.default_rng(0)
    videos = np.repeat(np.arange(200), 2)
    lengths = rng.integers(4, 60, len(videos))

    def padded(sampler: TrainBatchSampler) -> int:
        return sum(int(lengths[list(batch)].max()) * len(batch) for batch in sampler.global_batches(3))

    plain = TrainBatchSampler(videos, 8, 0, unique_videos=unique)
    bucketed = TrainBatchSampler(videos, 8, 0, unique_videos=unique, lengths=lengths)
    assert padded(bucketed) < 0.75 * padded(plain)
    seen = [sorted(i for batch in sampler.global_batches(3) for i in batch) for sampler in (plain, bucketed)]
    assert seen[0] == seen[1] == list(range(len(videos)))
    longest = [int(lengths[list(batch)].max()) for batch in bucketed.global_batches(3)]
    assert longest != sorted(longest)  # short batches do not all come first


def test_bucketing_gives_the_same_global_batches_to_any_number_of_processes() -> None:
    lengths = np.arange(64) % 7
    alone = TrainBatchSampler(range(64), 8, 1, lengths=lengths)
    shared = [TrainBatchSampler(range(64), 4, 1, rank=rank, world_size=2, lengths=lengths) for rank in range(2)]
    for whole, left, right in zip(alone, *shared, strict=True):
        assert whole == left + right


@pytest.mark.parametrize(("samples", "rest"), [(24, (0, 0)), (25, (0, 0)), (26, (2, 0)), (28, (4, 4)), (29, (5, 4))])
def test_the_last_batch_is_shared_out_when_it_is_kept(samples: int, rest: tuple[int, int]) -> None:
    for world_size, kept in zip((1, 2), rest, strict=True):
        shards = [
            batches(
                TrainBatchSampler(range(samples), 6 // world_size, 0, rank=r, world_size=world_size, drop_last=False)
            )
            for r in range(world_size)
        ]
        sizes = [6 // world_size] * 4 + ([kept // world_size] if kept else [])
        assert [[len(batch) for batch in shard] for shard in shards] == [sizes] * world_size
        seen = flat(flat(shard) for shard in shards)
        assert len(set(seen)) == len(seen) == 24 + kept
        whole = [batches(TrainBatchSampler(range(samples), 6, 0))[n] for n in range(4)]
        assert [flat(parts) for parts in zip(*shards, strict=True)][:4] == whole


def test_the_last_batch_alone_is_an_epoch_when_it_is_kept() -> None:
    lengths = np.arange(3)[::-1]
    sampler = TrainBatchSampler(range(3), 4, 0, drop_last=False, lengths=lengths)
    assert [sorted(batch) for batch in batches(sampler)] == [[0, 1, 2]]
    with pytest.raises(UserError, match="1 samples, fewer than one batch of 4"):
        TrainBatchSampler(range(1), 4, 0, drop_last=False)
    with pytest.raises(UserError, match=r"drop_last=false with unique_videos_in_batch"):
        TrainBatchSampler(range(9), 4, 0, unique_videos=True, drop_last=False)
