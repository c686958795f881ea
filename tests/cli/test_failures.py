"""Broken data through the real command line: what can go on goes on and is listed, the rest is one error line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from src.config import compose
from src.errors import UserError
from tests.clips import make_audio_only, make_clip, make_truncated

Cli = Callable[..., Any]
Metrics = Callable[[str], dict[str, Any]]

ODD_CAPTIONS = (
    "a square " * 1200,  # far more than any tokeniser's limit
    "👾🟨➡️👩🏽‍🚀",
    "ריבוע צהוב זז ימינה",
    '</script><b>"quoted", with a comma\nand a line break',
)
NUM_FRAMES = 4
SMALL = (
    "dataset=folder",
    "dataset.batch_size=4",
    f"dataset.recipe.num_frames={NUM_FRAMES}",
    "trainer.max_epochs=1",
    "trainer.enable_progress_bar=false",
)
BROKEN = ("truncated", "frameless", "text")


def write_captions(folder: Path, rows: Sequence[tuple[str, ...]], columns: str = "video,caption,split") -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    lines = [columns, *(",".join(map(quoted, row)) for row in rows)]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Good, short and broken clips with ordinary and odd captions, in the train and in the test part."""
    folder = tmp_path / "data" / "folder"
    folder.mkdir(parents=True)
    good = make_clip(folder / "good.mp4", 12, audio=False)
    rows: list[tuple[str, str, str]] = []
    for part in ("train", "test"):
        for i in range(4):
            shutil.copy(good, folder / f"{part}{i}.mp4")
            rows += [(f"{part}{i}.mp4", f"clip {i} of {part}", part), (f"{part}{i}.mp4", ODD_CAPTIONS[i], part)]
        make_clip(folder / f"{part}_short.mp4", NUM_FRAMES - 2, audio=False)
        make_truncated(folder / f"{part}_truncated.mp4", share=0.3)
        make_audio_only(folder / f"{part}_frameless.mp4")
        (folder / f"{part}_text.mp4").write_text("no video at all")
        kinds = ("short", *BROKEN)
        rows += [(f"{part}_{kind}.mp4", f"the {kind} one of {part}", part) for kind in kinds]
        rows += [(f"{part}0.mp4", "", part), (f"{part}_mute.mp4", "  ", part)]
        shutil.copy(good, folder / f"{part}_mute.mp4")
    good.rename(folder / "val.mp4")
    write_captions(folder, [*rows, ("val.mp4", "validation", "val")])
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_goes_on_without_what_is_broken_and_lists_it(
    cli: Cli, metrics: Metrics, mixed: Path, tmp_path: Path, num_workers: int
) -> None:
    words = (*SMALL, f"dataset.data_dir={mixed}", f"dataset.num_workers={num_workers}")
    outcome = cli(*words, tiny=False).succeeded()
    broken = {f"{part}_{kind}.mp4" for part in ("train", "test") for kind in BROKEN}
    listed = [line for line in outcome.out.splitlines() if line.startswith("excluded: ")]
    for video in broken:
        (line,) = [line for line in listed if f" {video} " in line]
        assert line.startswith(f"excluded: unreadable video {video} ({video.split('_')[0]}): "), line
        assert len(line.rpartition(": ")[2]) > 5, f"no reason: {line}"
    for part in ("train", "test"):
        assert f"excluded: empty caption {part}0.mp4 ({part}): caption 2 is empty" in listed
        assert [line for line in listed if line.startswith(f"excluded: video without caption {part}_mute.mp4 ({part})")]

    found = metrics("run")
    of_part = {"unreadable video": 3, "empty caption": 2, "video without caption": 1}
    assert found["excluded"] == {
        "captions_of_unreadable_videos": 3,
        "videos_without_caption": 0,
        "by_part": {"train": of_part, "test": of_part},
    }
    assert len(listed) == 12
    assert (found["protocol"]["num_videos"], found["protocol"]["num_captions"]) == (5, 9)
    page = (tmp_path / "run" / "report" / "index.html").read_text(encoding="utf-8")
    for video in (*broken, "train_mute.mp4", "test_mute.mp4"):
        assert f">{video}</th>" in page
    assert "</script><b>" not in page
    assert all(text in page for text in ODD_CAPTIONS[1:3])
    problems = [json.loads(line) for line in (tmp_path / "run" / "problems.jsonl").read_text().splitlines()]
    assert {problem["video_id"] for problem in problems} == broken
    assert "Warning" not in outcome.err, outcome.err


