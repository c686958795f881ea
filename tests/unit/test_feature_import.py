"""Features in the published layouts become stores, and malicious files do nothing."""

from __future__ import annotations

import array
import pickle
import sys
import tracemalloc
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from src.data.features.arrays import npy_sources, npz_source
from src.data.features.bigfile import bigfile_source, export_bigfile, parse_frames
from src.data.features.detect import find_sources, holds_features
from src.data.features.experts import find_experts
from src.data.features.hdf5 import hdf5_source
from src.data.features.pickles import pickle_source
from src.data.features.source import Source, import_source
from src.data.features.store import FeatureStore
from src.data.features.writer import StoreWriter
from src.errors import UserError
from src.tasks import convert

NAN = float("nan")
rng = np.random.default_rng(0)


def vectors(steps: int, dim: int = 4) -> np.ndarray:
    return rng.standard_normal((steps, dim)).astype(np.float32)


def write_bigfile(folder: Path, rows: Mapping[str, np.ndarray], frames: Mapping[str, Sequence[str]] | None) -> Path:
    folder.mkdir(parents=True)
    matrix = np.stack([*rows.values()]).astype("<f4")
    matrix.tofile(folder / "feature.bin")
    (folder / "shape.txt").write_text(f"{matrix.shape[0]} {matrix.shape[1]}")
    (folder / "id.txt").write_text(" ".join(rows), encoding="iso-8859-1")
    if frames is not None:
        (folder / "video2frames.txt").write_text(str(frames), encoding="iso-8859-1")
    return folder


class ReferenceBigFile:
    """The reader that specs describe: rows in stored order, unknown names are skipped, one file access per row."""

    def __init__(self, folder: Path) -> None:
        self.rows, self.dims = map(int, (folder / "shape.txt").read_text().split())
        names = (folder / "id.txt").read_text(encoding="iso-8859-1").strip().split()
        assert len(names) == self.rows
        self.index = {name: row for row, name in enumerate(names)}
        self.file = folder / "feature.bin"

    def read(self, names: Iterable[str]) -> dict[str, list[float]]:
        found = sorted({self.index[name] for name in names if name in self.index})
        by_row = {row: name for name, row in self.index.items()}
        result = {}
        with self.file.open("rb") as file:
            for row in found:
                values = array.array("f")
                file.seek(row * self.dims * 4)
                values.fromfile(file, self.dims)
                result[by_row[row]] = values.tolist()
        return result


def load(source: Source, tmp_path: Path, **options: Any) -> FeatureStore:
    return import_source(source, tmp_path / "store", **options)


# --- BigFile


def test_bigfile_frames_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["a_b_10", "a_b_9", "c_0", "a_b_0", "é_1"]
    rows = {name: np.full(3, n, np.float32) for n, name in enumerate(names)}
    frames = {"a_b": ["a_b_9", "a_b_10", "a_b_0"], "c": ["c_0", "c_1"], "lost": ["lost_1"], "é": ["é_1"]}
    source = bigfile_source(write_bigfile(tmp_path / "f", rows, frames))
    assert source.notes == ("2 frames of video2frames.txt are not in id.txt",)
    store = load(source, tmp_path)
    assert store.name == "f"
    assert store.ids == ("a_b", "c", "é")
    assert store.get("a_b")[:, 0].tolist() == [3, 1, 0]
    assert store.get("é")[:, 0].tolist() == [4]
    assert store.missing == {"lost": "none of its 1 frames is in id.txt"}
    assert store.recipe["imported"] == "bigfile"
    assert store.recipe["files"] == 4


def test_bigfile_without_frames_has_one_row_per_item(tmp_path: Path) -> None:
    store = load(bigfile_source(write_bigfile(tmp_path / "f", {"v1": np.ones(2), "v_2": np.zeros(2)}, None)), tmp_path)
    assert store.lengths(["v1", "v_2"]).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("shape.txt", "3 3", "shape.txt says 3 rows of 3, id.txt has 2 ids and feature.bin 24 bytes; expected 3 ids"),
        ("shape.txt", "2", "expected two numbers"),
        ("shape.txt", "-2 3", "expected two numbers"),
        ("id.txt", "a_0 a_0", "'a_0' occurs more than once"),
        ("id.txt", "a_0", "has 1 ids"),
        ("feature.bin", "short", "feature.bin 5 bytes"),
        ("video2frames.txt", "__import__('os').system('true')", "expected a dict of video"),
        ("video2frames.txt", "{'a': ['a_x']}", "'a_x', expected <video>_<number>"),
    ],
)
def test_bigfile_that_contradicts_itself(tmp_path: Path, file: str, text: str, words: str) -> None:
    folder = write_bigfile(tmp_path / "f", {"a_0": np.ones(3), "a_1": np.ones(3)}, {"a": ["a_0", "a_1"]})
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=words):
        bigfile_source(folder)
    (folder / "shape.txt").unlink()
    with pytest.raises(UserError, match="expected a BigFile folder"):
        bigfile_source(folder)


