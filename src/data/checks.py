"""Everything that can be wrong with a data set and its split, found in one pass instead of error by error."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from src.data.annotation import Annotation, VideoRecord
from src.data.features.store import file_sha256
from src.data.held_out import may_share
from src.data.splits import Counts, SplitSpec, captions_of, overlaps

Severity = Literal["error", "note"]


@dataclass(frozen=True)
class Finding:
    """One kind of trouble in one place.

    Attributes:
        severity: an error spoils results or stops a run; a note is worth knowing.
        kind: what is wrong, for example "missing file".
        where: part, or pair of parts.
        items: every video id, path or caption concerned.
    """

    severity: Severity
    kind: str
    where: str
    items: tuple[str, ...]


def find_all(
    spec: SplitSpec,
    annotation: Annotation,
    *,
    available: Callable[[VideoRecord], bool] | None = None,
    unreadable: Callable[[VideoRecord], str | None] | None = None,
) -> list[Finding]:
    """Check ids, parts, counts, captions and files.

    Args:
        spec: the split.
        annotation: what the reader returned, unchecked.
        available: whether a video's file is at hand; None = files are not checked.
        unreadable: decodes a video and returns the reason why it fails, or None; None = files are not decoded.

    Returns:
        Findings, errors first; empty when all is well.
    """
    lists = {part: annotation.splits[name] for part, name in spec.parts.items() if name in annotation.splits}
    records = {video.id: video for video in annotation.videos}
    used = [records[video_id] for ids in lists.values() for video_id in dict.fromkeys(ids) if video_id in records]
    findings = [*_ids(spec, annotation, lists, records), *_captions(spec, annotation, lists)]
    if available is not None:
        severity: Severity = "note" if spec.subset == "available" else "error"
        present = [video for video in used if available(video)]
        missing = {video.id for video in used} - {video.id for video in present}
        for part, ids in lists.items():
            items = [f"{i} at {records[i].path}" for i in ids if i in missing]
            findings += _some(severity, "missing file", part, items)
        findings += _contents(spec, lists, records)
        if unreadable is not None:
            reasons = {video.id: unreadable(video) for video in dict.fromkeys(present)}
            for part, ids in lists.items():
                findings += _some(
                    "error", "unreadable file", part, [f"{i}: {reasons[i]}" for i in ids if reasons.get(i)]
                )
    return sorted(findings, key=lambda finding: finding.severity)


def _some(severity: Severity, kind: str, where: str, items: Iterable[str]) -> list[Finding]:
    listed = tuple(items)
    return [Finding(severity, kind, where, listed)] if listed else []


def _ids(
    spec: SplitSpec, annotation: Annotation, lists: Mapping[str, Sequence[str]], records: Mapping[str, VideoRecord]
) -> list[Finding]:
    """Missing lists, repeated ids, unknown ids, shared ids and files, captions of unknown videos."""
    absent = [f"{part}: {name}" for part, name in spec.parts.items() if part not in lists]
    findings = _some("error", "missing id list", spec.name, absent)
    findings += _some("error", "duplicate id", "annotation", _repeated(video.id for video in annotation.videos))
    strangers = dict.fromkeys(caption.video_id for caption in annotation.captions if caption.video_id not in records)
    findings += _some("error", "caption of unknown video", "annotation", strangers)
    for part, ids in lists.items():
        findings += _some("error", "duplicate id", part, _repeated(ids))
        findings += _some("error", "unknown id", part, [video_id for video_id in ids if video_id not in records])
    for (first, second), shared in overlaps(lists).items():
        declared = may_share(spec.caption_holdout, first, second)
        kind = "same video in two parts" + ", by other captions" * declared
        findings += _some("note" if declared else "error", kind, f"{first} and {second}", shared)
    return findings + _files(spec, lists, records)


def _files(spec: SplitSpec, lists: Mapping[str, Sequence[str]], records: Mapping[str, VideoRecord]) -> list[Finding]:
    """Segments of one file in two parts: other ids and other sentences, but the same film."""
    by_part: dict[str, dict[str, str]] = {}
    for part, ids in lists.items():
        known = (records[video_id] for video_id in ids if video_id in records)
        by_part[part] = {str(video.path): video.id for video in known if video.path is not None}
    findings: list[Finding] = []
    for (first, second), shared in overlaps(by_part).items():
        if may_share(spec.caption_holdout, first, second):
            continue
        one, other = by_part[first], by_part[second]
        items = [f"{one[path]} and {other[path]} in {path}" for path in shared if one[path] != other[path]]
        findings += _some("error", "same file in two parts", f"{first} and {second}", items)
    return findings


def _captions(spec: SplitSpec, annotation: Annotation, lists: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Counts, empty captions, videos without captions, captions repeated within and across parts."""
    findings: list[Finding] = []
    texts: dict[str, set[str]] = {}
    for part, ids in lists.items():
        by_video = captions_of(spec, annotation, part, ids)
        captions = [caption for of_video in by_video.values() for caption in of_video]
        expected = spec.expected.get(part)
        found = Counts(len(ids), len(captions))
        if expected is not None and not expected.agrees_with(found):
            findings += _some("error", "unexpected counts", part, [f"found {found}, expected {expected}"])
        empty = [caption.video_id for caption in captions if not caption.text.strip()]
        described = {caption.video_id for caption in captions if caption.text.strip()}
        findings += _some("note", "empty caption", part, empty)
        if spec.captions.get(part) != "none" and part not in spec.caption_holdout:
            findings += _some("note", "video without caption", part, [i for i in ids if i not in described])
        of_video: dict[str, set[str]] = defaultdict(set)
        for caption in captions:
            of_video[_normal(caption.text)].add(caption.video_id)
        texts[part] = set(of_video) - {""}
        shared = [text for text, videos in of_video.items() if text and len(videos) > 1]
        findings += _some("note", "caption of several videos", part, shared)
    for first, second in combinations(texts, 2):
        findings += _some(
            "note", "same caption in two parts", f"{first} and {second}", sorted(texts[first] & texts[second])
        )
    return findings


