"""Feature stores: what is written is read, by any process, whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.features import writer as writer_module
from src.data.features.store import _MAPS, FeatureStore
from src.data.features.writer import FAILED, NOTHING, Item, StoreWriter
from src.errors import UserError
from tests.conftest import ROOT

DIM = 3


def content(count: int = 11) -> dict[str, np.ndarray | None]:
    """Items of 1 to 4 rows; every fourth is missing."""
    rng = np.random.default_rng(0)
    return {
        f"v{n}": None if n % 4 == 3 else rng.standard_normal((1 + n % 4, DIM)).astype(np.float32) for n in range(count)
    }


def make(folder: Path, items: Mapping[str, np.ndarray | None], **options: object) -> StoreWriter:
    settings = {"name": "x", "dim": DIM, "recipe": {"model": "m", "size": 2}, "items_per_shard": 4, **options}
    return StoreWriter(folder, ids=list(items), **settings)  # type: ignore[arg-type]


def rows_of(writer: StoreWriter, shard: int, items: Mapping[str, np.ndarray | None]) -> list[Item]:
    return [(i, items[i], None if items[i] is not None else "no sound", None) for i in writer.shard_ids(shard)]


def fill(writer: StoreWriter, items: Mapping[str, np.ndarray | None]) -> FeatureStore:
    for shard in writer.pending():
        writer.write_shard(shard, rows_of(writer, shard, items))
    return writer.finish()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(
    lengths=st.lists(st.integers(0, 5), max_size=17),
    dim=st.integers(1, 5),
    dtype=st.sampled_from(["float32", "float16"]),
    per_shard=st.integers(1, 6),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read(lengths: list[int], dim: int, dtype: str, per_shard: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(len(lengths))
    items = {
        f"item {n}": rng.standard_normal((length, dim)).astype(dtype) if length else None
        for n, length in enumerate(lengths)
    }
    with tempfile.TemporaryDirectory() as folder:
        store = fill(make(Path(folder) / "s", items, dim=dim, dtype=dtype, items_per_shard=per_shard), items)
        present = [i for i, rows in items.items() if rows is not None]
        assert store.ids == tuple(present)
        assert set(store.missing) == set(items) - set(present)
        assert store.num_rows == sum(lengths)
        assert (store.dim, store.dtype) == (dim, np.dtype(dtype))
        for item in present:
            np.testing.assert_array_equal(store.get(item), items[item])
        asked = data.draw(st.lists(st.sampled_from([*items, "unknown"]), max_size=9))
        cap = data.draw(st.none() | st.integers(1, 6))
        rows, counts = store.rows(asked, cap)
        wanted = [items[i][:cap] for i in asked if items.get(i) is not None]  # type: ignore[index]
        np.testing.assert_array_equal(rows, np.concatenate([np.empty((0, dim), dtype), *wanted]))
        np.testing.assert_array_equal(
            store.lengths(asked), [len(v) if (v := items.get(i)) is not None else 0 for i in asked]
        )
        assert counts.dtype == np.int64
        assert counts.sum() == len(rows)
        assert store.verify() == []
        assert store.nonfinite() == []


def test_facts_and_lookup(tmp_path: Path) -> None:
    items = content()
    writer = make(tmp_path, items)
    for shard in writer.pending():
        writer.write_shard(
            shard,
            [
                (i, r, reason, {"words": ["é", 1]} if i == "v5" else None)
                for i, r, reason, _ in rows_of(writer, shard, items)
            ],
        )
    store = writer.finish()
    assert (store.name, store.recipe, len(store)) == ("x", {"model": "m", "size": 2}, 9)
    assert len(store.fingerprint) == 64
    assert store.missing == {"v3": "no sound", "v7": "no sound"}
    assert "v2" in store
    assert "v3" not in store
    assert "w" not in store
    for unknown in ("v3", "w"):
        with pytest.raises(KeyError):
            store.get(unknown)
    assert store.details("v5") == {"words": ["é", 1]}
    assert store.details("v4") is None
    assert store.details("v0") is None
    assert store.details("w") is None
    assert not store.get("v2").flags.writeable
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["items"], manifest["missing"], manifest["rows"]) == (9, 2, store.num_rows)


def test_an_empty_store_and_a_store_without_any_feature(tmp_path: Path) -> None:
    empty = fill(make(tmp_path / "empty", {}), {})
    assert (empty.ids, empty.num_rows) == ((), 0)
    assert empty.rows(["a"])[0].shape == (0, DIM)
    assert empty.lengths(["a", "b"]).tolist() == [0, 0]
    nothing: dict[str, np.ndarray | None] = {"a": None}
    none = fill(make(tmp_path / "none", nothing), nothing)
    assert none.rows(["a"])[0].shape == (0, DIM)
    assert "a" not in none
    assert none.nonfinite() == []


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.array([[1, 2, 3], [1, np.nan, 3]]), r"'v0': row 1 \(1 of 2 rows\) has NaN or infinite numbers"),
        (np.array([[1, 2, np.inf]]), "NaN or infinite"),
        (np.ones((2, 4)), r"'v0' has shape \(2, 4\).*expected numbers \(steps, 3\)"),
        (np.ones((1, 2, 3)), "has shape"),
        (np.ones((0, 3)), "no rows"),
        (np.array([["a", "b", "c"]]), "expected numbers"),
    ],
)
def test_rows_that_cannot_be_are_refused_and_leave_nothing(tmp_path: Path, rows: np.ndarray, words: str) -> None:
    writer = make(tmp_path, {"v0": rows})
    with pytest.raises(UserError, match=words):
        writer.write_shard(0, [("v0", rows, None, None)])
    assert writer.pending() == [0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.json", "plan.json"]


def test_numbers_beyond_float16_are_not_made_infinite(tmp_path: Path) -> None:
    writer = make(tmp_path, {"v0": None}, dtype="float16")
    with pytest.raises(UserError, match="too large for float16; store float32"):
        writer.write_shard(0, [("v0", np.full(DIM, 1e6), None, None)])


def test_items_in_another_order_repeated_or_lacking_are_refused(tmp_path: Path) -> None:
    writer = make(tmp_path, content(4))
    one = np.ones(DIM)
    for ids, words in (
        (["v1"], "'v1', expected 'v0'"),
        (["v0", "v0"], "'v0', expected 'v1'"),
        (["v0"], "ends before item 'v1'"),
    ):
        with pytest.raises(UserError, match=words):
            writer.write_shard(0, [(i, one, None, None) for i in ids])
    for wrong, words in ((["a", "b", "a"], "1 ids occur more than once .first: 'a'"), (["a", ""], "non-empty")):
        with pytest.raises(UserError, match=words):
            StoreWriter(tmp_path / "w", name="x", dim=1, recipe={}, ids=wrong)


def test_another_plan_is_refused_and_says_what_differs(tmp_path: Path) -> None:
    items = content()
    fill(make(tmp_path, items), items)
    fill(make(tmp_path, items), items)  # the same again: nothing to do
    for options, words in (
        ({"dim": 4}, "dim 3, expected 4"),
        ({"dtype": "float16"}, "dtype 'float32', expected 'float16'"),
        ({"recipe": {"model": "n", "size": 2}}, "model 'm', expected 'n'; give another folder"),
        ({"items_per_shard": 5}, "items_per_shard 4, expected 5"),
    ):
        with pytest.raises(UserError, match=words):
            make(tmp_path, items, **options)
    with pytest.raises(UserError, match="another list of ids"):
        make(tmp_path, dict.fromkeys([*items][::-1]))


def test_ids_are_never_file_names(tmp_path: Path) -> None:
    items: dict[str, np.ndarray | None] = {
        i: np.full((1, DIM), n, np.float32)
        for n, i in enumerate(["../../evil", "/etc/passwd", "a\nb\0c", "\ud800", "…"])
    }
    store = fill(make(tmp_path / "deep" / "s", items), items)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["s"]
    for item, rows in items.items():
        np.testing.assert_array_equal(FeatureStore.open(store.path).get(item), rows)


def test_failed_items_get_another_try(tmp_path: Path) -> None:
    items = content()
    writer = make(tmp_path / "a", items)
    for shard in writer.pending():
        given = [
            (i, None if i == "v5" else r, FAILED + "truncated" if i == "v5" else None, None)
            for i, r, _, _ in rows_of(writer, shard, items)
        ]
        writer.write_shard(shard, given)
    assert writer.finish().missing == {"v3": NOTHING, "v5": "failed: truncated", "v7": NOTHING}
    assert writer.failed() == {"v5": "failed: truncated"}
    assert writer.reopen_failed() == writer.pending() == [1]
    with pytest.raises(UserError, match="not finished"):
        FeatureStore.open(tmp_path / "a")
    writer.write_shard(1, [(i, items[i], None, None) for i in writer.shard_ids(1)])
    assert "v5" in writer.finish()
    assert writer.reopen_failed() == []
    straight = make(tmp_path / "b", items)
    for shard in straight.pending():
        straight.write_shard(shard, [(i, items[i], None, None) for i in straight.shard_ids(shard)])
    straight.finish()
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_damage_is_found(tmp_path: Path) -> None:
    items = content()
    store = fill(make(tmp_path, items), items)
    shard = tmp_path / "shard-00001.npy"
    good = shard.read_bytes()
    altered = bytearray(good)
    altered[-1] ^= 64
    shard.write_bytes(altered)
    assert store.verify() == [f"{shard}: its sha256 differs from the manifest's: the file was altered"]
    shard.write_bytes(good[:-4])
    assert store.verify() == [f"{shard}: found {len(good) - 4} bytes, expected {len(good)}"]
    with pytest.raises(UserError, match=r"shard-00001.npy: found \d+ bytes, expected"):
        FeatureStore.open(tmp_path)
    with pytest.raises(UserError, match="cannot be mapped"):
        store.get("v4")
    shard.unlink()
    assert store.verify() == [f"{shard}: missing"]
    with pytest.raises(UserError, match="found no such file"):
        FeatureStore.open(tmp_path)
    shard.write_bytes(good[:-4] + np.array(np.nan, "<f4").tobytes())
    assert FeatureStore.open(tmp_path).nonfinite() == ["v6"]


def test_folders_that_hold_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found no feature store"):
        FeatureStore.open(tmp_path / "nothing")
    items = content()
    writer = make(tmp_path, items)
    with pytest.raises(UserError, match="not finished"):
        FeatureStore.open(tmp_path)
    with pytest.raises(UserError, match="3 of 3 shards not written"):
        writer.finish()
    fill(writer, items)
    manifest = tmp_path / "manifest.json"
    text = manifest.read_text()
    for old, new, words in (
        ('"version": 1', '"version": 2', "version 2, expected"),
        ('"size": 2', '"size": 3', "edited by hand"),
        ('"plan"', '"plam"', "no valid manifest"),
    ):
        manifest.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=words):
            FeatureStore.open(tmp_path)


def test_a_full_disk_keeps_the_finished_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = content()
    writer = make(tmp_path / "s", items)
    writer.write_shard(0, rows_of(writer, 0, items))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))  # a file may not grow beyond 64 bytes
    try:
        with pytest.raises(
            UserError, match=r"shard 1 could not be written .*the 1 finished shards are kept: make room"
        ):
            writer.write_shard(1, rows_of(writer, 1, items))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [path for path in (tmp_path / "s").iterdir() if path.suffix == ".part"]
    assert writer.pending() == [1, 2]

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer_module.os, "fsync", refuse)
        with pytest.raises(UserError, match="No space left on device"):
            writer.write_shard(1, rows_of(writer, 1, items))
    fill(writer, items)
    fill(make(tmp_path / "t", items), items)
    assert bytes_of(tmp_path / "s") == bytes_of(tmp_path / "t")


def test_errors_of_the_items_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    writer = make(tmp_path, content())

    def items() -> Iterator[Item]:
        yield from rows_of(writer, 0, content())[:2]
        (tmp_path / "no such video").read_bytes()

    with pytest.raises(FileNotFoundError, match="no such video"):
        writer.write_shard(0, items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.json", "plan.json"]


def test_a_finished_store_needs_no_right_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = content()
    fill(make(tmp_path, items), items)

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("wrote to a read-only folder")

    for name in ("_write", "_rename"):
        monkeypatch.setattr(StoreWriter, name, refuse)
    tmp_path.chmod(0o555)
    try:
        again = make(tmp_path, items)
        assert again.pending() == []
        np.testing.assert_array_equal(again.finish().get("v0"), items["v0"])
    finally:
        tmp_path.chmod(0o755)


def _read_in_worker(store: FeatureStore) -> tuple[float, int]:
    rows, lengths = store.rows(["v1", "v2", "v3"])
    return float(rows.sum()), int(lengths.sum())


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_workers_read_the_same(tmp_path: Path, method: str) -> None:
    items = content()
    store = fill(make(tmp_path, items), items)
    here = _read_in_worker(store)
    code = (
        "import multiprocessing, sys\nfrom pathlib import Path\n"
        "from src.data.features.store import FeatureStore, _MAPS\n"
        "from tests.unit.test_feature_store import _read_in_worker\n"
        "if __name__ == '__main__':\n"
        f"    store = FeatureStore.open(Path({str(tmp_path)!r}))\n"
        "    here = _read_in_worker(store)\n"
        f"    with multiprocessing.get_context({method!r}).Pool(2) as pool:\n"
        "        assert pool.map(_read_in_worker, [store] * 4) == [here] * 4\n"
        "    print(*here)\n"
    )
    script = tmp_path.with_suffix(".py")
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [str(here[0]), str(here[1])], done.stderr


def test_pickles_are_small_and_notice_another_store(tmp_path: Path) -> None:
    items = content()
    store = fill(make(tmp_path / "s", items), items)
    store.get("v1")
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled).get("v1"), items["v1"])  # noqa: S301  written above
    (tmp_path / "s").rename(tmp_path / "old")
    fill(make(tmp_path / "s", items, recipe={}), items)
    with pytest.raises(UserError, match="changed while it was in use"):
        pickle.loads(pickled)  # noqa: S301  written above


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = content(40)
    store = fill(make(tmp_path, items, items_per_shard=2), items)
    monkeypatch.setattr(_MAPS, "_limit", 3)
    _MAPS._arrays.clear()
    expected = np.concatenate([rows for rows in items.values() if rows is not None])
    for _ in range(2):
        np.testing.assert_array_equal(store.rows([*items])[0], expected)
        assert len(_MAPS._arrays) <= 3


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from src.data.features.writer import StoreWriter
from tests.unit.test_feature_store import content, make
items = content(40)
writer = make(Path(sys.argv[1]), items)
def slowly(shard):
    for item in writer.shard_ids(shard):
        time.sleep(float(sys.argv[4]))
        print(item, flush=True)
        yield item, items[item], "no sound" if items[item] is None else None, {"n": item} if item == "v9" else None
for shard in writer.pending():
    if shard % int(sys.argv[3]) == int(sys.argv[2]):
        writer.write_shard(shard, slowly(shard))
while writer.pending():
    time.sleep(0.005)
writer.finish()
"""


