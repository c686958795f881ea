"""dataset=queryd and querydsegments on files written in the published layout, and the published links."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.batch import FrameSpec, InputSpec
from src.data.benchmarks.queryd import QuerydDataModule, read_links, youtube_id
from src.data.splits import SplitSpec
from src.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf"
CAPTIONS = {
    "video-aaaaaaaaaaa": [["a", "man", "walks"], ["he", "stops"]],
    "video-bbbbbbbbbbb": [["a", "dog"]],
    "video-ccccccccccc": [["rain"], ["sun"], ["wind"]],
}
LISTS = {"train": ["video-ccccccccccc"], "val": ["video-bbbbbbbbbbb"], "test": ["video-aaaaaaaaaaa"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "structured-symlinks"
    root.mkdir()
    for name, ids in LISTS.items():
        (root / f"{name}_list.txt").write_text("\n".join(ids))
    (root / "raw_captions_combined_filtered.pkl").write_bytes(pickle.dumps(CAPTIONS))
    return root


def make(folder: Path, name: str = "queryd", **options: Any) -> QuerydDataModule:
    split = SplitSpec(**yaml.safe_load((CONF / "split" / f"{name}.yaml").read_text()))
    dataset = yaml.safe_load((CONF / "dataset" / f"{name}.yaml").read_text())
    options = {"inputs": InputSpec(None), "split": split, "videos_dir": str(folder.parent / "videos")} | options
    return QuerydDataModule(name=name, captions_name=dataset["captions_name"], annotations_dir=str(folder), **options)


def test_captions_of_a_video_are_one_paragraph(folder: Path) -> None:
    module = make(folder)
    (caption,) = module.part("test").captions
    assert caption.text == "a man walks he stops"
    assert caption.keys == ("video-aaaaaaaaaaa#0", "video-aaaaaaaaaaa#1")
    assert [video.id for video in module.part("train").videos] == LISTS["train"]


def test_segments_have_a_caption_each(folder: Path) -> None:
    segments = {f"{video_id}-{k}": [words] for video_id, texts in CAPTIONS.items() for k, words in enumerate(texts)}
    (folder / "split_raw_captions_filtered.pkl").write_bytes(pickle.dumps(segments))
    for name, ids in LISTS.items():
        (folder / f"{name}_list.txt").write_text("\n".join(i for i in segments if i[:17] in ids) + "\n")
    module = make(folder, "querydsegments")
    assert [caption.text for caption in module.part("train").captions] == ["rain", "sun", "wind"]
    assert len(module.part("train").videos) == 3


def test_json_of_the_same_shape(folder: Path) -> None:
    expected = make(folder).part("train")
    (folder / "raw_captions_combined_filtered.pkl").unlink()
    for shape in (CAPTIONS, {key: [" ".join(words) for words in value] for key, value in CAPTIONS.items()}):
        (folder / "raw_captions_combined_filtered.json").write_text(json.dumps(shape))
        assert make(folder).part("train").captions == expected.captions


def test_pickles_run_no_code(folder: Path) -> None:
    path = folder / "raw_captions_combined_filtered.pkl"
    path.write_bytes(pickle.dumps(OrderedDict(CAPTIONS)))
    with pytest.raises(UserError, match=r"asks for collections.OrderedDict, expected only dicts"):
        make(folder).setup()
    path.write_bytes(pickle.dumps(CAPTIONS)[:-9])
    with pytest.raises(UserError, match="is damaged"):
        make(folder).setup()
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(UserError, match="holds a list, expected captions by id"):
        make(folder).setup()
    path.write_bytes(pickle.dumps({"x": 3}))
    with pytest.raises(UserError, match=r"x has '3', expected a list of captions"):
        make(folder).setup()


def test_missing_files_say_what_to_get(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none is not a folder; get the QuerYD experts.*relevant-video-links-v2.txt"):
        make(tmp_path / "none").setup()
    (folder / "val_list.txt").unlink()
    with pytest.raises(UserError, match=r"\(val\) needs val_list.txt, not found in .*structured-symlinks"):
        make(folder).setup()
    (folder / "raw_captions_combined_filtered.pkl").unlink()
    with pytest.raises(UserError, match=r"no raw_captions_combined_filtered.pkl or .*json in"):
        make(folder).setup()


def test_videos_by_their_own_or_their_youtube_name(folder: Path) -> None:
    videos = folder.parent / "videos"
    videos.mkdir()
    names = ("aaaaaaaaaaa.webm", "video-bbbbbbbbbbb.mp4")
    for name in names:
        (videos / name).write_bytes(b"x")
    links = [f"https://www.youtube.com/watch?v={letter * 11}" for letter in "ab"]
    (folder / "relevant-video-links-v2.txt").write_text("\n".join(links) + "\n")
    spec = SplitSpec("s", subset="available", captions=dict.fromkeys(("train", "val", "test"), "paragraph"))
    module = make(folder, split=spec, inputs=InputSpec(None, FrameSpec(2, 8)))
    assert [module.part(part).videos[0].path for part in ("test", "val")] == [videos / name for name in names]
    assert module.applied.excluded_counts("train") == {"missing video": 1}
    (finding,) = module.own_findings()
    assert (finding.severity, finding.where, finding.items) == ("note", "train", ("video-ccccccccccc",))


def test_links(tmp_path: Path) -> None:
    path = tmp_path / "links.txt"
    path.write_text("https://www.youtube.com/watch?v=-_AB01cd-_x&t=3\n\n")
    links = read_links(path)
    assert links == {"-_AB01cd-_x": "https://www.youtube.com/watch?v=-_AB01cd-_x&t=3"}
    assert youtube_id("video--_AB01cd-_x-12", links) == "-_AB01cd-_x"
    assert youtube_id("short", links) is None
    path.write_text("<html>\n")
    with pytest.raises(UserError, match=r"found '<html>', expected https://www\.youtube\.com/watch"):
        read_links(path)


@pytest.mark.real
def test_published_links(shared_data: Path) -> None:
    folder = shared_data / "annotations" / "queryd"
    links = read_links(folder / "relevant-video-links-v2.txt")
    lines = (folder / "relevant-video-links-v2.txt").read_text().split()
    assert len(lines) == 2926
    assert set(links.values()) <= set(lines)
    assert {len(name) for name in links} == {11}
    with pytest.raises(UserError, match=r"no raw_captions_combined_filtered.pkl"):
        make(folder).setup()
