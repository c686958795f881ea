"""Annotation records: what every benchmark reader returns, before any split is applied.

Plain, hashable and free of tensors, so that they can be compared, printed and cached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from src.errors import UserError


@dataclass(frozen=True)
class VideoRecord:
    """One retrieval item.

    Attributes:
        id: the data set's own name for it, unique in the annotation.
        path: the file that is decoded; None when only features exist.
        start_s, end_s: the segment of the file in seconds; None = from the beginning / to the end.
        group: videos that are hard negatives of each other share a group (minimal pairs of the toy set).
        tags: facts for reports and per-part metrics, for example ("skill", "motion").
        same_as: id under which its features are stored, when another item shows the same clip; None = its own.
        ocr: its OCR file inside the folder of these, where the data set names one; None = `<key>.json`.
    """

    id: str
    path: Path | None = None
    start_s: float | None = None
    end_s: float | None = None
    group: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    same_as: str | None = None
    ocr: str | None = None

    @property
    def key(self) -> str:
        """Under which feature stores know it."""
        return self.same_as or self.id


@dataclass(frozen=True)
class CaptionRecord:
    """One caption and the id of the video it describes.

    Attributes:
        video_id: id of the video.
        text: the caption.
        keys: under which precomputed text features are stored: `<video id>#<number>`, one for each sentence that the
            caption consists of (a paragraph has several). Left empty by most readers: `number_captions` fills it in.
    """

    video_id: str
    text: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class TopicRecord:
    """One query of an ad-hoc search: it belongs to no video; judgements say which shots answer it."""

    id: str
    text: str


@dataclass(frozen=True)
class Judgement:
    """One line of a TRECVID qrels file.

    Attributes:
        topic: topic id.
        shot: video id.
        stratum: sampling stratum of the pool.
        relevance: 1 relevant, 0 not, -1 pooled but not judged.
    """

    topic: str
    shot: str
    stratum: int
    relevance: int


@dataclass(frozen=True)
class Annotation:
    """All videos and captions that a reader found, with the splits the files themselves define.

    Attributes:
        videos: in the order of the published file.
        captions: in the order of the published file.
        splits: name of an id list ("train", "test_1ka", …) -> video ids, for data sets whose files say so.
        paired: name of an id list -> the captions that the list's own file gives (MSR-VTT 1k-A's csv);
            a split asks for them with the caption policy "file".
        topics: edition ("tv16", …) of an ad-hoc search -> its queries.
        qrels: edition -> judgements.
    """

    videos: Sequence[VideoRecord]
    captions: Sequence[CaptionRecord]
    splits: Mapping[str, Sequence[str]] = field(default_factory=dict)
    paired: dict[str, tuple[CaptionRecord, ...]] = field(default_factory=dict)
    topics: dict[str, tuple[TopicRecord, ...]] = field(default_factory=dict)
    qrels: dict[str, tuple[Judgement, ...]] = field(default_factory=dict)

    def check(self, source: str) -> None:
        """Raise UserError for duplicate video ids or captions of unknown videos; `source` names the file."""
        counts = Counter(video.id for video in self.videos)
        repeated = [video_id for video_id, count in counts.items() if count > 1]
        if repeated:
            raise UserError(
                f"{source}: {len(repeated)} video ids occur more than once (first: {repeated[0]!r}, "
                f"{counts[repeated[0]]} times), expected unique ids; remove or rename the duplicates"
            )
        unknown = sorted({c.video_id for c in self.captions} - set(counts))
        if unknown:
            raise UserError(
                f"{source}: captions name {len(unknown)} videos that are not in the annotation "
                f"(first: {unknown[0]!r}); add the videos or remove these captions"
            )


def number_captions(captions: Iterable[CaptionRecord]) -> tuple[CaptionRecord, ...]:
    """Give every caption without keys the key `<video id>#<position among the captions of its video>`."""
    seen: Counter[str] = Counter()
    numbered = []
    for caption in captions:
        key = f"{caption.video_id}#{seen[caption.video_id]}"
        seen[caption.video_id] += 1
        numbered.append(caption if caption.keys else replace(caption, keys=(key,)))
    return tuple(numbered)
