"""OCR files of the Kwai layout, and the word list with positions that TextVR makes of one.

A file is one JSON object: track id -> `text` (one or several words), `score`, and `tracks`: frame number -> four
corners x1 y1 … x4 y4 in pixels, and further numbers that nobody reads. Files of `extractor=ocr` also note the shape
of the video in each track (`src.data.ocr_files`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from src.errors import UserError

OcrRule = Literal["fixed", "upstream"]
POSITION_SIZE = 12
_LAST_UPSTREAM_CHAR = 123  # "{": upstream keeps it and drops the ASCII signs behind it
_TINY = 1e-6
_LARGEST = 1e9  # of a frame number or a coordinate


@dataclass(frozen=True)
class OcrTrack:
    """A text that was read on several frames.

    Attributes:
        text: what was read.
        score: how sure the reader was.
        frames: frame numbers, in the order of the file.
        quads_N42: corners (x, y) in pixels on each of these frames, float64.
    """

    text: str
    score: float
    frames: tuple[int, ...]
    quads_N42: np.ndarray


@dataclass(frozen=True)
class OcrWords:
    """The words of one video, best score first.

    Attributes:
        words: W words.
        scores: their scores.
        positions_W12: float32; see `position`.
    """

    words: tuple[str, ...]
    scores: tuple[float, ...]
    positions_W12: np.ndarray

    def padded(self, length: int) -> OcrWords:
        """Fill up to `length` with the word " ", score 0 and position 0, as TextVR feeds its text encoder."""
        lacking = max(0, length - len(self.words))
        return OcrWords(
            self.words + (" ",) * lacking,
            self.scores + (0.0,) * lacking,
            np.concatenate([self.positions_W12, np.zeros((lacking, POSITION_SIZE), np.float32)]),
        )


def load_kwai(path: Path) -> Any:
    """The JSON document of a file.

    Raises:
        UserError: the file is missing, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"no OCR file {path}; write it with task=extract extractor=ocr, or get the published one"
        ) from error
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or a number or nesting without end
        raise UserError(f"{path} is damaged ({error}); expected a JSON object of tracks, fetch it again") from error


def parse_kwai(document: object, source: str = "OCR document") -> tuple[OcrTrack, ...]:
    """The tracks of a parsed document.

    Args:
        document: what the JSON holds.
        source: its name, for messages.

    Raises:
        UserError: the layout is another.
    """
    if not isinstance(document, dict):
        raise UserError(f"{source} holds a {type(document).__name__}, expected an object of tracks")
    return tuple(_track(name, value, source) for name, value in document.items())


def _track(name: str, value: Any, source: str) -> OcrTrack:
    try:
        boxes: Mapping[str, Sequence[float]] = value["tracks"]
        quads = [np.asarray(box[:8], dtype=np.float64).reshape(4, 2) for box in boxes.values()]
        quads_N42 = np.stack(quads) if quads else np.zeros((0, 4, 2))
        score = float(value["score"])
        if not (np.isfinite(quads_N42).all() and np.isfinite(score)):
            raise ValueError("a number is not finite")
        frames = tuple(int(frame) for frame in boxes)
        largest = max(abs(quads_N42).max(initial=0), *map(abs, frames), abs(score))
        if largest > _LARGEST:
            raise ValueError(f"found {largest:g}, which is no pixel, frame or score")
        if not isinstance(value["text"], str | int | float):
            raise TypeError(f"text is {value['text']!r}")
        return OcrTrack(str(value["text"]), score, frames, quads_N42)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{source}, track {name!r}: {type(error).__name__} {error}; expected text, score and tracks "
            "{frame: [x1, y1, x2, y2, x3, y3, x4, y4, …]}"
        ) from error