def test_nothing_readable_is_one_error_line(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.mp4").write_text("no video at all")
    write_captions(folder, [(f"{i}.mp4", f"clip {i}", ("train", "train", "val", "test")[i % 4]) for i in range(12)])
    message = cli(*SMALL, f"dataset.data_dir={folder}", "dataset.num_workers=0", tiny=False).failed_with(2)
    assert "expected" in message
    assert "task=check_data" in message


COLUMNS = "video,caption,split"
REST = (("b.mp4", "y", "val"), ("c.mp4", "z", "test"))
# name -> (rows before the rest, columns, what the error line says)
MISTAKES: dict[str, tuple[list[tuple[str, ...]] | None, str, str]] = {
    "two_parts": (
        [("a.mp4", "x", "train"), ("a.mp4", "y", "test")],
        COLUMNS,
        "1 videos are both in train and in test",
    ),
    "two_names": (
        [("a.mp4", "x", "train"), ("a", "y", "test")],
        COLUMNS,
        "line 3: 'a' and 'a.mp4' above are the same file a.mp4",
    ),
    "two_spellings": (
        [("a.mp4", "x", "train"), ("./a.mp4", "y", "val")],
        COLUMNS,
        "1 videos are both in train and in val",
    ),
    "absent_file": (
        [("a.mp4", "x", "train"), ("gone.mp4", "y", "test")],
        COLUMNS,
        "1 of 4 video files are missing (first: 'gone.mp4'",
    ),
    "unknown_part": (
        [("a.mp4", "x", "training")],
        COLUMNS,
        "line 2: found split 'training', expected one of train, val, test",
    ),
    "other_column": ([("a.mp4", "x", "train")], "video,text,split", "expected also caption; add it"),
    "long_row": ([("a.mp4", "x", "train")], "video,caption", "line 2: found 3 values, expected 2"),
    "no_rows": ([], "video,caption", "has no rows, expected at least one caption"),
    "no_file": (None, "", "no captions.csv or captions.tsv or captions.jsonl"),
}


def test_annotation_mistakes_are_one_error_line_each(cli: Cli, tmp_path: Path) -> None:
    """All in one multirun, whose jobs do not stop each other."""
    clip = make_clip(tmp_path / "a.mp4", 4, audio=False)
    for name, (rows, columns, _) in MISTAKES.items():
        folder = tmp_path / name
        folder.mkdir()
        for other in ("a.mp4", "b.mp4", "c.mp4"):
            shutil.copy(clip, folder / other)
        if rows is not None:
            write_captions(folder, [*rows, *REST] if columns == COLUMNS else rows, columns)
    folders = ",".join(str(tmp_path / name) for name in MISTAKES)
    outcome = cli(
        "-m", *SMALL, f"dataset.data_dir={folders}", "selection=last", f"hydra.sweep.dir={tmp_path}/runs", tiny=False
    )
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    lines = outcome.err.splitlines()
    assert len(lines) == len(MISTAKES), outcome.err
    for line, (name, (_, _, message)) in zip(lines, MISTAKES.items(), strict=True):
        assert line.startswith("error: "), line
        assert message in line, name
        assert "expected" in line, name


def test_absent_data_set_is_explained_before_anything_is_fetched(cli: Cli, tmp_path: Path) -> None:
    """The published recipe starts from weights that have to be downloaded; that must not come first."""
    message = cli(
        "dataset=msrvtt", "selection=test", f"paths.data_dir={tmp_path}", tiny=False, env={"HF_HUB_OFFLINE": "1"}
    ).failed_with(2)
    assert "expected layout: DATA/msrvtt/annotations/" in message
    assert "DATA/msrvtt/videos/video0.mp4" in message


@pytest.mark.parametrize("words", [("dataset=msrvtt",), ("dataset=folder", "~split.parts.val")])
def test_selection_on_a_part_that_the_split_lacks_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"has no val part .*selection=test"):
        compose.preflight(compose.parse(list(words)))
