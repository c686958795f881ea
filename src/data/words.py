"""The words in the picture as a model takes them: read from OCR files, cleaned, placed, tokenised, collated.

Positions are divided by the length and size of the video that the OCR read. Files of `extractor=ocr` and its store note
them, so they hold even where training decodes a smaller copy. Published files do not: there it is the video that is
decoded, as upstream does it (`FrameSource.shape`: from the frame cache's table, else from the file, opened once per
process). Frame numbers of a segment count from its beginning.

A video without OCR file, or with one that shows no words, has none; the first is counted as `without_ocr`. A damaged
file is listed as a problem of its video, which stays in the run without words.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from src.batch import Tokenizer, WordBatch, WordSpec
from src.data.annotation import VideoRecord
from src.data.ocr import POSITION_SIZE, OcrWords, normalise_positions, ocr_format
from src.data.ocr_files import OcrDocument, OcrReader, open_ocr
from src.data.video import Problem, VideoError, VideoShape, append_problem
from src.errors import UserError

BLANK = " "  # what an empty slot holds
DAMAGED, NO_SHAPE = "damaged OCR file", "OCR without video size"
# Kept in each process, so that later epochs read nothing; about 64 MB of words and 30 MB of token ids at most.
MOST_WORDS = 2**20
MOST_TOKENISED = 2**17


class VideoWords(NamedTuple):
    """The words of one video, best first, and their positions, float32 (W, 12), divided by its length and size."""

    words: tuple[str, ...]
    positions_WP: np.ndarray


class KnowsShapes(Protocol):
    """Part of `src.data.datasets.FrameSource`."""

    def shape(self, record: VideoRecord) -> VideoShape:
        """Raises VideoError for a video that cannot be read."""
        ...


class WordSource:
    """Reads the words of videos, and reports the files that it cannot read.

    Args:
        spec: what the model wants.
        folder: Kwai files, or a store of `extractor=ocr`; None = the data set knows of none.
        frames: knows the shapes of videos.
        problems_file: damaged files are appended here (workers share it); None = nowhere.

    Attributes:
        problems: (video id, kind) -> what this process met.
    """

    def __init__(
        self, spec: WordSpec, folder: str | Path | None, frames: KnowsShapes, problems_file: Path | None = None
    ) -> None:
        self.spec = spec
        self.folder = None if folder is None else Path(folder).expanduser()
        self.frames = frames
        self.problems_file = problems_file
        self.problems: dict[tuple[str, str], Problem] = {}
        self.pieces = WordPieces(spec.tokenizer)
        self._kept: OrderedDict[str, tuple[str, np.ndarray]] = OrderedDict()
        self._num_kept = 0

    def __getstate__(self) -> dict[str, object]:
        # A worker reads its own; what the main process has read would be sent to each of them.
        return self.__dict__ | {"_kept": OrderedDict(), "_num_kept": 0}

    @cached_property
    def reader(self) -> OcrReader:
        """Of the folder.

        Raises:
            UserError: there is none; the message says how to make one.
        """
        found = "dataset.ocr_dir is null" if self.folder is None else None
        if self.folder is not None:
            if self.folder.is_dir():
                return open_ocr(self.folder)
            found = f"dataset.ocr_dir={self.folder} is not a folder"
        raise UserError(
            f"{found}, but the model reads the words in the picture; write them by task.prepare=[words] of "
            "task=fit, or by task=extract extractor=ocr extractor.kwai_dir=FOLDER with the same dataset and set "
            "dataset.ocr_dir=FOLDER (or the folder of the store that it makes), or choose a model without words"
        )

    def check(self, parts: Iterable[Sequence[VideoRecord]] = ()) -> None:
        """Fail here, in the main process, for what would fail in every worker.

        Args:
            parts: videos that will be asked for, to see whether the folder is theirs.

        Raises:
            UserError: the folder is missing, is a store of other features, or knows none of the videos.
        """
        reader, first = self.reader, None
        for records in parts:
            for record in records:  # of millions, the first ones answer unless the folder is wrong
                if reader.where(record) is not None:
                    return
                first = first or record
        if first is not None:
            raise UserError(
                f"dataset.ocr_dir={self.folder} has OCR of none of the videos (looked for {reader.expected(first)}, …),"
                " expected that of some; set dataset.ocr_dir to the folder that holds such files, write them by "
                "task=extract extractor=ocr, or choose a model without words"
            )

    def lacking(self, records: Sequence[VideoRecord]) -> list[str]:
        """Ids of the videos that have no OCR."""
        return [record.id for record in records if self.reader.where(record) is None]

    def of(self, record: VideoRecord) -> VideoWords:
        """The words of one video; none where its file is missing or damaged."""
        kept = self._kept.get(record.id)
        if kept is None:
            kept = self._keep(record, self._read(record))
        else:
            self._kept.move_to_end(record.id)
        joined, positions_WP = kept
        return VideoWords(tuple(joined.split(BLANK)) if joined else (), positions_WP)

    def texts(self, record: VideoRecord, most: int) -> list[str] | None:
        """The best words of one video, for people; None = it has no usable OCR. The video itself is not opened."""
        if kept := self._kept.get(record.id, ("",))[0]:
            return kept.split(BLANK)[:most]
        document = self._document(record)
        return None if document is None else list(self._format(document).words[:most])

    def batch(self, records: Sequence[VideoRecord]) -> WordBatch:
        """The words of some videos, as the model takes them."""
        found = [self.of(record) for record in records]
        longest = max((len(video.words) for video in found), default=0) or 1
        distinct: dict[str, int] = {BLANK: 0}
        places_BW = np.zeros((len(found), longest), dtype=np.int64)
        positions_BWP = np.zeros((len(found), longest, POSITION_SIZE), dtype=np.float32)
        for row, (words, positions_WP) in enumerate(found):
            places_BW[row, : len(words)] = [distinct.setdefault(word, len(distinct)) for word in words]
            positions_BWP[row, : len(words)] = positions_WP
        tokens_UL, mask_UL = self.pieces(list(distinct))
        words_BW = torch.from_numpy(places_BW > 0)
        places = torch.from_numpy(places_BW)
        return WordBatch(tokens_UL[places], mask_UL[places], words_BW, torch.from_numpy(positions_BWP))

    def _read(self, record: VideoRecord) -> VideoWords:
        document = self._document(record)
        if document is None:
            return VideoWords((), np.zeros((0, POSITION_SIZE), np.float32))
        found = self._format(document)
        return VideoWords(found.words, self._placed(record, found.positions_W12, document.shape))

    def _document(self, record: VideoRecord) -> OcrDocument | None:
        if self.reader.where(record) is None:
            return None
        try:
            return self.reader.read(record)
        except UserError as error:
            path = self.reader.where(record) or self.reader.expected(record)
            self._report(Problem(record.id, path, f"read as a video without words: {error}", DAMAGED, kept=True))
            return None

    def _format(self, document: OcrDocument) -> OcrWords:
        spec = self.spec
        return ocr_format(
            document.tracks,
            max_words=spec.max_words,
            min_length=spec.min_length,
            rule=spec.rule,
            position_rule=spec.position_rule,
        )

    def _placed(self, record: VideoRecord, positions_W12: np.ndarray, shape: VideoShape | None) -> np.ndarray:
        """Positions divided by the shape of the video; zeros where nobody knows it, or the model does not ask."""
        if not self.spec.positions or len(positions_W12) == 0:
            return np.zeros_like(positions_W12)
        if shape is None:
            try:
                shape = self.frames.shape(record)
            except VideoError as error:
                reason = f"the positions of its words are zero, as its size is unknown: {error.reason}"
                self._report(Problem(record.id, str(record.path), reason, NO_SHAPE, kept=True))
                return np.zeros_like(positions_W12)
        local_W12 = positions_W12.copy()
        local_W12[:, :2] -= shape.start
        return normalise_positions(local_W12, shape.width, shape.height, shape.num_frames)

    def _keep(self, record: VideoRecord, video: VideoWords) -> tuple[str, np.ndarray]:
        # One string, not many: words hold no blank, and a Python string takes more than the word.
        kept = self._kept[record.id] = (BLANK.join(video.words), video.positions_WP)
        self._num_kept += max(1, len(video.words))
        while self._num_kept > MOST_WORDS and len(self._kept) > 1:
            _, (_, positions_WP) = self._kept.popitem(last=False)
            self._num_kept -= max(1, len(positions_WP))
        return kept

    def _report(self, problem: Problem) -> None:
        key = (problem.video_id, problem.kind)
        if key in self.problems:
            return
        self.problems[key] = problem
        if self.problems_file is not None:
            append_problem(self.problems_file, problem)


class WordPieces:
    """Token ids of single words; each distinct word is tokenised once per process.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._kept: dict[str, np.ndarray] = {}
        self._pad: int | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_kept": {}}

    def __call__(self, words: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 tokens_NL and bool mask_NL of distinct words, L = the longest of them."""
        unknown = [word for word in words if word not in self._kept]
        if unknown:
            if len(self._kept) + len(unknown) > MOST_TOKENISED:
                self._kept, unknown = {}, list(words)
            self._tokenize(unknown)
        rows = [self._kept[word] for word in words]
        lengths_N = np.array([len(row) for row in rows])
        mask_NL = np.arange(max(int(lengths_N.max(initial=0)), 1)) < lengths_N[:, None]
        tokens_NL = np.full(mask_NL.shape, self._padding(), dtype=np.int64)
        if rows:
            tokens_NL[mask_NL] = np.concatenate(rows)
        return torch.from_numpy(tokens_NL), torch.from_numpy(mask_NL)

    def _tokenize(self, words: list[str]) -> None:
        tokens_NL, mask_NL = self.tokenizer(words)
        lengths = mask_NL.sum(1)
        if not torch.equal(mask_NL.bool(), torch.arange(mask_NL.shape[1]) < lengths[:, None]):
            raise ValueError(f"{self.tokenizer.fingerprint}: expected real tokens before the padding")
        ids_NL = tokens_NL.to(torch.int32).numpy()
        for word, row, length in zip(words, ids_NL, lengths.tolist(), strict=True):
            self._kept[word] = row[:length].copy()

    def _padding(self) -> int:
        """What the tokenizer itself puts behind a short word."""
        if self._pad is None:
            tokens_NL, mask_NL = self.tokenizer([BLANK, "incomprehensibilities xylophones"])
            padding = tokens_NL[~mask_NL.bool()]
            self._pad = int(padding[0]) if len(padding) else 0
        return self._pad


class ShownWords(Mapping[int, Sequence[str] | None]):
    """Position of a video in its part -> the best words in it; read when they are looked up. None = no usable OCR.

    Args:
        source: of the words.
        records: videos of the part.
        most: words of a video.
    """

    def __init__(self, source: WordSource, records: Sequence[VideoRecord], most: int = 20) -> None:
        self.source = source
        self.records = records
        self.most = most

    def __getitem__(self, index: int) -> list[str] | None:
        if not 0 <= index < len(self.records):
            raise KeyError(index)
        return self.source.texts(self.records[index], self.most)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.records)))

    def __len__(self) -> int:
        return len(self.records)
