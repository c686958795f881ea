"""A split: which videos train, select and test, and how the result is to be read."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal, get_args

from src.data.annotation import Annotation, CaptionRecord, VideoRecord, number_captions
from src.data.held_out import check_trained, deal_out, may_share
from src.errors import UserError

Part = Literal["train", "val", "test"]
CaptionPolicy = Literal["all", "first", "file", "paragraph", "none"]
PARTS: tuple[str, ...] = get_args(Part)


@dataclass(frozen=True)
class Counts:
    """Expected numbers of one part; a mismatch is an error that prints both.

    Attributes:
        videos: ids in the list.
        captions: captions under the part's policy; None = any number.
    """

    videos: int
    captions: int | None

    def __str__(self) -> str:
        return (
            f"{self.videos} videos" if self.captions is None else f"{self.videos} videos and {self.captions} captions"
        )

    def agrees_with(self, found: Counts) -> bool:
        """Whether what was found is what was expected."""
        return self.videos == found.videos and self.captions in (None, found.captions)


@dataclass(frozen=True)
class SplitSpec:
    """One row of `conf/split`.

    Attributes:
        name: printed beside every metric.
        parts: part -> name of the id list in `Annotation.splits`. A part may be absent (MSR-VTT 1k-A has no val).
        captions: part -> which captions are queries: "all" of the video, "first", "file" (those the split file
            itself pairs with the videos, as the 1k-A csv does), "paragraph" (all of the video's sentences joined to
            one text, those of the list's own file when it has some), or "none" (a gallery that topics search).
        expected: part -> counts, checked when given, before `val_holdout` and `subset` are applied; those of a part
            that the split does without are ignored.
        subset: "full" wants every video; "available" drops those that are missing and counts them.
        val_holdout: number of train videos that become the val part, for splits that publish none;
            chosen by the hash of the video id, so that every run and machine holds out the same.
        caption_holdout: val or test -> number of sentences of each of its videos that are queries there and not
            trained on, while the other captions of the same videos are; such parts may name the list of train. At
            least one sentence of a video trains; videos without a held-out one stay in the gallery.
    """

    name: str
    parts: dict[str, str] = field(default_factory=lambda: {"train": "train", "val": "val", "test": "test"})
    captions: dict[str, CaptionPolicy] = field(default_factory=dict)
    expected: dict[str, Counts] = field(default_factory=dict)
    subset: Literal["full", "available"] = "full"
    val_holdout: int = 0
    caption_holdout: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Yaml gives plain mappings for the counts.
        expected = {
            part: counts if isinstance(counts, Counts) else Counts(**counts) for part, counts in self.expected.items()
        }
        object.__setattr__(self, "expected", expected)
        for key, given in (("parts", self.parts), ("captions", self.captions), ("expected", expected)):
            unknown = sorted(set(given) - set(PARTS))
            if unknown:
                raise UserError(f"split.{key}: found part {unknown[0]!r}, expected one of {', '.join(PARTS)}")
        if self.val_holdout and "val" in self.parts:
            raise UserError(
                f"split.val_holdout={self.val_holdout} but split {self.name!r} has a val part; set split.val_holdout=0"
            )
        if self.val_holdout < 0:
            raise UserError(f"split.val_holdout={self.val_holdout}, expected 0 or a number of train videos")
        for part, count in self.caption_holdout.items():
            policy = self.captions.get(part, "all")
            if part not in self.parts or part == "train" or count < 1 or policy != "all":
                raise UserError(
                    f"split.caption_holdout.{part}={count} with split.captions.{part}={policy}, "
                    "expected val or test, a part of the split, a positive number of captions and the policy all"
                )


@dataclass(frozen=True)
class SplitPart:
    """The videos and captions of one part; a caption's `video_index` points into `videos`.

    Captions stand in the order of the videos, those of one video side by side in the order of their file.
    """

    name: str
    videos: Sequence[VideoRecord]
    captions: Sequence[CaptionRecord]
    video_index: Sequence[int]

    def captions_per_video(self) -> list[int]:
        """Number of captions of each video, in the order of `videos`."""
        counts = Counter(self.video_index)
        return [counts[index] for index in range(len(self.videos))]


@dataclass(frozen=True)
class Exclusion:
    """Something that the split names but that is not used, and why.

    Attributes:
        part: the part it would have been in.
        kind: "missing video", "empty caption" or "video without caption".
        video_id: the video concerned.
        path: its file.
        detail: what exactly, for the list that reports print.
    """

    part: str
    kind: Literal["missing video", "empty caption", "video without caption"]
    video_id: str
    path: str
    detail: str


@dataclass(frozen=True)
class AppliedSplit:
    """A split spec applied to an annotation: the parts, and what was left out of them."""

    spec: SplitSpec
    parts: dict[str, SplitPart]
    excluded: tuple[Exclusion, ...] = ()

    def part(self, name: str) -> SplitPart:
        """Return one part.

        Raises:
            UserError: the split has no such part, or nothing of it can be used.
        """
        if name not in self.parts:
            advice = (
                "choose selection=test or selection=last, or hold out train videos with split.val_holdout=500"
                if name == "val"
                else "choose another split"
            )
            raise UserError(
                f"split {self.spec.name!r} has no {name} part (found {', '.join(self.parts) or 'none'}); {advice}"
            )
        part = self.parts[name]
        if not part.videos:
            reasons = ", ".join(f"{count} x {kind}" for kind, count in self.excluded_counts(name).items())
            raise UserError(
                f"split {self.spec.name!r}: no video of the {name} part is usable ({reasons or 'its list is empty'}), "
                "expected at least one; add the files or choose another split"
            )
        return part

    def excluded_counts(self, part: str) -> dict[str, int]:
        """Exclusion kind -> count of one part."""
        return dict(Counter(item.kind for item in self.excluded if item.part == part))


def apply_split(
    spec: SplitSpec,
    annotation: Annotation,
    *,
    available: Callable[[VideoRecord], bool] | None = None,
    features: Sequence[str] = (),
) -> AppliedSplit:
    """Cut an annotation into the parts of a split and check everything that can be checked without decoding.

    Args:
        spec: the split.
        annotation: what a reader returned.
        available: tells whether a video's file is at hand; None when no file is needed.
        features: names of the features that are read in place of files, for messages; then `available` tells
            whether a video has any of them.

    Returns:
        Parts whose captions stand side by side per video, and the list of what was excluded.

    Raises:
        UserError: a list or video is unknown, an id is repeated or in two parts, the counts differ from
            the expected ones, or files are missing while `subset` is "full".
    """
    lists = {part: _ids_of(spec, annotation, part) for part in PARTS if part in spec.parts}
    check_disjoint(lists, spec.name, spec.caption_holdout)
    check_trained(lists, spec.name, spec.caption_holdout)
    by_part = {part: captions_of(spec, annotation, part, ids) for part, ids in lists.items()}
    for part, counts in spec.expected.items():
        if part in by_part:
            _check_counts(spec, part, counts, by_part[part])
    if spec.val_holdout:
        _hold_out(spec, by_part)
    records = {video.id: video for video in annotation.videos}
    parts, excluded = {}, []
    for part in (name for name in PARTS if name in by_part):
        silent = spec.captions.get(part, "all") == "none" or part in spec.caption_holdout
        parts[part], left_out = _build_part(part, by_part[part], records, available, silent)
        excluded += _explained(left_out, features)
    missing = [item for item in excluded if item.kind == "missing video"]
    if missing and spec.subset == "full":
        raise UserError(_missing_text(spec, missing, sum(map(len, by_part.values())), features))
    return AppliedSplit(spec, parts, tuple(excluded))


def _explained(excluded: Iterable[Exclusion], features: Sequence[str]) -> list[Exclusion]:
    """The same, with features instead of a file as what a video lacks, where these are read."""
    lacks = f"it has none of the features {', '.join(features)}"
    return [replace(x, detail=lacks) if features and x.kind == "missing video" else x for x in excluded]


def _missing_text(spec: SplitSpec, missing: Sequence[Exclusion], total: int, features: Sequence[str]) -> str:
    first = missing[0]
    if features:
        return (
            f"split {spec.name!r}: {len(missing)} of {total} videos have none of the features {', '.join(features)} "
            f"(first: {first.video_id!r}), expected at least one; "
            "extract them, or use the other videos with split.subset=available"
        )
    return (
        f"split {spec.name!r}: {len(missing)} of {total} video files are missing "
        f"(first: {first.video_id!r} at {first.path}), expected all of them; "
        "add the files, or use what is there with split.subset=available"
    )


def check_disjoint(
    lists: Mapping[str, Iterable[str]], name: str, caption_holdout: Mapping[str, int] | None = None
) -> None:
    """Raise UserError when two parts share video ids and do not declare it (`SplitSpec.caption_holdout`)."""
    shared = {pair: ids for pair, ids in overlaps(lists).items() if not may_share(caption_holdout or {}, *pair)}
    if shared:
        (first, second), ids = next(iter(shared.items()))
        raise UserError(
            f"split {name!r}: {len(ids)} videos are both in {first} and in {second} (first: {ids[0]!r}), "
            "expected disjoint parts; remove them from one of the lists, or hold out captions of the same videos by "
            "split=held_out_captions"
        )


def overlaps(lists: Mapping[str, Iterable[str]]) -> dict[tuple[str, str], list[str]]:
    """Pairs of parts that share ids -> the shared ids, in the order of the second part."""
    sets = {part: set(ids) for part, ids in lists.items()}
    return {
        (first, second): shared
        for first, second in combinations(sets, 2)
        if (shared := [video_id for video_id in lists[second] if video_id in sets[first]])
    }


def by_hash(ids: Iterable[str]) -> list[str]:
    """Sort ids by their SHA-256: an order that looks random, and is the same on every machine."""
    return sorted(ids, key=lambda video_id: hashlib.sha256(video_id.encode()).hexdigest())


def _ids_of(spec: SplitSpec, annotation: Annotation, part: str) -> Sequence[str]:
    """Ids of one part, each known and named once."""
    list_name = spec.parts[part]
    if list_name not in annotation.splits:
        found = ", ".join(annotation.splits) or "none"
        raise UserError(
            f"split {spec.name!r}: {part} uses the list {list_name!r}, expected one that the data set has ({found}); "
            f"name it with split.parts.{part}=LIST, or do without this part: ~split.parts.{part}"
        )
    ids = annotation.splits[list_name]
    repeated = [video_id for video_id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(
            f"split {spec.name!r}: {part} names {len(repeated)} videos more than once (first: {repeated[0]!r}), "
            "expected unique ids; remove the duplicates"
        )
    known = {video.id for video in annotation.videos}
    unknown = [video_id for video_id in ids if video_id not in known]
    if unknown:
        raise UserError(
            f"split {spec.name!r}: {part} names {len(unknown)} videos that the annotation does not know "
            f"(first: {unknown[0]!r}); add them to the annotation or choose another split"
        )
    return ids


def captions_of(
    spec: SplitSpec, annotation: Annotation, part: str, ids: Iterable[str]
) -> dict[str, list[CaptionRecord]]:
    """Video id -> its captions under the part's caption policy, videos in list order.

    Raises:
        UserError: the policy is unknown, or the list has no captions of its own.
    """
    policy = spec.captions.get(part, "all")
    if policy not in get_args(CaptionPolicy):
        raise UserError(f"split.captions.{part}={policy}, expected one of {', '.join(get_args(CaptionPolicy))}")
    captions: dict[str, list[CaptionRecord]] = {video_id: [] for video_id in ids}
    if policy == "none":
        return captions
    for caption in _source(spec, annotation, part, policy):
        if caption.video_id in captions:
            captions[caption.video_id].append(caption)
    if policy == "first":
        return {video_id: of_video[:1] for video_id, of_video in captions.items()}
    if policy == "paragraph":
        return {video_id: _joined(video_id, of_video) for video_id, of_video in captions.items()}
    holders = {name: annotation.splits.get(spec.parts[name], ()) for name in spec.caption_holdout}
    return deal_out(captions, part, spec.caption_holdout, holders) if holders else captions


def _source(spec: SplitSpec, annotation: Annotation, part: str, policy: CaptionPolicy) -> Iterable[CaptionRecord]:
    """All captions that a part may draw from."""
    list_name = spec.parts[part]
    if policy == "paragraph" and list_name in annotation.paired:
        return number_captions(annotation.paired[list_name])
    numbered = number_captions(annotation.captions)
    if policy != "file":
        return numbered
    if list_name not in annotation.paired:
        raise UserError(
            f"split {spec.name!r}: captions.{part}=file, but the list {list_name!r} comes without captions; "
            f"set split.captions.{part}=all"
        )
    # A sentence of the list's file has the features of the same sentence in the annotation, where there is one.
    keys = {(caption.video_id, caption.text): caption.keys for caption in reversed(numbered)}
    return [
        caption if caption.keys else replace(caption, keys=keys.get((caption.video_id, caption.text), ()))
        for caption in annotation.paired[list_name]
    ]


def _joined(video_id: str, captions: list[CaptionRecord]) -> list[CaptionRecord]:
    """One paragraph of all sentences, with one blank between them."""
    if not captions:
        return []
    text = " ".join(caption.text for caption in captions)
    return [CaptionRecord(video_id, text, tuple(key for caption in captions for key in caption.keys))]


def _check_counts(spec: SplitSpec, part: str, expected: Counts, captions: Mapping[str, list[CaptionRecord]]) -> None:
    found = Counts(len(captions), sum(map(len, captions.values())))
    if not expected.agrees_with(found):
        raise UserError(
            f"split {spec.name!r}: {part} has {found}, expected {expected}; use the published annotation files, "
            f"or set split.expected.{part} to your own numbers"
        )


def _hold_out(spec: SplitSpec, by_part: dict[str, dict[str, list[CaptionRecord]]]) -> None:
    """Move `val_holdout` videos from train to val, in place."""
    train = by_part.get("train", {})
    if spec.val_holdout >= len(train):
        raise UserError(
            f"split.val_holdout={spec.val_holdout}, but split {spec.name!r} has {len(train)} train videos; "
            "hold out fewer"
        )
    chosen = set(by_hash(train)[: spec.val_holdout])
    by_part["val"] = {video_id: captions for video_id, captions in train.items() if video_id in chosen}
    by_part["train"] = {video_id: captions for video_id, captions in train.items() if video_id not in chosen}


def _build_part(
    part: str,
    captions: Mapping[str, list[CaptionRecord]],
    records: Mapping[str, VideoRecord],
    available: Callable[[VideoRecord], bool] | None,
    silent: bool,
) -> tuple[SplitPart, list[Exclusion]]:
    """Leave out missing videos, empty captions and, unless `silent`, videos without any caption; list each of them."""
    videos: list[VideoRecord] = []
    kept: list[CaptionRecord] = []
    video_index: list[int] = []
    excluded: list[Exclusion] = []
    for video_id, of_video in captions.items():
        record = records[video_id]
        path = str(record.path)
        if available is not None and not available(record):
            excluded.append(Exclusion(part, "missing video", video_id, path, "file not found"))
            continue
        # A caption without a word cannot be a query, and would match every video equally in training.
        usable = [caption for caption in of_video if caption.text.strip()]
        for position, caption in enumerate(of_video):
            if not caption.text.strip():
                excluded.append(Exclusion(part, "empty caption", video_id, path, f"caption {position} is empty"))
        if not usable and not silent:
            excluded.append(Exclusion(part, "video without caption", video_id, path, "it has no caption with a word"))
            continue
        video_index += [len(videos)] * len(usable)
        videos.append(record)
        kept += usable
    return SplitPart(part, tuple(videos), tuple(kept), tuple(video_index)), excluded