def run_writer(folder: Path, first: int = 0, step: int = 1, pause: float = 0.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(first), str(step), str(pause)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)


def test_killed_and_shared_runs_leave_the_same_bytes(tmp_path: Path) -> None:
    straight = run_writer(tmp_path / "straight")
    killed = run_writer(tmp_path / "killed", pause=0.01)
    assert killed.stdout is not None
    for line in killed.stdout:
        if line.strip() == "v22":  # in the middle of the sixth shard
            killed.send_signal(signal.SIGKILL)
            break
    killed.stdout.close()
    (tmp_path / "killed" / ".ids.json.0123.part").write_text("[")  # as if killed while writing it
    assert killed.wait() == -signal.SIGKILL
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert "manifest.json" not in left
    assert "shard-00004.json" in left
    assert "shard-00005.json" not in left
    assert straight.communicate()[0]
    several = [run_writer(tmp_path / "several", rank, 3) for rank in range(3)]
    again = run_writer(tmp_path / "killed")
    written = again.communicate()[0].split()
    assert written[0] == "v20"
    for process in several:  # all of them write the manifest
        process.communicate(timeout=60)
        assert process.returncode == 0
    wanted = bytes_of(tmp_path / "straight")
    assert "manifest.json" in wanted
    assert bytes_of(tmp_path / "killed") == wanted
    assert bytes_of(tmp_path / "several") == wanted