def ocr_format(
    tracks: Iterable[OcrTrack],
    *,
    max_words: int = 200,
    min_length: int = 3,
    lower: bool = True,
    rule: OcrRule = "fixed",
    position_rule: OcrRule | None = None,
) -> OcrWords:
    """Words of all tracks, cleaned, each once, best score first, cut to `max_words`.

    Args:
        tracks: in the order of the file; words of equal score keep it.
        max_words: length limit.
        min_length: shorter words are left out.
        lower: lower-case the words.
        rule: `upstream` = as released: a word is a repetition only when its own case equals a kept, lower-cased word
            ("stop" and then STOP both stay, as "stop"), the first one of the file stays, | } ~ drop a word, and the
            length counts tabs and line breaks around it. `fixed` = case does not matter, the best-scoring one stays,
            and all of ASCII may stand in a word.
        position_rule: `upstream` = frames are taken in file order, and the displacement is taken within the last box.
            `fixed` = frames are taken in time order, and the displacement is that from the first to the last. None =
            as `rule`.

    Returns:
        The words without padding. Words with letters outside ASCII are left out under both rules.

    Source: callsys/TextVR@ae16786, dataset `ocr_format`.
    """
    kept = _distinct(_words(tracks, rule, min_length), lower, rule)
    kept = sorted(kept, key=_worst_last)[:max_words]
    rows = [position(track, position_rule or rule) for _, track in kept]
    positions_W12 = np.stack(rows) if rows else np.zeros((0, POSITION_SIZE), np.float32)
    return OcrWords(tuple(word for word, _ in kept), tuple(track.score for _, track in kept), positions_W12)


def _worst_last(item: tuple[str, OcrTrack]) -> float:
    return -item[1].score


def _distinct(words: Iterable[tuple[str, OcrTrack]], lower: bool, rule: OcrRule) -> list[tuple[str, OcrTrack]]:
    """The words as they are written out, without repetitions."""
    kept: list[tuple[str, OcrTrack]] = []
    seen: set[str] = set()
    for word, track in words if rule == "upstream" else sorted(words, key=_worst_last):
        written = word.lower() if lower else word
        # Upstream looks for the word in its own case among those kept, which are lower-case.
        if (word if rule == "upstream" else word.lower()) not in seen:
            seen.add(written if rule == "upstream" else word.lower())
            kept.append((written, track))
    return kept


def _words(tracks: Iterable[OcrTrack], rule: OcrRule, min_length: int) -> Iterator[tuple[str, OcrTrack]]:
    """Stripped words that pass the filters, with their track."""
    last = _LAST_UPSTREAM_CHAR if rule == "upstream" else 127
    for track in tracks:
        # A track that was seen on no frame has no position.
        for word in track.text.split(" ") if track.frames else ():
            stripped = word.strip()
            long_enough = len(word if rule == "upstream" else stripped) >= min_length
            if stripped and long_enough and all(ord(char) <= last for char in word):
                yield stripped, track


def position(track: OcrTrack, rule: OcrRule = "fixed") -> np.ndarray:
    """Where and when a track was seen; all of its words share it.

    Returns:
        float32 (12,): first frame, last frame, number of frames, mean x, mean y, width and height of the box averaged
        over time, displacement in x and y, growth of width and height from first to last box, score. Frames and
        pixels of the video that the OCR read.

    Source: callsys/TextVR@ae16786. Deviates: rule=fixed, see `ocr_format`; the published weights were trained on
        `upstream`, where the displacement is half the size of the last box.
    """
    frames, quads_N42 = track.frames, track.quads_N42
    if rule == "fixed":
        order = np.argsort(frames, kind="stable")
        frames, quads_N42 = tuple(frames[i] for i in order), quads_N42[order]
    mean_42 = quads_N42.mean(axis=0)
    first_42, last_42 = quads_N42[0], quads_N42[-1]
    origin_2 = last_42[0] if rule == "upstream" else first_42.mean(axis=0)
    return np.concatenate(
        [
            [frames[0], frames[-1], len(frames)],
            mean_42.mean(axis=0),
            np.ptp(mean_42, axis=0),
            last_42.mean(axis=0) - origin_2,
            np.ptp(last_42, axis=0) / (np.ptp(first_42, axis=0) + _TINY),
            [track.score],
        ]
    ).astype(np.float32)


def normalise_positions(positions_W12: np.ndarray, width: float, height: float, num_frames: int) -> np.ndarray:
    """Divide frame numbers by the length and pixels by the size of the video.

    Args:
        positions_W12: see `position`.
        width: of the decoded frames, pixels.
        height: likewise.
        num_frames: of the decoded video.

    Returns:
        A new float32 (W, 12). Values exceed 1 where the OCR read a larger copy of the video than the one decoded.

    Source: callsys/TextVR@ae16786, `_norm_pos`. Deviates: upstream overwrites its table, so that positions shrink
        again in every epoch without workers.
    """
    length, x, y = float(num_frames), float(width), float(height)
    scale_12 = np.array([length, length, length, x, y, x, y, x, y, 1.0, 1.0, 1.0])
    return (positions_W12 / scale_12).astype(np.float32)
