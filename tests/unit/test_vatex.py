"""dataset=vatex on files of the published layouts; the id lists are the published ones where they are at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.batch import FrameSpec, InputSpec
from src.data.benchmarks.vatex import VatexDataModule
from src.data.splits import SplitSpec
from src.errors import UserError

SPLITS = Path(__file__).resolve().parents[2] / "conf" / "split"
LISTS = {"train": ["t_000000_000010"], "val": ["v_000001_000011"], "test": ["b_000001_000011", "a_000001_000011"]}


def entry(video_id: str, **more: str) -> dict[str, Any]:
    captions = {"enCap": [f"{video_id} {n}." for n in range(10)], "chCap": [f"一{n}" for n in range(10)]}
    return {"videoID": video_id} | captions | more


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "annotations"
    root.mkdir()
    write(root, LISTS)
    return root


def write(root: Path, lists: dict[str, list[str]]) -> None:
    for name, ids in lists.items():
        (root / f"{name}_list.txt").write_text("\n".join(ids))
    halves = {"training": lists["train"], "validation": sorted({i for n in lists if n != "train" for i in lists[n]})}
    for name, ids in halves.items():
        (root / f"vatex_{name}_v1.0.json").write_text(json.dumps([entry(video_id) for video_id in ids]))


def make(folder: Path, name: str = "vatex", *, frames: FrameSpec | None = None, **options: Any) -> VatexDataModule:
    values = yaml.safe_load((SPLITS / f"{name}.yaml").read_text()) | options.pop("split", {})
    return VatexDataModule(
        name="vatex",
        split=SplitSpec(**values),
        inputs=InputSpec(None, frames),
        annotations_dir=str(folder),
        videos_dir=str(folder.parent / "videos"),
        **options,
    )


ANY = {"expected": {}}


def test_videos_in_list_order_with_ten_captions(folder: Path) -> None:
    test = make(folder, split=ANY).part("test")
    assert [video.id for video in test.videos] == LISTS["test"]
    assert test.captions[0].text == "b_000001_000011 0."
    assert test.captions_per_video() == [10, 10]


def test_chinese(folder: Path) -> None:
    assert make(folder, split=ANY, language="zh").part("val").captions[3].text == "一3"
    (folder / "vatex_training_v1.0.json").write_text(json.dumps([{"videoID": "t_000000_000010", "enCap": ["a"]}]))
    with pytest.raises(
        UserError, match=r"t_000000_000010 has no 'chCap', expected the captions of dataset.language=zh"
    ):
        make(folder, split=ANY, language="zh").setup()


def test_file_by_id_of_clip2video(folder: Path) -> None:
    expected = make(folder, split=ANY).part("test")
    everything = [*json.loads((folder / "vatex_training_v1.0.json").read_text())]
    everything += json.loads((folder / "vatex_validation_v1.0.json").read_text())
    (folder / "vatex_data.json").write_text(json.dumps({e["videoID"]: {"enCap": e["enCap"]} for e in everything}))
    for name in ("training", "validation"):
        (folder / f"vatex_{name}_v1.0.json").unlink()
    assert make(folder, split=ANY).part("test") == expected


def test_path_of_an_entry_is_used_where_it_exists(folder: Path) -> None:
    (folder / "vatex_validation_v1.0.json").unlink()
    elsewhere = folder.parent / "elsewhere" / "clip.mp4"
    elsewhere.parent.mkdir()
    elsewhere.touch()
    entries = [
        entry("b_000001_000011", path=str(elsewhere)),
        entry("a_000001_000011", path="/mnt/of/somebody/else.mp4"),
        entry("v_000001_000011"),
    ]
    (folder / "vatex_validation_v1.0_ceph.json").write_text(json.dumps(entries))
    videos = folder.parent / "videos"
    (videos / "deep").mkdir(parents=True)
    (videos / "deep" / "a_000001_000011.webm").touch()
    module = make(folder, split=ANY | {"subset": "available"}, frames=FrameSpec(2, 8))
    assert [video.path for video in module.part("test").videos] == [elsewhere, videos / "deep" / "a_000001_000011.webm"]
    assert module.applied.excluded_counts("val") == {"missing video": 1}


def test_what_is_missing_is_said(folder: Path) -> None:
    with pytest.raises(UserError, match=r"needs test1k5_sec_list.txt, not found in .*; get vatex_training_v1.0.json"):
        make(folder, "vatex_1k5").setup()
    (folder / "vatex_validation_v1.0.json").unlink()
    with pytest.raises(UserError, match=r"split 'vatex_hgr' \(val\) needs vatex_validation_v1.0.json or "):
        make(folder, split=ANY).setup()


@pytest.mark.parametrize("content", ["[1]", '[{"enCap": []}]', '{"a": 1}'])
def test_malformed_captions(folder: Path, content: str) -> None:
    (folder / "vatex_training_v1.0.json").write_text(content)
    with pytest.raises(UserError, match=r"expected videoID, enCap and chCap|holds a dict, expected a list"):
        make(folder, split=ANY).setup()


def test_a_file_of_one_language_says_where_the_other_is(folder: Path) -> None:
    (folder / "vatex_training_v1.0.json").write_text('[{"videoID": "v", "enCap": ["a cat"]}]')
    with pytest.raises(UserError, match=r"no 'chCap', .*; use vatex_training_v1.0.json and vatex_val.* both lang"):
        make(folder, split=ANY, language="zh").setup()


@pytest.mark.real
@pytest.mark.parametrize(("name", "language"), [("vatex", "en"), ("vatex_1k5", "zh")])
def test_published_lists(name: str, language: str, shared_data: Path, tmp_path: Path) -> None:
    """The real id lists, with ten made-up captions each: the caption files could not be had."""
    published = shared_data / "annotations" / "vatex"
    names = ("train", "val", "test", "test1k5_sec")
    write(tmp_path, {part: (published / f"{part}_list.txt").read_text().split() for part in names})
    module = make(tmp_path, name, language=language)
    found = {part: (len(module.part(part).videos), len(module.part(part).captions)) for part in module.split.parts}
    numbers = {"train": (25_991, 259_910), "val": (1500, 15_000), "test": (1500, 15_000)}
    assert found == {part: numbers[part] for part in module.split.parts}
    assert set(module.split.expected) == set(found)  # the yaml guards every part
    assert len(json.loads((tmp_path / "vatex_validation_v1.0.json").read_text())) == 3000
