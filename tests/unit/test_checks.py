"""task=check_data finds everything in one pass: each kind of trouble is planted and must be found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src.data.annotation import Annotation, CaptionRecord, VideoRecord
from src.data.checks import Finding, find_all
from src.data.splits import Counts, SplitSpec
from src.errors import UserError
from src.tasks import check_data


def annotation(tmp_path: Path) -> Annotation:
    """A clean data set of nine videos with files of their own."""
    ids = [f"v{k}" for k in range(9)]
    for video_id in ids:
        (tmp_path / f"{video_id}.mp4").write_bytes(f"content of {video_id}".encode())
    videos = tuple(VideoRecord(video_id, tmp_path / f"{video_id}.mp4") for video_id in ids)
    captions = tuple(CaptionRecord(video_id, f"about {video_id}") for video_id in ids)
    return Annotation(videos, captions, {"train": tuple(ids[:5]), "val": tuple(ids[5:7]), "test": tuple(ids[7:])})


def exists(video: VideoRecord) -> bool:
    return video.path is not None and video.path.is_file()


def facts(findings: list[Finding]) -> set[tuple[str, str, str, tuple[str, ...]]]:
    return {(finding.severity, finding.kind, finding.where, finding.items) for finding in findings}


def test_clean_data_has_no_findings(tmp_path: Path) -> None:
    spec = SplitSpec("s", expected={"train": Counts(5, 5), "test": Counts(2, 2)})
    assert find_all(spec, annotation(tmp_path), available=exists, unreadable=lambda video: None) == []


def test_everything_is_found_in_one_pass(tmp_path: Path) -> None:
    clean = annotation(tmp_path)
    (tmp_path / "v3.mp4").unlink()
    (tmp_path / "v8.mp4").write_bytes((tmp_path / "v0.mp4").read_bytes())
    (tmp_path / "v2.mp4").write_bytes((tmp_path / "v1.mp4").read_bytes())
    broken = Annotation(
        (*clean.videos, clean.videos[4]),
        (
            *(c for c in clean.captions if c.video_id != "v6"),
            CaptionRecord("v7", "About  V0"),
            CaptionRecord("v0", " "),
            CaptionRecord("ghost", "boo"),
        ),
        clean.splits | {"test": ("v7", "v8", "v1", "nobody", "v7")},
    )
    spec = SplitSpec("s", expected={"val": Counts(2, 2)})
    found = find_all(spec, broken, available=exists, unreadable=lambda v: "truncated" if v.id == "v5" else None)
    assert facts(found) == {
        ("error", "duplicate id", "annotation", ("v4",)),
        ("error", "duplicate id", "test", ("v7",)),
        ("error", "unknown id", "test", ("nobody",)),
        ("error", "caption of unknown video", "annotation", ("ghost",)),
        ("error", "same video in two parts", "train and test", ("v1",)),
        ("error", "unexpected counts", "val", ("found 2 videos and 1 captions, expected 2 videos and 2 captions",)),
        ("error", "missing file", "train", (f"v3 at {tmp_path / 'v3.mp4'}",)),
        ("error", "identical files in two parts", "train and test", ("v0 = v8", "v2 = v1")),
        ("error", "unreadable file", "val", ("v5: truncated",)),
        ("note", "identical files", "train", ("v1 = v2",)),
        ("note", "empty caption", "train", ("v0",)),
        ("note", "video without caption", "val", ("v6",)),
        ("note", "video without caption", "test", ("nobody",)),
        ("note", "same caption in two parts", "train and test", ("about v0", "about v1")),
    }
    assert [finding.severity for finding in found] == sorted(finding.severity for finding in found)


def test_segments_of_one_file_are_not_copies(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    path.write_bytes(b"x")
    videos = (VideoRecord("a", path, 0.0, 5.0), VideoRecord("b", path, 5.0, 9.0))
    both = Annotation(videos, (CaptionRecord("a", "1"), CaptionRecord("b", "2")), {"train": ("a", "b")})
    assert find_all(SplitSpec("s", parts={"train": "train"}), both, available=exists) == []


def test_segments_of_one_file_in_two_parts_are_a_leak(tmp_path: Path) -> None:
    videos = tuple(VideoRecord(f"v#{k}", tmp_path / "v.mp4", float(k), k + 1.0) for k in range(3))
    lists = {"train": ("v#0", "v#1"), "val": (), "test": ("v#2",)}
    found = find_all(SplitSpec("s"), Annotation(videos, tuple(CaptionRecord(v.id, v.id) for v in videos), lists))
    assert [(f.severity, f.kind, f.where, f.items) for f in found] == [
        ("error", "same file in two parts", "train and test", (f"v#1 and v#2 in {tmp_path / 'v.mp4'}",))
    ]


def test_absent_list_and_available_subset(tmp_path: Path) -> None:
    clean = annotation(tmp_path)
    (tmp_path / "v3.mp4").unlink()
    spec = SplitSpec("s", parts={"train": "train", "val": "dev", "test": "test"}, subset="available")
    assert facts(find_all(spec, clean, available=exists)) == {
        ("error", "missing id list", "s", ("val: dev",)),
        ("note", "missing file", "train", (f"v3 at {tmp_path / 'v3.mp4'}",)),
    }


def configuration(root: Path, run_dir: Path, decode: bool) -> object:
    return OmegaConf.create(
        {
            "task": {"name": "check_data", "decode": decode},
            "seed": 0,
            "paths": {"run_dir": str(run_dir), "data_dir": str(root)},
            "experts": {},
            "text": {},
            "model": {},
            "split": {"name": "folder"},
            "dataset": {
                "_target_": "src.data.benchmarks.folder.FolderDataModule",
                "name": "folder",
                "provides": ["frames"],
                "data_dir": str(root),
                "backend": "auto",
                "timeout_s": 10.0,
                "cache": "disk",
                "cache_dir": str(root / "cache"),
            },
        }
    )


def test_the_task_writes_every_item_and_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, run_dir = tmp_path / "data", tmp_path / "run"
    root.mkdir()
    rows = ["video,caption,split", "a.mp4,[red] caption,train", "b.mp4,two,val", "c.mp4,three,test", "c.mp4,,test"]
    (root / "captions.csv").write_text("\n".join(rows))
    for name in "abc":
        (root / f"{name}.mp4").write_bytes(f"not a video {name}".encode())
    check_data.run(configuration(root, run_dir, decode=False))  # type: ignore[arg-type]
    written = json.loads((run_dir / "check_data.json").read_text())
    assert written["findings"] == [{"severity": "note", "kind": "empty caption", "where": "test", "items": ["c.mp4"]}]
    assert "empty caption" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"is not clean: 1 unreadable file \(train\), 1 .*check_data.json") as caught:
        check_data.run(configuration(root, run_dir, decode=True))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    written = json.loads((run_dir / "check_data.json").read_text())
    assert [finding["where"] for finding in written["findings"] if finding["kind"] == "unreadable file"] == [
        "train",
        "val",
        "test",
    ]
