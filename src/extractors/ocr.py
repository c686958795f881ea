"""Text in the picture, read by PP-OCR through rapidocr (the weights come inside the package)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import UserError
from src.extractors.base import Clip, Extractor, Request, need
from src.extractors.local_files import PACKAGE, file_sha256, local_path, versions
from src.extractors.ocr_tracks import POSITION_DIM, Reading, Word, kwai, link, words_of, write_kwai
from src.extractors.word_vectors import WordVectors

BLOCKS = 16  # a changed word covers a large share of one of 16 x 16 blocks, but a small share of the frame


class Ocr(Extractor):
    """Words in the video, with the place and time of each.

    The store's rows go with the words in `details(...)["words"]`, one row per word, in the order in which the texts
    appear. A row is the place of the word, the 12 numbers of `Track.position`; with `vectors` it is its word vector
    (what models with one vector per recognised word take), and words that the table does not know are left out, of
    `words` too. `details` also holds `kwai` (the video's file in the TextVR layout; each track also notes `video`:
    width, height, number of frames, and the first frame where the video is a segment of its file), `size` (height and
    width of the video) and `frames` (the positions that were looked at). A video without text has no rows: missing.

    Frame indices and pixels are those of the file that was decoded: extract from the files that training decodes.

    Source: PP-OCRv6 small; settings measured for words in 640 x 360 frames at half the time of the package's defaults
    without loss: no angle classifier, detection at a short side of 480 and a long side of 960 at most, one thread.

    Args:
        name: of the store.
        fps: frames read per second of video.
        max_frames: at most so many frames per video, evenly spread; null = all of them.
        short_side: frames are decoded at this size, pixels; null = as they are. Boxes are scaled back.
        min_score: readings below this confidence are dropped.
        det_short_side: the detector scales frames up until their shorter side has so many pixels.
        det_long_side: frames with a longer side than this are scaled down before anything else.
        min_iou: least overlap of the boxes of one text in two following frames.
        min_similarity: least share of common characters of such texts.
        max_gap: a text may be missing in so many looked-at frames and still be the same one.
        skip_below: a frame is not read but takes the readings of the last read one when no 16th by 16th of the
            picture changed by more than so many grey levels on average; 0 reads every frame.
        vectors: file or folder of word vectors (see `WordVectors`); null = rows are places.
        kwai_dir: also write `<kwai_dir>/<video id>.json` in the TextVR layout, for every video; null writes none.
        threads: of the recogniser; several processes with one thread each are faster than one with several.
    """

    medium = "frames"
    nothing = "no text"

    def __init__(
        self,
        *,
        name: str = "ocr",
        fps: float = 1.0,
        max_frames: int | None = None,
        short_side: int | None = None,
        min_score: float = 0.5,
        det_short_side: int = 480,
        det_long_side: int = 960,
        min_iou: float = 0.5,
        min_similarity: float = 0.6,
        max_gap: int = 1,
        skip_below: float = 0.0,
        vectors: str | None = None,
        kwai_dir: str | None = None,
        threads: int = 1,
    ) -> None:
        if fps <= 0:
            raise UserError(f"found extractor.fps={fps}, expected frames per second above 0; set extractor.fps=1")
        self.name = name
        self._request = Request(fps=fps, max_frames=max_frames, short_side=short_side)
        self.reader = {"min_score": min_score, "det_short_side": det_short_side, "det_long_side": det_long_side}
        self.linking = {"min_iou": min_iou, "min_similarity": min_similarity, "max_gap": max_gap}
        self.skip_below = skip_below
        self.words = None if vectors is None else WordVectors(path=vectors, fallbacks=("lower",))
        self.kwai_dir = None if kwai_dir is None else Path(kwai_dir).expanduser()
        self.threads = threads
        self.weights = _weights()
        self._engine: Any = None
        self._details: dict[str, dict[str, Any]] = {}

    @property
    def dim(self) -> int:
        return POSITION_DIM if self.words is None else self.words.dim

    @property
    def request(self) -> Request:
        return self._request

    def recipe(self) -> Mapping[str, Any]:
        return {
            "extractor": "ocr",
            "versions": versions("rapidocr", "onnxruntime"),
            "weights": {path.name: file_sha256(path) for path in self.weights},
            "fps": self._request.fps,
            "max_frames": self._request.max_frames,
            "short_side": self._request.short_side,
            **self.reader,
            **self.linking,
            "skip_below": self.skip_below,
            "rows": "position" if self.words is None else dict(self.words.recipe()),
        }

    def extract(self, clip: Clip) -> np.ndarray | None:
        assert clip.frames_THWC is not None
        tracks = link(self._readings(clip), **self.linking)  # type: ignore[arg-type]
        words = words_of(tracks)
        rows = [tracks[word["track"]].position() for word in words]
        if self.words is not None:
            found = [(word, row) for word in words if (row := self.words.lookup(word["text"])) is not None]
            words, rows = [word for word, _ in found], [row for _, row in found]
        content = kwai(tracks)
        height, width = clip.size_hw
        start, stop = clip.span
        for track in content.values():
            # Positions mean something only beside the length and size of the video; other readers skip this key.
            track["video"] = [width, height, stop - start, start]
        details = {
            "words": words,
            "kwai": content,
            "size": list(clip.size_hw),
            "frames": list(clip.frame_indices),
        }
        self._details[clip.id] = details
        if self.kwai_dir is not None:
            write_kwai(content, self.kwai_dir, clip.id)
        return np.stack(rows).astype(np.float32) if rows else None

    def details(self, clip: Clip) -> Mapping[str, Any] | None:
        return self._details.pop(clip.id, None)

    def _readings(self, clip: Clip) -> list[list[Reading]]:
        """The readings of every frame of the clip, boxes in pixels of the file."""
        assert clip.frames_THWC is not None
        height, width = clip.frames_THWC.shape[1:3]
        scale_xy = np.array([clip.size_hw[1] / width, clip.size_hw[0] / height])
        readings: list[list[Reading]] = []
        last_read: np.ndarray | None = None
        for frame, image_HWC in zip(clip.frame_indices, clip.frames_THWC, strict=True):
            blocks = _blocks(image_HWC) if self.skip_below > 0 else None
            if blocks is not None and last_read is not None and np.abs(blocks - last_read).max() < self.skip_below:
                readings.append([replace(reading, frame=frame) for reading in readings[-1]])
                continue
            last_read = blocks
            readings.append(self._read(image_HWC, frame, scale_xy))
        return readings

    def _read(self, image_HWC: np.ndarray, frame: int, scale_xy: np.ndarray) -> list[Reading]:
        if self._engine is None:
            self._engine = self._load()
        result = self._engine(np.ascontiguousarray(image_HWC[..., ::-1]), return_word_box=True)  # it takes BGR
        if result.boxes is None:
            return []
        lines = zip(result.boxes, result.txts, result.scores, result.word_results, strict=True)
        return [
            Reading(frame, np.asarray(quad) * scale_xy, text, float(score), _words(text, words, quad, scale_xy))
            for quad, text, score, words in lines
            if text.strip()
        ]

    def _load(self) -> Any:
        """The recogniser, in the process that uses it: its sessions survive neither pickling nor forking."""
        from rapidocr import RapidOCR  # takes a second, and is an optional package

        detector, recogniser = (str(path) for path in self.weights)
        return RapidOCR(
            params={
                "Global.use_cls": False,
                "Global.log_level": "error",
                "Global.text_score": self.reader["min_score"],
                "Global.max_side_len": self.reader["det_long_side"],
                "Det.limit_side_len": self.reader["det_short_side"],
                "Det.model_path": detector,
                "Rec.model_path": recogniser,
                "EngineConfig.onnxruntime.intra_op_num_threads": self.threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": self.threads,
            }
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None}


def _weights() -> tuple[Path, Path]:
    """Files of the detector and the recogniser; the package would fetch them if they were not there."""
    for package in ("rapidocr", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise need(package, "ocr")
    folder = local_path(f"{PACKAGE}rapidocr/models", "the weights of rapidocr", "ocr")
    found = [sorted(folder.glob(f"*_{part}_*.onnx")) for part in ("det", "rec")]
    if [len(files) for files in found] != [1, 1]:
        names = [path.name for files in found for path in files]
        raise UserError(
            f"found the OCR weights {names or 'nowhere'} in {folder}, expected one *_det_*.onnx and one *_rec_*.onnx; "
            "install the package again: pip install --force-reinstall rapidocr"
        )
    return found[0][0], found[1][0]


def _words(text: str, words: Any, quad: np.ndarray, scale_xy: np.ndarray) -> tuple[Word, ...]:
    """The words of a line with their own boxes; with that of the line where the recogniser splits it otherwise."""
    texts = text.split()
    if words and [word[0] for word in words] == texts:
        return tuple(Word(word[0], np.asarray(word[2], dtype=np.float64) * scale_xy) for word in words)
    return tuple(Word(word, np.asarray(quad) * scale_xy) for word in texts)


def _blocks(image_HWC: np.ndarray) -> np.ndarray:
    """Mean grey level of 16 x 16 blocks of the frame."""
    grey_HW = image_HWC.astype(np.float32).mean(axis=-1)
    rows, columns = (np.linspace(0, size, BLOCKS + 1).astype(int)[:-1] for size in grey_HW.shape)
    sums = np.add.reduceat(np.add.reduceat(grey_HW, rows, axis=0), columns, axis=1)
    return sums / (grey_HW.size / BLOCKS**2)
