from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from src.batch import FrameSpec
from src.data import fill_cache, folder_lock, frame_cache
from src.data.annotation import VideoRecord
from src.data.cache_writer import begin, write_shard
from src.data.fill_cache import FillOptions, fill
from src.data.frame_cache import FrameCache, Recipe, decode, load_frames
from src.data.video import VideoError
from src.errors import UserError
from tests.clips import make_clip, make_truncated, true_frames

SPEC = FrameSpec(num_frames=4, image_size=32)
RAW = Recipe(SPEC)
EXTRA = Recipe(SPEC, extra_frames=12)
JPEG = Recipe(SPEC, extra_frames=12, format="jpeg")
IN_ONE_PROCESS = FillOptions(workers=1, videos_per_shard=2)


@pytest.fixture
def records(tmp_path: Path) -> list[VideoRecord]:
    """Two normal videos, a segment, and one shorter than num_frames."""
    folder = tmp_path / "videos"
    folder.mkdir()
    long = make_clip(folder / "long.mp4", 30)
    return [
        VideoRecord("long", long),
        VideoRecord("other", make_clip(folder / "other.mp4", 25, size=(48, 64))),
        VideoRecord("part", long, start_s=0.5, end_s=0.9),
        VideoRecord("short", make_clip(folder / "short.mp4", 3)),
    ]


def write(folder: Path, records: list[VideoRecord], recipe: Recipe, name: str = "shard-0") -> FrameCache:
    begin(folder, recipe)
    stored, problems = write_shard(folder, name, records, recipe, 20)
    assert (stored, problems) == (len(records), [])
    return FrameCache.open(folder, recipe.spec)


def test_load_frames_pads_short_videos_with_zeros(records: list[VideoRecord]) -> None:
    frames, valid = load_frames(records[3], SPEC)
    assert frames.shape == (4, 3, 32, 32)
    assert frames.dtype == np.uint8
    assert valid == 3
    assert frames[:3].any(axis=(1, 2, 3)).all()
    assert not frames[3].any()
    assert load_frames(records[0], SPEC)[1] == 4


def test_load_frames_of_a_segment_are_those_of_the_file(records: list[VideoRecord]) -> None:
    assert records[2].path is not None
    whole = frame_cache.to_square(true_frames(records[2].path), SPEC)
    found, _ = load_frames(records[2], SPEC)
    np.testing.assert_array_equal(found, whole[[16, 19, 22, 25]])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (VideoRecord("x"), "names no file"),
        (VideoRecord("x", Path("nowhere.mp4")), "file not found"),
    ],
)
def test_unreadable_videos_are_video_errors(record: VideoRecord, reason: str) -> None:
    with pytest.raises(VideoError, match=reason):
        load_frames(record, SPEC)


def test_segment_behind_the_end_is_the_videos_problem_not_a_crash(records: list[VideoRecord]) -> None:
    with pytest.raises(VideoError, match=r"segment from 7 s.*correct the segment"):
        load_frames(replace(records[0], start_s=7), SPEC)


@pytest.mark.parametrize("sampling", ["uniform", "clip2video", "clip4clip", "frozen"])
def test_cached_evaluation_frames_are_exactly_the_decoded_ones(
    tmp_path: Path, records: list[VideoRecord], sampling: str
) -> None:
    spec = replace(SPEC, sampling=sampling)
    cache = write(tmp_path / "cache", records, Recipe(spec, extra_frames=8))
    assert len(cache) == 4
    for record in records:
        decoded, valid = load_frames(record, spec)
        cached, cached_valid = load_frames(record, spec, cache=cache)
        assert valid == cached_valid
        np.testing.assert_array_equal(cached, decoded)