@given(st.dictionaries(st.text(max_size=8), st.lists(st.text(max_size=6), max_size=4), max_size=5))
@settings(max_examples=150, deadline=None)
def test_frames_are_read_as_python_would(frames: dict[str, list[str]]) -> None:
    assert parse_frames(repr(frames), Path("x")) == frames
    assert parse_frames(str({k: tuple(v) for k, v in frames.items() if len(v) != 1}), Path("x")) == {
        k: v for k, v in frames.items() if len(v) != 1
    }


def test_frames_of_python_2_and_trailing_commas() -> None:
    assert parse_frames("{u'a' : [u'a_1', 'a_2',], \"b\": (),\n}\n", Path("x")) == {"a": ["a_1", "a_2"], "b": []}
    for wrong in (
        "",
        "{'a': ['b'}",
        "{'a' ['b']}",
        "['a']",
        "{'a': ['b']} 1",
        "{'a': ['b'], 'a': ['c']}",
        "{'a': 3}",
        "{1: []}",
    ):
        with pytest.raises(UserError, match="expected a dict"):
            parse_frames(wrong, Path("x"))


def test_bigfile_is_streamed(tmp_path: Path) -> None:
    """64 MB of rows pass through far less memory: the archives have gigabytes."""
    folder = tmp_path / "f"
    folder.mkdir()
    videos, each, dim = 160, 25, 4096
    with (folder / "feature.bin").open("wb") as file:
        for _ in range(videos):
            file.write(np.ones((each, dim), "<f4").tobytes())
    frames = {f"v{v}": [f"v{v}_{n}" for n in range(each)] for v in range(videos)}
    (folder / "shape.txt").write_text(f"{videos * each} {dim}")
    (folder / "id.txt").write_text(" ".join(name for names in frames.values() for name in names))
    (folder / "video2frames.txt").write_text(repr(frames))
    tracemalloc.start()
    store = load(bigfile_source(folder), tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert store.num_rows == videos * each
    assert peak < 12e6


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9).filter(any), st.sampled_from(["float32", "float16"]))
@settings(max_examples=20, deadline=None)
def test_export_is_read_by_the_reference_and_by_us(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], dtype: str
) -> None:
    tmp_path = tmp_path_factory.mktemp("export")
    items = {f"v_{n}": vectors(length).astype(dtype) if length else None for n, length in enumerate(lengths)}
    writer = StoreWriter(
        tmp_path / "s",
        name="x",
        dim=4,
        recipe={},
        ids=[*items],
        dtype=dtype,
        items_per_shard=2,  # type: ignore[arg-type]
    )
    for shard in writer.pending():
        writer.write_shard(shard, ((i, items[i], None, None) for i in writer.shard_ids(shard)))
    store = writer.finish()
    assert export_bigfile(store, tmp_path / "big") == len(store.missing)
    reference = ReferenceBigFile(tmp_path / "big")
    back = load(bigfile_source(tmp_path / "big"), tmp_path)
    assert back.ids == store.ids
    for item in store.ids:
        rows = store.get(item)
        np.testing.assert_array_equal(back.get(item), rows.astype(np.float32))
        names = [f"{item}_{n}" for n in range(len(rows))]
        np.testing.assert_array_equal([*reference.read([*names, "unknown"]).values()], rows.astype(np.float32))


