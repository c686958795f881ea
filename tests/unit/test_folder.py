"""dataset=folder: caption files as people write them, and the messages when they are wrong."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from src.batch import FrameSpec, InputSpec
from src.data.benchmarks.folder import FolderDataModule, by_ratios
from src.data.splits import SplitSpec
from src.errors import UserError


def tokenize(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    return torch.ones(len(captions), 2, dtype=torch.int64), torch.ones(len(captions), 2, dtype=torch.bool)


def make(root: Path, text: str | None = None, name: str = "captions.csv", **options: Any) -> FolderDataModule:
    if text is not None:
        (root / name).write_text(text, encoding="utf-8")
    inputs = options.pop("inputs", InputSpec(tokenize))
    return FolderDataModule(
        name="folder", split=options.pop("split", SplitSpec("folder")), inputs=inputs, data_dir=str(root), **options
    )


def ids(module: FolderDataModule, part: str) -> list[str]:
    return [video.id for video in module.part(part).videos]


def test_split_column_quotes_and_line_breaks(tmp_path: Path) -> None:
    text = (
        "\ufeffvideo,caption,split,source\n"
        'a.mp4,"one, with a comma",train,human\n'
        'a.mp4,"two\nlines",train,human\n'
        "sub/b.mp4,three 🎬,val,machine\n"
        "c.mp4,أربعة,test,machine\n"
    )
    module = make(tmp_path, text, tag_columns=("source",))
    assert (ids(module, "train"), ids(module, "val"), ids(module, "test")) == (["a.mp4"], ["sub/b.mp4"], ["c.mp4"])
    assert [caption.text for caption in module.part("train").captions] == ["one, with a comma", "two\nlines"]
    assert module.part("test").captions[0].text == "أربعة"
    assert module.part("val").videos[0].tags == (("source", "machine"),)
    assert module.part("val").videos[0].path == tmp_path / "sub" / "b.mp4"
    assert module.describe("train")["captions_per_video"] == 2


def test_jsonl_with_lists_of_captions_and_numbers_as_names(tmp_path: Path) -> None:
    rows = [
        {"clip": 1, "text": ["x", "y"], "split": "train"},
        {"clip": "2", "text": "一只狗", "split": "val"},
        {"clip": "3", "text": "z" * 10_000, "split": "test"},
    ]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    module = make(tmp_path, text, "captions.jsonl", video_column="clip", caption_column="text")
    assert ids(module, "train") == ["1"]
    assert [caption.text for caption in module.part("train").captions] == ["x", "y"]
    assert module.part("val").captions[0].text == "一只狗"
    assert len(module.part("test").captions[0].text) == 10_000


def test_names_without_extension_are_found_among_known_ones(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for name in ("a.webm", "v/b.avi", "c.txt", "d", "a.b.mkv"):
        (tmp_path / name).write_bytes(b"x")
    text = "video,caption,split\na,1,train\nv/b,2,train\nd,3,val\na.b,4,test\n"
    module = make(tmp_path, text, inputs=InputSpec(tokenize, FrameSpec(2, 8)))
    paths = [video.path for part in ("train", "val", "test") for video in module.part(part).videos]
    assert paths == [tmp_path / "a.webm", tmp_path / "v" / "b.avi", tmp_path / "d", tmp_path / "a.b.mkv"]


def test_missing_video_names_the_expected_path(tmp_path: Path) -> None:
    text = "video,caption,split\na.mp4,1,train\nb.mp4,2,val\nc.mp4,3,test\n"
    (tmp_path / "a.mp4").write_bytes(b"x")
    frames = InputSpec(tokenize, FrameSpec(2, 8))
    with pytest.raises(UserError, match=r"2 of 3 video files are missing \(first: 'b.mp4' at .*b.mp4\)"):
        make(tmp_path, text, inputs=frames).setup()
    module = make(tmp_path, inputs=frames, split=SplitSpec("folder", subset="available"))
    assert ids(module, "train") == ["a.mp4"]
    assert module.describe("train")["excluded"] == {}
    assert module.applied.excluded_counts("test") == {"missing video": 1}


def test_a_video_whose_rows_name_two_parts_is_an_overlap(tmp_path: Path) -> None:
    text = "video,caption,split\na.mp4,1,train\na.mp4,2,test\nb.mp4,3,val\n"
    with pytest.raises(UserError, match=r"1 videos are both in train and in test \(first: 'a.mp4'\)"):
        make(tmp_path, text).setup()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,text\na,b\n", r"line 2: found columns video, text; expected also caption; .*dataset.caption_column="),
        ("file,caption\na,b\n", r"expected also video; add it, or name yours with dataset.video_column=COLUMN"),
        ("video,caption,split\na,b,dev\n", r"line 2: found split 'dev', expected one of train, val, test"),
        ("video,caption\na,b,c\n", r"line 2: found 3 values, expected 2 \(video, caption\); put quotes"),
        ("video,caption\n,b\n", r"line 2: the video column is empty"),
        ("video,caption\n/etc/a,b\n", r"line 2: found '/etc/a', expected a path inside"),
        ("video,caption\n../a,b\n", r"line 2: found '../a', expected a path inside"),
        ("video,caption\n", r"has no rows"),
        ("", r"has no rows"),
        ("video,caption\na,b\nc,d\n", r"found 2 videos for 3 parts; add videos or set dataset.ratios="),
    ],
)
def test_wrong_csv(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path, text).setup()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"video": "a"', r"line 1: no JSON .*expected one object per line"),
        ("[1]", r"line 1: found list, expected a JSON object"),
        ('{"video": "a", "caption": 3}', r"line 1: caption is 3, expected text"),
        ('{"video": "a", "caption": "b"}\n{"video": "a"}', r"line 2: found columns video; expected also caption"),
    ],
)
def test_wrong_jsonl(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path, text, "captions.jsonl").setup()


def test_missing_folder_and_file_say_the_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not a folder; expected a folder with the videos and captions.csv"):
        make(tmp_path / "nowhere").setup()
    with pytest.raises(
        UserError, match=r"no captions.csv or captions.tsv or captions.jsonl in .*dataset.captions_file="
    ):
        make(tmp_path).setup()
    with pytest.raises(UserError, match=r"no my.csv in"):
        make(tmp_path, captions_file="my.csv").setup()


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_bytes("video,caption\na,caf\xe9\n".encode("latin1"))
    with pytest.raises(UserError, match="is not UTF-8"):
        make(tmp_path).setup()


def test_ratios_depend_on_names_only_and_leave_no_part_empty() -> None:
    names = [f"clip{k}.mp4" for k in range(100)]
    parts = by_ratios(names, (0.8, 0.1, 0.1))
    assert {part: len(members) for part, members in parts.items()} == {"train": 80, "val": 10, "test": 10}
    assert sorted(sum(parts.values(), ())) == sorted(names)
    reverse = by_ratios(names[::-1], (0.8, 0.1, 0.1))
    assert {part: set(members) for part, members in reverse.items()} == {p: set(m) for p, m in parts.items()}
    assert {part: len(m) for part, m in by_ratios(names[:4], (0.98, 0.01, 0.01)).items()} == {
        "train": 2,
        "val": 1,
        "test": 1,
    }
    assert by_ratios(names, (0, 0, 1)) == {"test": tuple(names)}
    for wrong in ((0.5, 0.5, 0.5), (1.2, -0.1, -0.1), (0.5, 0.5)):
        with pytest.raises(UserError, match="expected three shares"):
            by_ratios(names, wrong)


@pytest.mark.real
def test_real_clips_with_a_split_column(tmp_path: Path, shared_data: Path) -> None:
    clips = shared_data / "clips"
    with (clips / "captions.csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    names = list(dict.fromkeys(row["video"] for row in rows))
    part_of = {name: ("train", "train", "train", "val", "test")[k % 5] for k, name in enumerate(names)}
    with (tmp_path / "captions.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, [*rows[0], "split"])
        writer.writeheader()
        writer.writerows({**row, "split": part_of[row["video"]]} for row in rows)
    for folder in {Path(name).parts[0] for name in names}:
        (tmp_path / folder).symlink_to(clips / folder)
    module = make(
        tmp_path,
        inputs=InputSpec(tokenize, FrameSpec(num_frames=4, image_size=32)),
        batch_size=6,
        unique_videos_in_batch=True,
        tag_columns=("source",),
    )
    facts = [module.describe(part) for part in ("train", "val", "test")]
    assert sum(fact["num_videos"] for fact in facts) == len(names) == 102
    assert sum(fact["num_captions"] for fact in facts) == len(rows) == 408
    assert all(fact["excluded"] == {} for fact in facts)
    videos, captions = module.test_dataloader()
    seen = torch.cat([batch.ids for batch in videos])
    assert sorted(seen.tolist()) == list(range(facts[2]["num_videos"]))
    assert module.problems == []
    assert sum(len(batch) for batch in captions) == facts[2]["num_captions"]
    batch = next(iter(module.train_dataloader()))
    assert batch.video.frames_BTCHW is not None
    assert batch.video.frames_BTCHW.shape == (6, 4, 3, 32, 32)
    assert batch.video.frames_BTCHW.float().std() > 10
    assert len(set(batch.video.ids.tolist())) == 6