def test_training_picks_among_the_extra_frames(tmp_path: Path, records: list[VideoRecord]) -> None:
    cache = write(tmp_path / "cache", records, EXTRA)
    candidates = decode(records[0], EXTRA).candidates
    assert len(candidates) == 12
    seen = set()
    for seed in range(20):
        frames, valid = load_frames(records[0], SPEC, cache=cache, rng=np.random.default_rng(seed))
        assert valid == 4
        picked = [next(i for i, c in enumerate(candidates) if np.array_equal(c, frame)) for frame in frames]
        assert [i // 3 for i in picked] == [0, 1, 2, 3]  # one in each quarter
        seen.add(tuple(picked))
    assert len(seen) > 5
    assert load_frames(records[3], SPEC, cache=cache, rng=np.random.default_rng(0))[1] == 3


def test_training_without_extra_frames_sees_the_evaluation_frames(tmp_path: Path, records: list[VideoRecord]) -> None:
    cache = write(tmp_path / "cache", records, RAW)
    for record in records:
        trained = load_frames(record, SPEC, cache=cache, rng=np.random.default_rng(0))[0]
        np.testing.assert_array_equal(trained, load_frames(record, SPEC, cache=cache)[0])


def test_jpeg_is_close_and_small(tmp_path: Path, records: list[VideoRecord]) -> None:
    raw, jpeg = (write(tmp_path / r.format, records, r) for r in (EXTRA, JPEG))
    for record in records:
        exact, valid = load_frames(record, SPEC, cache=raw)
        close, close_valid = load_frames(record, SPEC, cache=jpeg)
        assert valid == close_valid
        assert np.abs(exact.astype(int) - close).mean() < 4
        assert not close[valid:].any()
    sizes = [(tmp_path / kind / "shard-0.bin").stat().st_size for kind in ("raw", "jpeg")]
    assert sizes[0] == 4 * 16 * 3 * 32 * 32
    assert sizes[1] < sizes[0] / 2


def test_what_get_returns_may_be_written_to(tmp_path: Path, records: list[VideoRecord]) -> None:
    cache = write(tmp_path / "cache", records, RAW)
    first = cache.get(records[0])
    assert first is not None
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(cache.get(records[0]), kept)


def test_a_video_not_in_the_cache_is_decoded(tmp_path: Path, records: list[VideoRecord]) -> None:
    cache = write(tmp_path / "cache", records[:1], RAW)
    assert "long" in cache
    assert "other" not in cache
    assert cache.get(records[1]) is None
    np.testing.assert_array_equal(load_frames(records[1], SPEC, cache=cache)[0], load_frames(records[1], SPEC)[0])


def test_a_changed_file_or_segment_is_decoded_again_and_said_once(
    tmp_path: Path, records: list[VideoRecord], caplog: pytest.LogCaptureFixture
) -> None:
    cache = write(tmp_path / "cache", records, RAW)
    assert records[0].path is not None
    make_clip(records[0].path, 20)
    assert cache.get(records[0]) is None
    assert cache.get(replace(records[1], end_s=0.5)) is None
    assert len(caplog.records) == 1
    assert "run task=prepare" in caplog.text
    records[0].path.unlink()  # the cache may outlive the videos
    assert cache.get(records[0]) is not None


def test_another_recipe_is_refused_with_both_values(tmp_path: Path, records: list[VideoRecord]) -> None:
    cache = write(tmp_path, records, RAW)
    other = replace(SPEC, num_frames=6, sampling="frozen")
    message = "made with num_frames=4, sampling=uniform, expected num_frames=6, sampling=frozen"
    with pytest.raises(UserError, match=message):
        FrameCache.open(tmp_path, other)
    with pytest.raises(UserError, match=message):
        load_frames(records[0], other, cache=cache)
    with pytest.raises(UserError, match="made with format=raw, expected format=jpeg"):
        begin(tmp_path, replace(RAW, format="jpeg"))


def test_damaged_caches_are_refused(tmp_path: Path, records: list[VideoRecord]) -> None:
    with pytest.raises(UserError, match=r"no frame cache there.*task=prepare"):
        FrameCache.open(tmp_path / "nowhere")
    write(tmp_path, records, RAW)
    manifest = tmp_path / "manifest.json"
    good = manifest.read_text()
    for text, message in (
        (good[:40], "no valid manifest"),
        (good.replace('"num_frames": 4', '"num_frames": 5'), "edited by hand"),
    ):
        manifest.write_text(text)
        with pytest.raises(UserError, match=message):
            FrameCache.open(tmp_path)
    manifest.write_text(good)
    data = tmp_path / "shard-0.bin"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"shard-0\.bin: missing or of another size"):
        FrameCache.open(tmp_path)


def test_cache_of_another_program_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, RAW)
    monkeypatch.setattr(frame_cache, "RECIPE_VERSION", frame_cache.RECIPE_VERSION + 1)
    with pytest.raises(UserError, match="made with version=1, expected version=2"):
        FrameCache.open(tmp_path)