def test_two_processes_with_the_same_shard_and_the_same_end(tmp_path: Path) -> None:
    items = content()
    first, second = make(tmp_path, items), make(tmp_path, items)
    late = rows_of(second, 0, items)

    def interleaved() -> list[Item]:
        first.write_shard(0, rows_of(first, 0, items))
        return [(i, None if r is None else r + 1, reason, d) for i, r, reason, d in late]

    second.write_shard(0, iter(interleaved()))
    fill(first, items)
    (tmp_path / "manifest.json").unlink()
    first.finish()
    wanted = bytes_of(tmp_path)
    assert second.finish().verify() == []
    np.testing.assert_array_equal(FeatureStore.open(tmp_path).get("v0"), items["v0"])
    assert bytes_of(tmp_path) == wanted


def test_a_large_index_opens_quickly(tmp_path: Path) -> None:
    """336,000 items, as IACC.3 has; measured at 0.1 s."""
    ids = [f"shot{n // 100}_{n % 100}" for n in range(336_000)]
    writer = StoreWriter(tmp_path, name="x", dim=1, recipe={}, ids=ids, items_per_shard=168_000)
    one = np.ones(1, np.float32)
    for shard in writer.pending():
        writer.write_shard(shard, ((i, one, None, None) for i in writer.shard_ids(shard)))
    writer.finish()
    started = time.process_time()
    store = FeatureStore.open(tmp_path)
    assert time.process_time() - started < 2
    assert len(store) == 336_000
    assert store.rows(ids[::-1000])[0].sum() == 336
