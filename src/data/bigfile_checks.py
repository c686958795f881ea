"""What can be wrong with a folder of Dual Encoding's features (BigFile), found without reading the features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from src.data.caption_files import CaptionLine, read_captions
from src.data.checks import Finding, Severity
from src.data.features.bigfile import FEATURES, FRAMES, ROW_IDS, SHAPE, parse_frames
from src.errors import UserError

FILES = (FEATURES, SHAPE, ROW_IDS, FRAMES)
ENCODING = "iso-8859-1"
FLOAT32_BYTES = 4


def find_in_captions(path: Path, lines: Sequence[CaptionLine] | None = None) -> list[Finding]:
    """Check the ids of a caption file.

    Args:
        path: the file.
        lines: its content, when it has been read already.
    """
    lines = read_captions(path) if lines is None else lines
    repeated = [name for name, count in Counter(line.id for line in lines).items() if count > 1]
    findings = _some("error", "duplicate caption id", path.name, repeated)
    return findings + _some("error", "caption id without #", path.name, [i.id for i in lines if "#" not in i.id])


def find_in_collection(collection: Path, video_ids: Iterable[str], feature: str | None = None) -> list[Finding]:
    """Check the feature folders of a collection.

    Args:
        collection: folder that holds FeatureData.
        video_ids: videos whose features are wanted.
        feature: name of the one folder to check; None = all of them.
    """
    root = collection / "FeatureData"
    folders = [root / feature] if feature else sorted(p for p in root.glob("*") if p.is_dir())
    if not folders:
        return [Finding("error", "missing file", collection.name, (f"{root}/<feature>/{FILES[0]}",))]
    videos = list(dict.fromkeys(video_ids))
    return [finding for folder in folders for finding in find_in_features(folder, videos, collection.name)]


def find_in_features(folder: Path, video_ids: Sequence[str], collection: str) -> list[Finding]:
    """Check one feature folder: files, sizes, repeated ids, frames that are listed but not there, videos without any.

    Args:
        folder: holds feature.bin, shape.txt, id.txt and video2frames.txt.
        video_ids: videos whose features are wanted.
        collection: name of its collection, for the report.
    """
    where = f"{collection}/{folder.name}"
    missing = [str(folder / name) for name in FILES if not (folder / name).is_file()]
    findings = _some("error", "missing file", where, missing)
    ids: list[str] | None = None
    if (folder / ROW_IDS).is_file():
        ids = (folder / ROW_IDS).read_text(encoding=ENCODING).split()
        repeated = [name for name, count in Counter(ids).items() if count > 1]
        findings += _some("error", "duplicate frame id", where, repeated)
    findings += _some("error", "row count and file size differ", where, _sizes(folder, ids))
    if (folder / FRAMES).is_file():
        try:
            frames = parse_frames((folder / FRAMES).read_text(encoding=ENCODING), folder / FRAMES)
        except UserError as error:
            return [*findings, Finding("error", "unreadable file", where, (str(error),))]
        findings += _frames(frames, ids, where)
        findings += _videos(frames, video_ids, where)
    return findings


def _sizes(folder: Path, ids: Sequence[str] | None) -> list[str]:
    """Contradictions between shape.txt, id.txt and the size of feature.bin."""
    if not (folder / SHAPE).is_file():
        return []
    fields = (folder / SHAPE).read_text(encoding=ENCODING).split()
    if len(fields) != 2 or not all(field.isdigit() and int(field) for field in fields):
        return [f"shape.txt holds {' '.join(fields)[:40]!r}, expected '<rows> <dims>'"]
    rows, dims = map(int, fields)
    problems = []
    if ids is not None and len(ids) != rows:
        problems.append(f"id.txt has {len(ids)} ids, shape.txt says {rows} rows")
    features = folder / FEATURES
    if features.is_file() and features.stat().st_size != rows * dims * FLOAT32_BYTES:
        problems.append(
            f"feature.bin has {features.stat().st_size} bytes, {rows} rows of {dims} float32 are "
            f"{rows * dims * FLOAT32_BYTES}"
        )
    return problems


def _frames(frames: dict[str, list[str]], ids: Sequence[str] | None, where: str) -> list[Finding]:
    """Frames without row, rows without frame, frames listed twice or under another video."""
    listed = [frame for of_video in frames.values() for frame in of_video]
    repeated = [frame for frame, count in Counter(listed).items() if count > 1]
    findings = _some("error", "frame listed twice", where, repeated)
    foreign = [f"{f} in {video}" for video, of_video in frames.items() for f in of_video if not _belongs(f, video)]
    findings += _some("error", "frame of another video", where, foreign)
    findings += _some("error", "video without frames", where, [video for video in frames if not frames[video]])
    if ids is not None:
        stored, wanted = set(ids), set(listed)
        findings += _some("error", "missing frame", where, [f for f in dict.fromkeys(listed) if f not in stored])
        findings += _some("note", "frame of no video", where, [i for i in dict.fromkeys(ids) if i not in wanted])
    return findings


def _belongs(frame: str, video: str) -> bool:
    """Frame ids are <video>_<number>."""
    name, _, number = frame.rpartition("_")
    return name == video and number.isdigit()


def _videos(frames: dict[str, list[str]], video_ids: Sequence[str], where: str) -> list[Finding]:
    """Videos of the captions against those of the features."""
    wanted = set(video_ids)
    findings = _some("error", "video without features", where, [i for i in video_ids if i not in frames])
    return findings + _some(
        "note", "features of a video without captions", where, [i for i in frames if i not in wanted]
    )


def _some(severity: Severity, kind: str, where: str, items: Iterable[str]) -> list[Finding]:
    listed = tuple(items)
    return [Finding(severity, kind, where, listed)] if listed else []
