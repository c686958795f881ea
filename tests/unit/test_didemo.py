"""dataset=didemo on files of both published layouts, and on the published files where they are at hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.batch import FrameSpec, InputSpec
from src.data.benchmarks.didemo import DidemoDataModule, video_id_of
from src.data.checks import find_all
from src.data.splits import SplitSpec
from src.errors import UserError

SPLIT = Path(__file__).resolve().parents[2] / "conf" / "split" / "didemo.yaml"
LISTS = {"train": ["3@N00_1_a.mov", "4@N00_2_b."], "val": ["5@N00_3_c.avi"], "test": ["1@N00_4_d.3gp", "2@N00_5_e.mp4"]}
DESCRIPTIONS = {
    "train": [("4@N00_2_b.", "first."), ("3@N00_1_a.mov", "second"), ("4@N00_2_b.", "then third")],
    "val": [("5@N00_3_c.avi", "line\nbreak")],
    "test": [("2@N00_5_e.mp4", "one"), ("not_listed.mp4", "x"), ("1@N00_4_d.3gp", "two"), ("2@N00_5_e.mp4", "three")],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "annotations"
    root.mkdir()
    for part, names in LISTS.items():
        (root / f"{part}_list.txt").write_text("\n".join(names))
        rows = [{"video": name, "description": text, "times": [[0, 1]]} for name, text in DESCRIPTIONS[part]]
        (root / f"{part}_data.json").write_text(json.dumps(rows))
    return root


def as_table(folder: Path, part: str) -> None:
    """Replace the annotation of a part by the csv with one paragraph per video."""
    texts: dict[str, list[str]] = {}
    for name, text in DESCRIPTIONS[part]:
        texts.setdefault(name, []).append(text)
    (folder / f"{part}_data.json").unlink()
    with (folder / f"didemo_{part}_label.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["success", "video_path", "starts", "ends", "text", "formatted_data"])
        for name, of_video in texts.items():
            writer.writerow([True, f"/some/folder/{name}", "tensor([[0]])", "tensor([[31]])", " ".join(of_video), "x"])


def make(folder: Path, *, frames: FrameSpec | None = None, **split: Any) -> DidemoDataModule:
    return DidemoDataModule(
        name="didemo",
        split=SplitSpec(**yaml.safe_load(SPLIT.read_text()) | {"expected": {}} | split),
        inputs=InputSpec(None, frames),
        annotations_dir=str(folder),
        videos_dir=str(folder.parent / "videos"),
    )


def test_paragraphs_in_the_order_of_the_annotation(folder: Path) -> None:
    module = make(folder)
    test = module.part("test")
    assert [(video.id, video.start_s, video.end_s) for video in test.videos] == [
        ("2@N00_5_e", 0.0, 31.0),
        ("1@N00_4_d", 0.0, 31.0),
    ]
    assert [caption.text for caption in test.captions] == ["one three", "two"]
    assert test.captions[0].keys == ("2@N00_5_e#0", "2@N00_5_e#1")
    assert module.part("val").captions[0].text == "line\nbreak"


def test_csv_of_paragraphs_gives_the_same_texts(folder: Path) -> None:
    expected = {part: [c.text for c in make(folder).part(part).captions] for part in LISTS}
    for part in LISTS:
        as_table(folder, part)
        assert [c.text for c in make(folder).part(part).captions] == expected[part]
    assert [video.id for video in make(folder).part("train").videos] == ["4@N00_2_b", "3@N00_1_a"]


def test_listed_videos_without_description_are_counted(folder: Path) -> None:
    as_table(folder, "train")
    with (folder / "train_list.txt").open("a") as handle:
        handle.write("\n9@N00_9_z.wmv\n")
    module = make(folder)
    assert len(module.part("train").videos) == 2
    assert module.applied.excluded_counts("train") == {"video without caption": 1}


def test_a_copy_with_another_extension_counts_only_where_the_listed_one_is_silent(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [("1@N00_4_d.mov", "other"), ("2@N00_5_e.avi", "a"), ("1@N00_4_d.3gp", "own"), ("1@N00_4_d.mov", "more")]
    (folder / "test_data.json").write_text(json.dumps([{"video": v, "description": text} for v, text in rows]))
    with caplog.at_level("INFO"):
        test = make(folder).part("test")
    assert [(c.video_id, c.text) for c in test.captions] == [("2@N00_5_e", "a"), ("1@N00_4_d", "own")]
    assert "test_list.txt; 2 descriptions of copies with another extension are left out" in caplog.text


def test_any_file_of_that_name_is_taken(folder: Path) -> None:
    videos = folder.parent / "videos"
    for name in ("test/1@N00_4_d.3gp", "2@N00_5_e.divx", "2@N00_5_e.mp4", "b/4@N00_2_b."):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).touch()
    module = make(folder, frames=FrameSpec(2, 8), subset="available")
    assert [video.path for video in module.part("test").videos] == [
        videos / "2@N00_5_e.mp4",
        videos / "test" / "1@N00_4_d.3gp",
    ]
    assert [video.path for video in module.part("train").videos] == [videos / "b" / "4@N00_2_b."]
    missing = [item.path for item in module.applied.excluded]
    assert missing == [str(videos / "3@N00_1_a.mov"), str(videos / "5@N00_3_c.avi")]  # as published


@pytest.mark.parametrize("name", ["1@N00_4_d", "1@N00_4_d.", "1@N00_4_d.mov.mp4", "/a.b/c/1@N00_4_d.mov"])
def test_ids_end_at_the_first_dot(name: str) -> None:
    assert video_id_of(name) == "1@N00_4_d"


def test_what_is_wrong_is_said(folder: Path) -> None:
    (folder / "val_data.json").write_text('[{"video": "5@N00_3_c.avi"}]')
    with pytest.raises(UserError, match=r"val_data.json: entry 0 is .*expected video and description"):
        make(folder).setup()
    (folder / "val_data.json").unlink()
    with pytest.raises(
        UserError, match=r"\(val\) needs val_data.json or didemo_val_label.csv, not found .*; get train_"
    ):
        make(folder).setup()
    (folder / "didemo_val_label.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"didemo_val_label.csv: entry 0 is .*expected video_path and text"):
        make(folder).setup()


@pytest.mark.real
def test_published_files(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = yaml.safe_load(SPLIT.read_text())["expected"]
    with caplog.at_level("INFO"):
        module = make(shared_data / "annotations" / "didemo", expected=expected)
        module.setup()
    assert "didemo_train_label.csv describes 8362 of the 8392 videos of train_list.txt" in caplog.text
    found = {part: len(module.annotation.splits[part]) for part in module.split.parts}
    assert found == {"train": 8392, "val": 1065, "test": 1004}
    captions = {part: len(module.part(part).captions) for part in module.split.parts}
    assert captions == {"train": 8362, "val": 1065, "test": 1004}
    assert module.applied.excluded_counts("train") == {"video without caption": 30}
    assert set(expected) == set(found)  # the yaml guards every part
    assert not [f for f in find_all(module.split, module.annotation) if f.severity == "error"]


@pytest.mark.real
@pytest.mark.parametrize("part", ["val", "test"])
def test_both_published_annotations_agree(part: str, shared_data: Path, tmp_path: Path) -> None:
    published = shared_data / "annotations" / "didemo"
    for name in (f"{part}_list.txt", f"didemo_{part}_label.csv"):
        (tmp_path / name).write_bytes((published / name).read_bytes())
    one = {"parts": {part: part}, "captions": {part: "paragraph"}}
    table, entries = make(tmp_path, **one).part(part), make(published, **one).part(part)
    paragraphs = {caption.video_id: caption.text for caption in entries.captions}
    assert all(paragraphs[caption.video_id] == caption.text for caption in table.captions)
    assert len(paragraphs) - len(table.captions) == {"val": 3, "test": 0}[part]