def test_disk_full_leaves_nothing_half_written(
    tmp_path: Path, records: list[VideoRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = write(tmp_path, records[:1], RAW)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_shard(tmp_path, "shard-1", records[1:], RAW, 20)
    assert sorted(p.name for p in tmp_path.glob("*shard*")) == ["shard-0.bin", "shard-0.json"]
    assert len(FrameCache.open(tmp_path)) == len(cache) == 1


def test_begin_removes_what_an_interrupted_run_left(tmp_path: Path, records: list[VideoRecord]) -> None:
    write(tmp_path, records, RAW)
    for name in (".shard-1.bin.123.tmp", "shard-1.bin", ".decoding-123"):
        (tmp_path / name).write_bytes(b"half")
    assert set(begin(tmp_path, RAW)) == {"long", "other", "part", "short"}
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == {"manifest.json", "shard-0.bin", "shard-0.json"}


def test_a_newer_shard_replaces_an_older_one(tmp_path: Path, records: list[VideoRecord]) -> None:
    write(tmp_path, records, RAW, "shard-0")
    assert records[0].path is not None
    make_clip(records[0].path, 10)
    cache = write(tmp_path, records[:1], RAW, "shard-1")
    assert len(cache) == 4
    np.testing.assert_array_equal(cache.get(records[0]), load_frames(records[0], SPEC)[0])


def test_maps_do_not_cross_processes(
    tmp_path: Path, records: list[VideoRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = write(tmp_path, records, RAW)
    frames = cache.get(records[0])
    assert frames is not None
    mine = cache._maps["shard-0"]
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as after a fork
    np.testing.assert_array_equal(cache.get(records[0]), frames)
    assert cache._maps["shard-0"] is not mine
    assert not pickle.loads(pickle.dumps(cache))._maps  # noqa: S301  (our own bytes)


def test_fill_lists_broken_files_and_stores_the_rest(tmp_path: Path, records: list[VideoRecord]) -> None:
    records = [
        *records,
        VideoRecord("cut", make_truncated(tmp_path / "cut.mp4")),
        VideoRecord("gone", tmp_path / "gone.mp4"),
    ]
    advanced: list[int] = []
    filled = fill(tmp_path / "cache", records, JPEG, IN_ONE_PROCESS, advanced.append)
    assert (filled.before, filled.stored) == (0, 4)
    assert {p.video_id: p.reason.split(":")[0] for p in filled.problems} == {
        "cut": "truncated",
        "gone": "file not found",
    }
    assert sum(advanced) == 6
    assert set(begin(tmp_path / "cache", JPEG)) == {"long", "other", "part", "short"}
    # Nothing to do any more: no worker is started for what is stored.
    again = fill(tmp_path / "cache", records[:4], JPEG, IN_ONE_PROCESS)
    assert (again.before, again.stored, again.problems) == (4, 0, [])


def test_fill_refuses_a_folder_that_another_process_fills(tmp_path: Path) -> None:
    with folder_lock.locked(tmp_path), pytest.raises(UserError, match="another process is working"):
        fill(tmp_path, [], RAW, IN_ONE_PROCESS)


def test_fill_says_when_the_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write the frame cache.*dataset\.cache_dir"):
        fill(tmp_path / "file" / "cache", [], RAW, IN_ONE_PROCESS)


REAL_WRITE_ONE, REAL_WRITE_SHARD = fill_cache._write_one, fill_cache.write_shard


def write_or_die(folder: Path, name: str, shard: list[VideoRecord], recipe: Recipe, timeout_s: float) -> object:
    """In a worker: as `_write_one`, with a decoder that crashes on one video."""

    def write(*args: object, before_each: Callable[[VideoRecord], object]) -> object:
        def die(record: VideoRecord) -> None:
            before_each(record)
            if record.id == "short":
                os.kill(os.getpid(), signal.SIGSEGV)

        return REAL_WRITE_SHARD(*args, before_each=die)  # type: ignore[arg-type]

    fill_cache.write_shard = write  # type: ignore[assignment]
    return REAL_WRITE_ONE(folder, name, shard, recipe, timeout_s)


def test_a_video_that_crashes_the_decoder_is_listed_and_the_rest_stored(
    tmp_path: Path, records: list[VideoRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill_cache, "_write_one", write_or_die)
    filled = fill(tmp_path / "cache", records, RAW, IN_ONE_PROCESS)
    assert filled.stored == 3
    assert [(p.video_id, p.reason) for p in filled.problems] == [("short", "the decoder crashed on it")]
    assert set(begin(tmp_path / "cache", RAW)) == {"long", "other", "part"}


FILL = """
import sys
from pathlib import Path
from tests.unit import test_frame_cache as t
if __name__ == "__main__":
    videos = [t.VideoRecord(str(i), Path(sys.argv[2])) for i in range(300)]
    t.fill(Path(sys.argv[1]), videos, t.RAW, t.FillOptions(workers=1, videos_per_shard=3))
"""


def test_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    clip, folder, script = make_clip(tmp_path / "clip.mp4"), tmp_path / "cache", tmp_path / "filling.py"
    script.write_text(FILL)
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), str(clip)], env=os.environ | {"PYTHONPATH": str(root)}, cwd=root
    )
    deadline = time.monotonic() + 120
    while len(list(folder.glob("shard-*.json"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    while list(folder.glob(".decoding-*")) and time.monotonic() < deadline:
        if not _alive(folder):
            break
        time.sleep(0.1)  # the orphaned worker notices within a second
    videos = [VideoRecord(str(i), clip) for i in range(300)]
    before = len(FrameCache.open(folder))
    assert 6 <= before < 300
    filled = fill(folder, videos, RAW, FillOptions(workers=1, videos_per_shard=100))
    assert (filled.before, filled.stored) == (before, 300 - before)
    cache = FrameCache.open(folder)
    assert len(cache) == 300
    expected = load_frames(videos[0], SPEC)[0]
    for video in (videos[0], videos[before], videos[-1]):
        np.testing.assert_array_equal(cache.get(video), expected)
    assert not list(folder.glob(".*.tmp"))
    assert json.loads((folder / "manifest.json").read_text())["recipe"] == RAW.facts()


def _alive(folder: Path) -> bool:
    pids = [int(crumb.name.removeprefix(".decoding-")) for crumb in folder.glob(".decoding-*")]
    return any(Path(f"/proc/{pid}").exists() for pid in pids)
