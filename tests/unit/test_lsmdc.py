"""dataset=lsmdc on files of the published layouts (the published ones need a signed form)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.batch import FrameSpec, InputSpec
from src.data.benchmarks.lsmdc import TABLES, LsmdcDataModule, film_of
from src.data.splits import SplitSpec
from src.errors import UserError

SPLITS = Path(__file__).resolve().parents[2] / "conf" / "split"
CLIPS = {
    "train": ["0001_American_Beauty_00.00.51.926-00.00.54.129", "0001_American_Beauty_00.01.00.000-00.01.02.000"],
    "val": ["1001_Movie_B_00.00.10.000-00.00.15.000"],
    "test": ["1004_Film_00.00.00.000-00.00.01.000", "1005_Film_C_00.00.00.000-00.00.01.000"],
}
TIMES = "00.00.51.926\t00.00.54.129\t00.00.51.926\t00.00.54.129"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "annotations"
    root.mkdir()
    for part, clips in CLIPS.items():
        lines = [f'{clip}\t{TIMES}\tSOMEONE says "no" to {clip}.' for clip in clips]
        (root / TABLES[part][0]).write_text("\n".join(lines) + "\n")
    return root


def make(folder: Path, *, frames: FrameSpec | None = None, **split: Any) -> LsmdcDataModule:
    return LsmdcDataModule(
        name="lsmdc",
        split=SplitSpec("lsmdc", **split),
        inputs=InputSpec(None, frames),
        annotations_dir=str(folder),
        videos_dir=str(folder.parent / "videos"),
    )


def test_tables_without_header_and_quoting(folder: Path) -> None:
    module = make(folder)
    for part, clips in CLIPS.items():
        assert [video.id for video in module.part(part).videos] == clips
        assert [c.text for c in module.part(part).captions] == [f'SOMEONE says "no" to {clip}.' for clip in clips]
    # Where the file is expected: the film's folder.
    path = module.part("train").videos[1].path
    assert path == folder.parent / "videos" / "0001_American_Beauty" / f"{CLIPS['train'][1]}.avi"
    assert film_of("odd") == "odd"


def test_a_clip_named_again_is_another_video_with_the_same_file(folder: Path) -> None:
    first, other = CLIPS["test"]
    rows = [(first, "one"), (other, "two"), (first, "three"), (first, "four")]
    (folder / TABLES["test"][0]).write_text("\n".join(f"{clip}\t{TIMES}\t{text}" for clip, text in rows))
    test = make(folder).part("test")
    assert [video.id for video in test.videos] == [first, other, f"{first}@2", f"{first}@3"]
    assert [caption.text for caption in test.captions] == ["one", "two", "three", "four"]
    assert test.videos[0].path == test.videos[2].path == test.videos[3].path
    assert [video.key for video in test.videos] == [first, other, first, first]  # one set of features


def test_a_clip_in_two_parts_is_a_leak(folder: Path) -> None:
    with (folder / TABLES["train"][0]).open("a") as table:
        table.write(f"{CLIPS['test'][0]}\t{TIMES}\tagain\n")
    with pytest.raises(UserError, match="1 videos are both in train and in test"):
        make(folder).setup()


def test_lists_with_pickled_words_give_the_same(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "lists"
    other.mkdir()
    words = {}
    for part in CLIPS:
        (other / f"{part}_list.txt").write_text("\n".join(CLIPS[part]))
        words |= {caption.video_id: [caption.text.split(" ")] for caption in make(folder).part(part).captions}
    with pytest.raises(UserError, match=r"train_list.txt comes without sentences: no raw-captions.pkl in "):
        make(other).setup()
    (other / "raw-captions.pkl").write_bytes(pickle.dumps(words))
    for part in CLIPS:
        mine, theirs = make(other).part(part), make(folder).part(part)
        assert mine.captions == theirs.captions
        assert [video.id for video in mine.videos] == [video.id for video in theirs.videos]
    words[CLIPS["val"][0]] = [["a"], ["b"]]
    (other / "raw-captions.pkl").write_bytes(pickle.dumps(words))
    with pytest.raises(UserError, match="has 2 captions, expected one"):
        make(other).setup()


def test_files_in_the_folders_of_the_films(folder: Path) -> None:
    first, other = CLIPS["test"]
    videos = folder.parent / "videos"
    for name in (f"1004_Film/{first}.avi", f"small/{other}.mp4"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).touch()
    module = make(folder, frames=FrameSpec(2, 8), subset="available")
    assert [video.path for video in module.part("test").videos] == [
        videos / "1004_Film" / f"{first}.avi",
        videos / "small" / f"{other}.mp4",
    ]
    assert module.applied.excluded_counts("val") == {"missing video": 1}


def test_sentences_in_latin_1(folder: Path) -> None:
    (folder / TABLES["val"][0]).write_bytes(f"{CLIPS['val'][0]}\t{TIMES}\tat the café\r\n".encode("latin-1"))
    assert make(folder).part("val").captions[0].text == "at the café"
    clips = CLIPS["test"]
    lines = (f"{clips[0]}\t{TIMES}\tat the café\n".encode("latin-1"), f"{clips[1]}\t{TIMES}\tsalt – café\n".encode())
    (folder / TABLES["test"][0]).write_bytes(b"".join(lines))
    assert [caption.text for caption in make(folder).part("test").captions] == ["at the café", "salt – café"]


def test_what_is_wrong_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not a folder; ask for LSMDC 2016 at its site"):
        make(tmp_path / "nowhere").setup()
    (folder / TABLES["val"][0]).write_text("clip\tsentence\n")
    with pytest.raises(UserError, match=r"LSMDC16_annos_val.csv, line 1: found 2 fields between tabs, expected 6"):
        make(folder).setup()
    (folder / TABLES["val"][0]).unlink()
    with pytest.raises(UserError, match=r"\(val\) needs LSMDC16_annos_val.csv or val_list.txt, not found in "):
        make(folder).setup()


def test_the_published_size(tmp_path: Path) -> None:
    """As many lines as papers report; the split's expected counts hold."""
    values = yaml.safe_load((SPLITS / "lsmdc.yaml").read_text())
    for number, (part, count) in enumerate({"train": 101_079, "val": 7408, "test": 1000}.items()):
        lines = (f"{number}_Film_{clip:06d}\t{TIMES}\tsentence {clip}" for clip in range(count))
        (tmp_path / TABLES[part][0]).write_text("\n".join(lines))
    module = make(tmp_path, **{key: value for key, value in values.items() if key != "name"})
    module.setup()
    assert set(values["expected"]) == set(TABLES)
    assert len(module.annotation.videos) == 109_487