def test_export_refuses_what_the_format_cannot_hold(tmp_path: Path) -> None:
    for item in ("a b", "日本"):
        writer = StoreWriter(tmp_path / item, name="x", dim=1, recipe={}, ids=[item])
        writer.write_shard(0, [(item, np.ones(1), None, None)])
        with pytest.raises(UserError, match="expected ISO-8859-1 without spaces"):
            export_bigfile(writer.finish(), tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    writer = StoreWriter(tmp_path / "s", name="x", dim=1, recipe={}, ids=["a"])
    writer.write_shard(0, [("a", np.ones(1), None, None)])
    with pytest.raises(UserError, match="exists already"):
        export_bigfile(writer.finish(), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


# --- pickles


def write_pickle(path: Path, content: object, protocol: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_dict_of_arrays(tmp_path: Path, protocol: int) -> None:
    content = {
        "video0": vectors(1)[0],
        "video1": vectors(1),
        b"video2": vectors(3),
        "video3": NAN,
        "video4": np.float32(NAN),
        "video5": np.zeros((0, 4), np.float32),
        "video6": np.full((2, 4), np.nan),
        "video7": None,
        8: [1.0, 2.0, 3.0, 4.0],
        "zero": np.zeros((1, 4), np.float32),
    }
    path = write_pickle(tmp_path / "rgb.pickle", content, protocol)
    store = load(pickle_source([path], "rgb"), tmp_path)
    assert store.ids == ("video0", "video1", "video2", "8", "zero")
    assert set(store.missing) == {"video3", "video4", "video5", "video6", "video7"}
    assert store.missing["video3"] == "missing in the source (NaN)"
    assert store.missing["video5"] == "no rows in the source"
    assert store.lengths(["video0", "video1", "video2"]).tolist() == [1, 1, 3]
    np.testing.assert_array_equal(store.get("video2"), content[b"video2"])
    assert store.recipe["file"] == "rgb.pickle"


def test_pickle_of_python_2(tmp_path: Path) -> None:
    """Protocol 2 with byte strings and `copy_reg`, `numpy.core` names, as Python 2 wrote them."""
    raw = vectors(2)
    data = raw.tobytes()
    text = (
        b"\x80\x02}q\x00U\x06vid\xe9oxcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R("
        b"K\x01K\x02K\x04\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(data).to_bytes(4, "little")
        + data
        + b"tbs."
    )
    path = tmp_path / "old.pickle"
    path.write_bytes(text)
    store = load(pickle_source([path], "old"), tmp_path)
    np.testing.assert_array_equal(store.get("vidéox"), raw)


def expert_store(module: str) -> type:
    """A class as the published files name it."""

    class ExpertStore:
        def __init__(self, content: Mapping[str, np.ndarray | None], **extra: object) -> None:
            self.keys, self.dim = [*content], 4
            self.store = np.zeros((len(content), 4), np.float16)
            self.keymap = {key: row for row, key in enumerate(content)}
            self.__dict__.update(extra)
            for key, value in content.items():
                self.store[self.keymap[key]] = np.nan if value is None else value

    ExpertStore.__qualname__, ExpertStore.__module__ = "ExpertStore", module
    return ExpertStore


@pytest.mark.parametrize("module", ["datastructures", "zsvision.zs_data_structures"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickled_expert_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, protocol: int) -> None:
    kind = expert_store(module)
    fake = types.ModuleType(module)
    fake.ExpertStore = kind  # type: ignore[attr-defined]
    parent = module.partition(".")[0]
    monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, module, fake)
    content = {"a": np.ones(4), "b": None, "c": np.full(4, 2.0)}
    path = write_pickle(tmp_path / "x.pickle", kind(content, missing={"c"}), protocol)
    monkeypatch.undo()
    store = load(pickle_source([path], "x"), tmp_path)
    assert store.ids == ("a",)
    assert store.dtype == np.float16
    assert set(store.missing) == {"b", "c"}


def test_caption_features(tmp_path: Path) -> None:
    content = {"v1": [vectors(5), vectors(2), np.zeros((0, 4))], "v2": (vectors(1)[0],), "v3": np.ones((2, 3, 4))}
    store = load(pickle_source([write_pickle(tmp_path / "t.pkl", content)], "text"), tmp_path)
    assert store.ids == ("v1#0", "v1#1", "v2#0", "v3#0", "v3#1")
    assert store.lengths(["v1#0", "v1#1", "v1#2", "v2#0", "v3#1"]).tolist() == [5, 2, 0, 1, 3]
    assert store.missing == {"v1#2": "no rows in the source"}


class Malicious:
    """Unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.path)!r}, 'w')",)


def test_a_malicious_pickle_does_nothing(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    path = write_pickle(tmp_path / "evil.pickle", {"v": Malicious(harm)})
    with pytest.raises(UserError, match=r"asks for builtins\.\w+, which is neither .* add task\.trust=true"):
        pickle_source([path], "evil")
    assert not harm.exists()
    for evil, words in (
        (b"cbuiltins\ngetattr\n.", r"asks for builtins\.getattr"),
        (b"csrc.data.features.pickles\nio\n.", r"asks for src\.data\.features\.pickles\.io"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.", r"asks for numpy\.ndarray\.dump"),
        (b"cnumpy\nfromfile\n.", r"asks for numpy\.fromfile"),
        (b"cbuiltins\nbytes\n(I1000000000000\ntR.", "cannot be unpickled"),
        (b"c_codecs\nencode\n(Vx\nVunicode_escape\ntR.", "damaged pickle"),
    ):
        path.write_bytes(evil)
        with pytest.raises(UserError, match=words):
            pickle_source([path], "evil")


def test_the_stand_in_cannot_be_changed(tmp_path: Path) -> None:
    """BUILD with a second dict sets attributes: on an object they are harmless, on the class they would stay."""
    (tmp_path / "x.pickle").write_bytes(b"\x80\x02cdatastructures\nExpertStore\nN}U\x04keysK\x01s\x86b.")
    with pytest.raises(UserError, match="a change of"):
        pickle_source([tmp_path / "x.pickle"], "x")
    (tmp_path / "y.pickle").write_bytes(b"ccopy_reg\n_reconstructor\n(cnumpy\nndarray\nc__builtin__\nobject\nNtR.")
    with pytest.raises(UserError, match="damaged pickle"):
        pickle_source([tmp_path / "y.pickle"], "x")


def test_trust_lets_a_file_name_any_class(tmp_path: Path) -> None:
    harmless = {"v": types.SimpleNamespace(rows=1)}
    path = write_pickle(tmp_path / "odd.pickle", harmless)
    with pytest.raises(UserError, match=r"asks for types\.SimpleNamespace"):
        pickle_source([path], "odd")
    source = pickle_source([path], "odd", trust=True)
    with pytest.raises(UserError, match="item 'v' has type object, expected numbers"):
        load(source, tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be unpickled"),
        (b"no pickle at all", "damaged pickle|cannot be unpickled"),
        (pickle.dumps({"v": np.ones((50, 4))})[:-100], "truncated"),
        (pickle.dumps([1, 2]), "holds list, expected a dict"),
        (pickle.dumps({}), "holds an empty dict"),
        (pickle.dumps({1: NAN, "1": NAN}), "two keys are written '1'"),
    ],
)
def test_pickles_that_hold_no_features(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.pickle").write_bytes(content)
    with pytest.raises(UserError, match=words):
        pickle_source([tmp_path / "x.pickle"], "x")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("text", "is text"),
        (3.5, "is the number 3.5"),
        (np.ones((1, 2, 2, 4)), "expected .dim,. or .steps, dim."),
        ([[1.0, 2.0], 3], "item 'x#0' has dim 2, but 'a' has 4"),
        (np.ones(5), "item 'x' has dim 5, but 'a' has 4"),
        (np.array([[1, 2, 3, np.nan]]), r"item 'x' has NaN .* in 1 of 1 rows \(first: 0\).*task.nan=missing"),
    ],
)
def test_items_that_are_no_features_are_named(tmp_path: Path, value: object, words: str) -> None:
    path = write_pickle(tmp_path / "x.pickle", {"a": np.ones(4), "x": value})
    with pytest.raises(UserError, match=words):
        load(pickle_source([path], "x"), tmp_path)


def test_nan_rows_can_be_imported_as_missing(tmp_path: Path) -> None:
    content = {"a": np.ones((2, 4)), "b": np.array([[1.0] * 4, [1, 2, np.nan, 4]])}
    source = pickle_source([write_pickle(tmp_path / "x.pickle", content)], "x")
    store = load(source, tmp_path, nan="missing")
    assert store.missing == {"b": "NaN or infinite numbers in 1 of 2 rows (first: 1)"}
    with pytest.raises(UserError, match="nan 'missing', expected 'error'"):
        load(source, tmp_path)


def test_an_interrupted_import_goes_on_and_leaves_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.data.features.source._SHARD_BYTES", 200)
    content = {f"v{n}": vectors(2) if n % 3 else NAN for n in range(20)}
    source = pickle_source([write_pickle(tmp_path / "x.pickle", content)], "x")
    asked: list[str] = []

    def broken(ids: Sequence[str]) -> Any:
        for item, value in zip(ids, source.read(ids), strict=True):
            asked.append(item)
            if item == "v13":
                raise KeyboardInterrupt
            yield value

    with pytest.raises(KeyboardInterrupt):
        import_source(replace(source, read=broken), tmp_path / "cut")
    assert not (tmp_path / "cut" / "manifest.json").exists()
    import_source(source, tmp_path / "cut")
    import_source(source, tmp_path / "straight")
    for path in (tmp_path / "straight").iterdir():
        assert (tmp_path / "cut" / path.name).read_bytes() == path.read_bytes()
    assert len([*(tmp_path / "cut").iterdir()]) == len([*(tmp_path / "straight").iterdir()]) > 10


def test_features_of_several_folders_make_one_store(tmp_path: Path) -> None:
    parts = {
        "train": {"a": vectors(2, 4), "b": vectors(1, 4)},
        "val": {"c": vectors(3, 4)},
        "test": {"a": vectors(1, 4)},
    }
    for name, part in parts.items():
        write_pickle(tmp_path / f"{name}.pickle", part)
    also = [str(tmp_path / f"{name}.pickle") for name in ("val", "test")]
    convert.run(config(tmp_path, tmp_path / "train.pickle", also=also))
    store = FeatureStore.open(tmp_path / "out")
    assert sorted(store.ids) == ["a", "b", "c"]
    np.testing.assert_array_equal(store.get("a"), parts["train"]["a"])  # the first one counts
    np.testing.assert_array_equal(store.get("c"), parts["val"]["c"])
    assert [part["name"] for part in store.recipe["united"]] == ["train", "val", "test"]
    with pytest.raises(UserError, match=r"task\.append and task\.also at once, expected one of them"):
        convert.run(config(tmp_path, tmp_path / "train.pickle", also=also, append=also))


def test_features_side_by_side(tmp_path: Path) -> None:
    left = {"a": vectors(2, 4), "b": vectors(1, 4), "c": vectors(1, 4)}
    right = {"c": NAN, "a": vectors(2, 3)}
    write_pickle(tmp_path / "left.pickle", left)
    write_pickle(tmp_path / "right.pickle", right)
    convert.run(config(tmp_path, tmp_path / "left.pickle", append=[str(tmp_path / "right.pickle")]))
    store = FeatureStore.open(tmp_path / "out")
    np.testing.assert_array_equal(store.get("a"), np.concatenate([left["a"], right["a"]], axis=1))
    assert store.missing == {"b": "not in right", "c": "missing in the source (NaN)"}
    assert [part["name"] for part in store.recipe["concatenated"]] == ["left", "right"]
    write_pickle(tmp_path / "right.pickle", {"a": vectors(3, 3)})
    with pytest.raises(UserError, match="'a' has rows: 2 in left, 3 in right; expected the same number"):
        convert.run(config(tmp_path, tmp_path / "left.pickle", append=[str(tmp_path / "right.pickle")], output=None))
    for name in ("a_rgb", "a_flow"):
        np.save(tmp_path / f"{name}.npy", vectors(1))
    with pytest.raises(UserError, match=r"several kinds of features at the source \(flow, rgb\)"):
        convert.run(config(tmp_path, tmp_path, append=[str(tmp_path / "right.pickle")]))


def test_nothing_present_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of its 2 items has features"):
        load(pickle_source([write_pickle(tmp_path / "x.pickle", {"a": NAN, "b": NAN})], "x"), tmp_path)


# --- HDF5 and hickle


def test_hdf5_at_the_root_and_in_one_group(tmp_path: Path) -> None:
    rows = {"v1": vectors(3), "v2": vectors(1)[0], "v3": np.float64(NAN), "../v4": vectors(1)}
    for name in ("", "features"):
        path = tmp_path / f"f{name}.h5"
        with h5py.File(path, "w") as file:
            group = file.create_group(name) if name else file
            for item in ("v1", "v2", "v3"):
                group[item] = rows[item]
        store = import_source(hdf5_source(path, "x"), tmp_path / f"store{name}")
        assert store.ids == ("v1", "v2")
        assert store.missing == {"v3": "missing in the source (NaN)"}
        np.testing.assert_array_equal(store.get("v1"), rows["v1"])


def test_hdf5_of_another_layout(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "deep.h5", "w") as file:
        file["a/b/c"] = np.ones(3)
        file["a/d"] = np.ones(3)
    with pytest.raises(UserError, match="/a/b is a group inside a group"):
        hdf5_source(tmp_path / "deep.h5", "x")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(UserError, match="found no datasets"):
        hdf5_source(tmp_path / "empty.h5", "x")
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        hdf5_source(tmp_path / "text.h5", "x")


def test_hdf5_needs_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = np.ones(3)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match="needs the package h5py; install it with"):
        hdf5_source(tmp_path / "x.h5", "x")


def test_hickle_of_version_3(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.hickle", "w") as file:
        root = file.create_group("data_0")
        root.attrs["type"] = [b"<class 'dict'>"]
        for key, values in {"v1": [vectors(2)], "v2": [NAN], "it's": [vectors(1)]}.items():
            item = root.create_group(repr(key))
            item.attrs["type"] = [b"dict_item"]
            item["data_0"] = values[0]
        caps = root.create_group("'c'")
        caps.attrs["type"] = [b"dict_item"]
        for n in range(2):
            caps[f"data_0/data_{n}"] = vectors(n + 1)
    store = load(hdf5_source(tmp_path / "x.hickle", "x"), tmp_path)
    assert set(store.ids) == {"v1", "it's", "c#0", "c#1"}
    assert store.lengths(["v1", "c#0", "c#1"]).tolist() == [2, 1, 2]
    assert set(store.missing) == {"v2"}


def test_hickle_of_version_5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.hickle", "w") as file:
        file.create_group("hickle_types_table")
        root = file.create_group("data")
        root['"v1"'] = vectors(2)
        root['"v2"'] = NAN
        for n in range(2):
            root[f'"c"/data{n}'] = vectors(n + 1)
        odd = root.create_group("data3")
        odd.attrs["key_base_type"] = "key_value"
        odd["data0"] = np.array([[b"a", b"/", b"b"]], dtype="S1")
        odd["data1"] = vectors(1)[0]
    store = load(hdf5_source(tmp_path / "x.hickle", "x"), tmp_path)
    assert set(store.ids) == {"v1", "c#0", "c#1", "a/b"}
    assert set(store.missing) == {"v2"}


def test_a_pickle_inside_a_hickle_is_read_with_the_same_care(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    for name, content in (("good", {"v": np.ones(4)}), ("evil", {"v": Malicious(harm)})):
        data = pickle.dumps(content)
        with h5py.File(tmp_path / f"{name}5.hickle", "w") as file:
            file.create_group("hickle_types_table")
            file["data"] = np.frombuffer(data, np.uint8)
        with h5py.File(tmp_path / f"{name}3.hickle", "w") as file:
            node = file.create_dataset("data_0", data=[np.void(data)])
            node.attrs["type"] = [b"pickle"]
    for version in (3, 5):
        assert hdf5_source(tmp_path / f"good{version}.hickle", "x").ids == ("v",)
        with pytest.raises(UserError, match=r"inside: asks for builtins\.exec"):
            hdf5_source(tmp_path / f"evil{version}.hickle", "x")
    assert not harm.exists()


# --- npy and npz


def test_npy_folders(tmp_path: Path) -> None:
    for name, steps in (("a_rgb", 2), ("b_rgb", 1), ("a_flow", 2), ("c", 3), ("_rgb", 1)):
        np.save(tmp_path / f"{name}.npy", vectors(steps))
    sources = {source.name: source for source in npy_sources(tmp_path)}
    assert {name: source.ids for name, source in sources.items()} == {
        "rgb": ("a", "b"),
        "flow": ("a",),
        tmp_path.name: ("_rgb", "c"),
    }
    (only,) = npy_sources(tmp_path, "_flow")
    assert (only.name, only.ids, only.recipe["suffix"]) == ("flow", ("a",), "_flow")
    assert load(only, tmp_path).lengths(["a"]).tolist() == [2]
    with pytest.raises(UserError, match=r"found no \*_i3d.npy"):
        npy_sources(tmp_path, "_i3d")
    np.save(tmp_path / "d.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match=r"d.npy: cannot be read as an array"):
        import_source({s.name: s for s in npy_sources(tmp_path)}[tmp_path.name], tmp_path / "t")


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=vectors(2), b=np.float32(NAN))
    store = load(npz_source(tmp_path / "x.npz"), tmp_path)
    assert (store.ids, set(store.missing)) == (("a",), {"b"})
    (tmp_path / "y.npz").write_text("no")
    with pytest.raises(UserError, match=r"cannot be read as \.npz"):
        npz_source(tmp_path / "y.npz")


@pytest.mark.real
def test_real_i3d_and_vggish_files(shared_data: Path, tmp_path: Path) -> None:
    found, notes = find_sources(shared_data / "features")
    assert notes == []
    stores = {one.name: import_source(one.load(), tmp_path / one.name) for one in found}
    shapes = {name: store.get("women_long_jump").shape for name, store in stores.items()}
    assert shapes == {"rgb": (14, 1024), "flow": (14, 1024), "vggish": (36, 128)}
    original = np.load(shared_data / "features" / "women_long_jump_vggish.npy")
    np.testing.assert_array_equal(stores["vggish"].get("women_long_jump"), original)


# --- folders of Collaborative Experts


def ce_folder(root: Path) -> dict[str, Path]:
    """The layout of the archives, with symbolic links as they have them; returns store name -> file."""
    real = root / "real"
    dims = {
        "audio": ("aggregated_audio_feats/Audio_MSRVTT_new.pickle", 3),
        "speech": ("aggregated_speech/speech-w2v.pickle", 2),
        "ocr": ("aggregated_ocr_feats/ocr-raw.pickle", 2),
        "face": ("aggregated_facefeats_25fps_256px_stride1/face-avg.pickle", 1),
        "scene.densenet161.0": ("aggregated_scene_25fps_256px_stride1_offset0/densenet161-avg.pickle", 1),
        "imagenet.senet154.0": ("aggregated_imagenet_25fps_256px_stride1_offset0/senet154-avg.pickle", 1),
        "imagenet.senet154.0.max": ("aggregated_imagenet_25fps_256px_stride1_offset0/senet154-max.pickle", 1),
        "i3d.i3d.0": ("aggregated_i3d_25fps_256px_stride25_offset0_inner_stride1/i3d-avg.pickle", 1),
        "i3d.i3d.1": ("aggregated_i3d_25fps_256px_stride4_offset0_inner_stride1/i3d-avg.pickle", 1),
        "r2p1d.r2p1d-ig65m.0": (
            "aggregated_r2p1d_30fps_256px_stride32_offset0_inner_stride1/r2p1d-ig65m-avg.pickle",
            1,
        ),
        "r2p1d.r2p1d-ig65m.0-logits": (
            "aggregated_r2p1d_30fps_256px_stride32_offset0_inner_stride1/r2p1d-ig65m-avg-logits.pickle",
            1,
        ),
        "s3dg.s3dg.1": ("aggregated_s3dg_10fps_224px_stride8_offset0_inner_stride1_num_segments4/s3dg-avg.pickle", 1),
        "trn.moments-trn.0": ("aggregated_trn_25fps_256px_stride8_offset0_inner_stride5/moments-trn-avg.pickle", 1),
        "trn.moments-trn.stride3": ("aggregated_trn_25fps_256px_stride3/moments-trn-avg.pickle", 1),
    }
    files = {}
    for name, (place, steps) in dims.items():
        rows = {"video0": vectors(steps), "video1": NAN}
        files[name] = write_pickle(real / place, rows)
    files["text.w2v"] = write_pickle(real / "aggregated_text_feats/w2v.pkl", {"video0": [vectors(4), vectors(2)]})
    files["text.openai"] = write_pickle(
        real / "aggregated_text_feats/w2v_MSRVTT_openAIGPT.pickle", {"video0": [vectors(4)]}
    )
    write_pickle(real / "raw-captions.pkl", {"video0": [["a", "dog"]]})
    write_pickle(real / "aggregated_text_feats/raw-captions.pkl", {"video0": [["a", "dog"]]})
    links = root / "structured-symlinks"
    links.mkdir()
    for child in real.iterdir():
        (links / child.name).symlink_to(child)
    return files


def test_every_expert_of_a_folder_is_found(tmp_path: Path) -> None:
    root = tmp_path / "MSRVTT"
    files = ce_folder(root)
    folder = find_experts(root)
    assert {expert.name: expert.files[0].resolve() for expert in folder.experts} == files
    assert sorted(path.name for path in folder.unknown) == ["raw-captions.pkl", "raw-captions.pkl"]
    assert not any(expert.cut_ids for expert in folder.experts)
    assert find_experts(tmp_path).experts == ()


def test_ids_of_didemo_are_cut(tmp_path: Path) -> None:
    root = tmp_path / "DiDeMo" / "symlinked-feats"
    write_pickle(root / "ocr-feats.pkl", {"1@N08_2_a.mp4": vectors(2), "1@N08_3_b.mov": NAN})
    write_pickle(root / "openai-feats.pkl", {"1@N08_2_a.mp4": [vectors(2), vectors(3)]})
    stores = {e.name: import_source(e.load(), tmp_path / e.name) for e in find_experts(tmp_path / "DiDeMo").experts}
    assert stores["ocr"].ids == ("1@N08_2_a",)
    assert set(stores["ocr"].missing) == {"1@N08_3_b"}
    assert stores["ocr"].recipe["ids"] == "cut at the first dot"
    assert stores["text.openai"].ids == ("1@N08_2_a#0", "1@N08_2_a#1")
    write_pickle(root / "ocr-feats.pkl", {"a.mp4": vectors(2), "a.mov": vectors(2)})
    with pytest.raises(UserError, match=r"'a.mp4' and 'a.mov' both become 'a'"):
        find_experts(tmp_path / "DiDeMo").experts[0].load()


def test_caption_features_of_msvd_are_put_together_and_translated(tmp_path: Path) -> None:
    root = tmp_path / "MSVD"
    for part, key in (("train", "vid1"), ("val", "vid2"), ("test", "vid3")):
        write_pickle(root / f"openai-caption-{part}.pkl", {key: [vectors(2), vectors(1)]})
    write_pickle(root / "dict_youtube_mapping.pkl", {"-x_1_2": "vid1", "b.c_1_2": "vid2", "c_3_4": "vid3"})
    (expert,) = find_experts(root).experts
    store = load(expert.load(), tmp_path)
    assert store.ids == ("-x_1_2#0", "-x_1_2#1", "b.c_1_2#0", "b.c_1_2#1", "c_3_4#0", "c_3_4#1")
    write_pickle(root / "dict_youtube_mapping.pkl", {"-x_1_2": "vid1"})
    with pytest.raises(UserError, match="does not name 'vid2'"):
        expert.load()
    write_pickle(root / "openai-caption-val.pkl", {"vid1": [vectors(2)]})
    with pytest.raises(UserError, match="item 'vid1#0' is also in another file"):
        expert.load()


# --- the command


def config(tmp_path: Path, source: Path, **task: object) -> DictConfig:
    given = {
        "source": str(source), "output": str(tmp_path / "out"), "format": "ours", "trust": False,
        "dtype": None, "nan": "error", "cut_ids": False, "suffix": None, "append": [], "also": [], **task,
    }  # fmt: skip
    return OmegaConf.create({"task": given, "paths": {"run_dir": str(tmp_path / "run")}})


def test_convert_imports_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big = write_bigfile(
        tmp_path / "f",
        {"a_0": np.ones(3), "a_1": np.ones(3), "b_0": np.ones(3)},
        {"a": ["a_0", "a_1"], "b": ["b_0"], "c": ["c_0"]},
    )
    convert.run(config(tmp_path, big))
    printed = capsys.readouterr().out
    assert str(tmp_path / "out") in printed
    assert "f: missing: c (none of its 1 frames is in id.txt)" in printed
    assert FeatureStore.open(tmp_path / "out").num_rows == 3
    with pytest.raises(UserError, match=r"is a feature store already; add task\.format=bigfile"):
        convert.run(config(tmp_path, tmp_path / "out"))
    convert.run(config(tmp_path, tmp_path / "out", format="bigfile", output=None))
    assert "1 missing items are left out" in capsys.readouterr().out
    assert (tmp_path / "run" / "out" / "feature.bin").read_bytes() == (big / "feature.bin").read_bytes()
    with pytest.raises(UserError, match="found no feature store"):
        convert.run(config(tmp_path, big, format="bigfile"))


def test_convert_imports_all_experts_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ce_folder(tmp_path / "MSRVTT")
    convert.run(config(tmp_path, tmp_path / "MSRVTT", dtype="float16"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(files)
    assert FeatureStore.open(tmp_path / "out" / "audio").dtype == np.float16
    printed = capsys.readouterr().out
    assert "not imported, no known expert" in printed
    assert "missing: video1 (missing in the source (NaN))" in printed


def test_convert_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    for task, words in (
        ({}, "found no features, expected feature.bin"),
        ({"format": "upstream"}, "task.format=upstream, expected one of ours, bigfile"),
        ({"dtype": "float64"}, "task.dtype=float64, expected one of null, float32, float16"),
        ({"nan": "zero"}, "task.nan=zero"),
    ):
        with pytest.raises(UserError, match=words):
            convert.run(config(tmp_path, folder, **task))
    np.save(tmp_path / "x.npy", vectors(1))
    with pytest.raises(UserError, match="or the folder that holds it"):
        convert.run(config(tmp_path, tmp_path / "x.npy"))


def test_checkpoints_are_not_taken_for_features(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "model.pkl", "w") as archive:
        archive.writestr("data.pkl", b"")
    assert not holds_features(tmp_path / "model.pkl")
    for name in ("pytorch_model.bin.2", "a.pt", "b.safetensors"):
        (tmp_path / name).touch()
        assert not holds_features(tmp_path / name)
    assert holds_features(write_pickle(tmp_path / "f.pkl", {}))
