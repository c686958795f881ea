"""task=bench, part ocr_speed: how fast `extractor=ocr` reads words in the picture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context

import numpy as np
from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from src.clip import Clip
from src.errors import UserError
from src.extractors.ocr import Ocr
from src.tasks.bench import seconds_of

WIDTH, HEIGHT = 640, 360
ROWS, COLUMNS = 5, 3  # places for words
MOST = ROWS * COLUMNS
KINDS = PLAIN, SCENE = ("plain", "scene")
SIZES = {PLAIN: (24, 36), SCENE: (22, 40)}  # of the font, pixels; words on the scene are in any light colour
WORDS = (
    *("market", "street", "coffee", "open", "sale", "hotel", "museum", "garden", "station", "airport", "river"),
    *("bridge", "school", "library", "music", "concert", "ticket", "winter", "summer", "orange", "apple", "bread"),
    *("cheese", "travel", "driver", "police", "doctor", "window", "kitchen", "bakery", "flower", "silver", "golden"),
    *("purple", "yellow", "thunder", "planet", "rocket", "engine", "camera"),
)


@dataclass(frozen=True)
class Page:
    """One made-up frame.

    Attributes:
        frame_HWC: uint8 RGB.
        words: that it shows, all different.
        kind: "plain" = black on white, "scene" = light words on a blurred, noisy gradient.
    """

    frame_HWC: np.ndarray
    words: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Reading:
    """What one process read.

    Attributes:
        words: of each frame, as they were read.
        cpu_s: of the process.
    """

    words: tuple[tuple[str, ...], ...]
    cpu_s: float


def bench_ocr_speed(cfg: DictConfig) -> dict[str, float]:
    """Frames and words per second of the recommended settings (those of `Ocr`, the defaults of `extractor=ocr`).

    Each process has one thread and its share of the frames; the clock runs once all have loaded their models. Beside
    the speed stands what was read: the share of the words that came back letter by letter, and of those read that
    were there.

    Raises:
        UserError: more words than places, or the packages are missing.
    """
    task = cfg.task
    if not 1 <= task.ocr_words <= MOST:
        raise UserError(f"task.ocr_words: found {task.ocr_words}, expected 1 to {MOST}")
    pages = [made_up_page(KINDS[i % 2], task.ocr_words, cfg.seed + i) for i in range(task.ocr_frames)]
    shares = [pages[start :: task.ocr_processes] for start in range(task.ocr_processes)]
    readings, seconds = in_processes(shares)
    words = sum(len(found) for reading in readings for found in reading.words)
    return {
        "frames": len(pages),
        "processes": len(shares),
        "frames/s": len(pages) / seconds,
        "words/s": words / seconds,
        "CPU-s per frame": sum(reading.cpu_s for reading in readings) / len(pages),
        "words read": words,
        **_agreement(shares, readings),
    }


def in_processes(shares: Sequence[Sequence[Page]]) -> tuple[list[Reading], float]:
    """What a process for each share read, and the seconds from when all had read one frame until all were done."""
    with ExitStack() as stack:
        spawn = get_context("spawn")
        processes = [stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for _ in shares]
        for warm in [process.submit(read, [shares[0][0].frame_HWC]) for process in processes]:
            warm.result()
        started = time.perf_counter()
        running = [
            process.submit(read, [page.frame_HWC for page in share])
            for process, share in zip(processes, shares, strict=True)
        ]
        return [future.result() for future in running], time.perf_counter() - started


def _agreement(shares: Sequence[Sequence[Page]], readings: Sequence[Reading]) -> dict[str, float]:
    """Which share of the words was read letter by letter, and which share of what was read is there."""
    pairs = [
        pair for share, reading in zip(shares, readings, strict=True) for pair in zip(share, reading.words, strict=True)
    ]
    summary: dict[str, float] = {}
    for kind in KINDS:
        there = [(set(page.words), set(found)) for page, found in pairs if page.kind == kind]
        right = sum(len(shown & found) for shown, found in there)
        summary[f"{kind}: share of the words that was read"] = right / max(1, sum(len(shown) for shown, _ in there))
        summary[f"{kind}: share of what was read that is there"] = right / max(1, sum(len(found) for _, found in there))
    return summary


def read(frames: Sequence[np.ndarray]) -> Reading:
    """The words of each frame, in this process; frames (height, width, 3) uint8."""
    ocr, found = _reader(), []

    def everything() -> None:
        for number, frame_HWC in enumerate(frames):
            # A video each: nothing is linked, every word of every frame is counted.
            clip = Clip(
                str(number), frames_THWC=frame_HWC[None], frame_indices=(0,), size_hw=frame_HWC.shape[:2], span=(0, 1)
            )
            ocr.extract(clip)
            details = ocr.details(clip)
            assert details is not None
            found.append(tuple(word["text"] for word in details["words"]))

    cpu_s = seconds_of(everything)[1]
    return Reading(tuple(found), cpu_s)


@cache
def _reader() -> Ocr:
    return Ocr()


def made_up_page(kind: str, count: int, seed: int) -> Page:
    """Words at different places, at the sizes that people read on screens and signs."""
    random = np.random.default_rng(seed)
    words = tuple(random.choice(WORDS, count, replace=False).tolist())
    picture = Image.fromarray(_scene(random)) if kind == SCENE else Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    for place, word in zip(random.choice(MOST, count, replace=False).tolist(), words, strict=True):
        font = ImageFont.load_default(int(random.integers(*SIZES[kind], endpoint=True)))
        row, column = divmod(place, COLUMNS)
        x, y = 8 + column * WIDTH // COLUMNS, 8 + row * HEIGHT // ROWS
        room = max(0, WIDTH // COLUMNS - 24 - draw.textlength(word, font=font))
        colour = tuple(random.integers(200, 256, 3).tolist()) if kind == SCENE else (0, 0, 0)
        draw.text((x + random.uniform(0, room), y + random.uniform(0, 16)), word, font=font, fill=colour)
    if kind == PLAIN:
        return Page(np.asarray(picture), words, kind)
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float64)
    noisy = blurred + random.normal(0, 8, blurred.shape)
    return Page(noisy.clip(0, 255).astype(np.uint8), words, kind)


def _scene(random: np.random.Generator) -> np.ndarray:
    """A dark gradient from one corner to the opposite one, uint8 (height, width, 3)."""
    first, last = random.integers(0, 120, (2, 3))
    along_HW1 = np.add.outer(np.linspace(0, 0.5, HEIGHT), np.linspace(0, 0.5, WIDTH))[..., None]
    return (first + along_HW1 * (last - first)).astype(np.uint8)
