"""The text files of Dual Encoding's VisualSearch folders: captions, topics and judgements.

One folder holds a data set (`<root>/<c>/TextData/<c>train.caption.txt`, …val…, …test…), or each part has its own
(`<root>/<subset>/TextData/<subset>.caption.txt`). Source: formats of danieljf24/hybrid_space@b934eff.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from src.data.annotation import CaptionRecord, Judgement, TopicRecord
from src.errors import UserError

EXTENSIONS = (".jpg", ".mp4")
RELEVANCE = ("-1", "0", "1")


@dataclass(frozen=True)
class CaptionLine:
    """One line of a caption file; `id` is `<video>#<n>` or `<video>#enc#<n>`."""

    id: str
    video_id: str
    text: str

    def record(self) -> CaptionRecord:
        return CaptionRecord(self.video_id, self.text)


def caption_file(root: Path, collection: str, part: str) -> Path | None:
    """The caption file of a part, in the one-folder or in the multi-folder layout, or beside the folders."""
    name = f"{collection}{part}"
    candidates = (
        root / collection / "TextData" / f"{name}.caption.txt",
        root / name / "TextData" / f"{name}.caption.txt",
        root / f"{name}.caption.txt",
    )
    return next((path for path in candidates if path.is_file()), None)


def read_captions(path: Path) -> list[CaptionLine]:
    """Lines `<caption id> <sentence>`, split at the first blank; a line without sentence is an empty caption.

    The video is what stands before the first `#`, without .jpg or .mp4.

    Raises:
        UserError: the file is not UTF-8.
    """
    lines = []
    for _, line in _lines(path):
        caption_id, _, text = line.partition(" ")
        lines.append(CaptionLine(caption_id, video_of_caption(caption_id), text.strip()))
    return lines


def video_of_caption(caption_id: str) -> str:
    """Video id of a caption id."""
    video_id = caption_id.partition("#")[0]
    suffix = next((extension for extension in EXTENSIONS if video_id.endswith(extension)), "")
    return video_id.removesuffix(suffix)


def read_topics(path: Path) -> tuple[TopicRecord, ...]:
    """Lines `<topic> <sentence>`.

    Raises:
        UserError: a topic has no sentence or occurs twice.
    """
    topics: dict[str, TopicRecord] = {}
    for number, line in _lines(path):
        topic, _, text = line.partition(" ")
        if not text.strip() or topic in topics:
            what = "occurs twice" if topic in topics else "has no sentence"
            raise UserError(f"{path}, line {number}: topic {topic!r} {what}, expected lines '<topic> <sentence>'")
        topics[topic] = TopicRecord(topic, text.strip())
    return tuple(topics.values())


def read_judgements(path: Path, topics: tuple[TopicRecord, ...]) -> tuple[Judgement, ...]:
    """Lines `<topic> 0 <shot> <stratum> <relevance>` of a TRECVID qrels file.

    TRECVID writes topic 561 as 1561 there; topics keep the name that the query file gives them.

    Raises:
        UserError: a line is of another format.
    """
    known = {topic.id for topic in topics}
    found = []
    for number, line in _lines(path):
        fields = line.split()
        if len(fields) != 5 or fields[4] not in RELEVANCE or not fields[3].isdigit():
            raise UserError(
                f"{path}, line {number}: found {line[:60]!r}, expected '<topic> 0 <shot> <stratum> <-1, 0 or 1>'"
            )
        topic = fields[0]
        if topic not in known and topic.startswith("1") and topic[1:] in known:
            topic = topic[1:]
        found.append(Judgement(topic, fields[2], int(fields[3]), int(fields[4])))
    return tuple(found)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines without the blanks around them; empty lines are left out."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