def _contents(spec: SplitSpec, lists: Mapping[str, Sequence[str]], records: Mapping[str, VideoRecord]) -> list[Finding]:
    """Files with identical bytes under different ids: a leak across parts, a curiosity within one."""
    by_content: dict[tuple[object, ...], list[tuple[str, str]]] = defaultdict(list)
    for part, ids in lists.items():
        for video_id in dict.fromkeys(ids):
            record = records.get(video_id)
            if record is not None and record.path is not None and record.path.is_file():
                # Segments of one file are different videos.
                by_content[record.path.stat().st_size, record.start_s, record.end_s].append((part, video_id))
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for candidates in by_content.values():
        for same in _same_bytes(candidates, records):
            for (first, one), (second, other) in combinations(same, 2):
                if one != other:
                    found[first, second].append(f"{one} = {other}")
    return [
        finding
        for (first, second), pairs in found.items()
        for finding in (
            _some("note", "identical files", first if first == second else f"{first} and {second}", pairs)
            if first == second or may_share(spec.caption_holdout, first, second)
            else _some("error", "identical files in two parts", f"{first} and {second}", pairs)
        )
    ]


def _same_bytes(
    candidates: Sequence[tuple[str, str]], records: Mapping[str, VideoRecord]
) -> list[list[tuple[str, str]]]:
    """Groups of two and more candidates with the same SHA-256; only files of equal size come here."""
    if len(candidates) < 2:
        return []
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for part, video_id in candidates:
        path = records[video_id].path
        if path is not None:
            groups[file_sha256(path)].append((part, video_id))
    return [group for group in groups.values() if len(group) > 1]


def _repeated(ids: Iterable[str]) -> list[str]:
    return [video_id for video_id, count in Counter(ids).items() if count > 1]


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()
