"""Text seen in single frames, linked over time to tracks, in the layout of the TextVR OCR files.

One file per video: a dict id -> {text, score, recommend_box, tracks: {frame index: [x1, y1, …, x4, y4, score, 0]}},
coordinates in pixels of the video file, clockwise from the top left corner, frame indices as texts in rising order.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import UserError

POSITION_DIM = 12


@dataclass(frozen=True)
class Word:
    """One word of a reading: its text and the corners (4, 2) of its box, or of the whole line's where unknown."""

    text: str
    quad_42: np.ndarray


@dataclass(frozen=True)
class Reading:
    """One line of text in one frame.

    Attributes:
        frame: position of the frame in the file.
        quad_42: corners (4, 2), pixels of the file, clockwise from the top left.
        text: what was read; may hold several words.
        score: confidence of the reader, 0 to 1.
        words: its words with their own boxes.
    """

    frame: int
    quad_42: np.ndarray
    text: str
    score: float
    words: tuple[Word, ...] = ()


@dataclass
class Track:
    """The readings of one text over time, in the order of their frames."""

    readings: list[Reading] = field(default_factory=list)

    @property
    def best(self) -> Reading:
        """The reading with the highest score, the earliest among equals."""
        return max(self.readings, key=lambda reading: reading.score)

    def position(self) -> np.ndarray:
        """float32 (12,): first frame, last frame, number of frames, mean x and y of all corners, width and height of
        the box averaged over time, displacement of its centre from the first to the last box in x and y, growth of
        width and height from the first to the last box, score.

        Frames count in frames of the file, lengths in its pixels; a model divides them by the video's length and size.

        Source: TextVR, ocr_format.
        Deviates: the released code takes the displacement inside of the last box, a mistake. The file in the TextVR
        layout holds all that is needed to repeat it.
        """
        quads_n42 = np.stack([reading.quad_42 for reading in self.readings]).astype(np.float64)
        width, height = np.ptp(quads_n42.mean(axis=0), axis=0)
        (first_w, first_h), (last_w, last_h) = np.ptp(quads_n42[0], axis=0), np.ptp(quads_n42[-1], axis=0)
        span = (self.readings[0].frame, self.readings[-1].frame, len(self.readings))
        growth = (last_w / (first_w + 1e-6), last_h / (first_h + 1e-6))
        moved = quads_n42[-1].mean(axis=0) - quads_n42[0].mean(axis=0)
        row = [*span, *quads_n42.mean(axis=(0, 1)), width, height, *moved, *growth, self.best.score]
        return np.asarray(row, dtype=np.float32)


def box_iou(first_42: np.ndarray, second_42: np.ndarray) -> float:
    """Overlap of the upright boxes around two quads, 0 to 1.

    Deviates: of the upright boxes, not of the quads: text in videos is hardly rotated, and a reading turned by a
    degree or two must not lose its track.
    """
    low = np.maximum(first_42.min(axis=0), second_42.min(axis=0))
    high = np.minimum(first_42.max(axis=0), second_42.max(axis=0))
    common = float(np.prod(np.clip(high - low, 0, None)))
    union = float(np.prod(np.ptp(first_42, axis=0)) + np.prod(np.ptp(second_42, axis=0))) - common
    return common / union if union > 0 else 0.0


def text_similarity(first: str, second: str) -> float:
    """Share of common characters in order, 0 to 1; case and spaces, which readers miss first, do not count."""
    one, other = ("".join(text.lower().split()) for text in (first, second))
    return SequenceMatcher(None, one, other, autojunk=False).ratio() if one and other else float(one == other)


def link(
    frames: Sequence[Sequence[Reading]], min_iou: float = 0.5, min_similarity: float = 0.6, max_gap: int = 1
) -> list[Track]:
    """Join the readings of following frames that show the same text at the same place.

    Pairs of an open track and a new reading are taken from the most similar to the least; a reading goes to one track
    and a track takes one reading per frame. Tracks are in the order of their first readings.

    Args:
        frames: the readings of every looked-at frame, in the order of time.
        min_iou: least overlap with the track's last box.
        min_similarity: least `text_similarity` with the track's last text.
        max_gap: a track stays open over so many looked-at frames without it.
    """
    tracks: list[Track] = []
    last_seen: list[int] = []
    for step, readings in enumerate(frames):
        alive = [i for i, seen in enumerate(last_seen) if step - seen <= max_gap + 1]
        pairs = []
        for i in alive:
            last = tracks[i].readings[-1]
            for j, reading in enumerate(readings):
                overlap = box_iou(last.quad_42, reading.quad_42)
                likeness = text_similarity(last.text, reading.text) if overlap >= min_iou else 0.0
                if overlap >= min_iou and likeness >= min_similarity:
                    pairs.append((-overlap * likeness, i, j))
        taken: dict[int, int] = {}
        for _, i, j in sorted(pairs):
            if i not in taken.values() and j not in taken:
                taken[j] = i
        for j, reading in enumerate(readings):
            if j in taken:
                tracks[taken[j]].readings.append(reading)
                last_seen[taken[j]] = step
            else:
                tracks.append(Track([reading]))
                last_seen.append(step)
    return tracks


def kwai(tracks: Sequence[Track]) -> dict[str, dict[str, Any]]:
    """The tracks as a TextVR OCR file holds them; text and score are those of the best-scored reading."""
    return {
        str(number): {
            "text": track.best.text,
            "score": round(track.best.score, 5),
            "recommend_box": _flat(track.best.quad_42),
            "tracks": {str(r.frame): [*_flat(r.quad_42), round(r.score, 5), 0] for r in track.readings},
        }
        for number, track in enumerate(tracks)
    }


def words_of(tracks: Sequence[Track]) -> list[dict[str, Any]]:
    """Every word of every track: text, score, box (8 numbers) and frame of the best reading, number of its track."""
    return [
        {"text": w.text, "score": round(t.best.score, 5), "box": _flat(w.quad_42), "frame": t.best.frame, "track": n}
        for n, t in enumerate(tracks)
        for w in t.best.words or tuple(Word(text, t.best.quad_42) for text in t.best.text.split())
    ]


def _flat(quad_42: np.ndarray) -> list[float]:
    """x1, y1, …, x4, y4; hundredths of a pixel are enough and keep the files short."""
    return [round(float(x), 2) for x in quad_42.reshape(-1)]


def write_kwai(content: Mapping[str, Any], folder: Path, video_id: str) -> Path:
    """Write `<folder>/<video id>.json`, complete or not at all; ids may hold folders (`Cooking/abc`).

    Raises:
        UserError: the id would leave the folder.
    """
    target = folder / f"{video_id}.json"
    if not target.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"video id {video_id!r} leads out of {folder}, expected a name or a path below it; rename it")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False)
        Path(name).chmod(0o644)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return target
