"""Files of word vectors, in the layouts in which they are published. Vectors stay on the disk where they can."""

from __future__ import annotations

import mmap
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.errors import UserError
from src.extractors.base import need


@dataclass(frozen=True)
class WordTable:
    """Words and their vectors.

    Attributes:
        row_of: word -> its row; of words that come twice the first counts.
        files: what was read.
        vectors_ND: float32 array of all rows, or
        packed: bytes of a file in which the vector of row i begins at `offsets[i]`.
    """

    row_of: dict[str, int]
    files: tuple[Path, ...]
    dim: int
    vectors_ND: np.ndarray | None = None
    packed: np.ndarray | None = None
    offsets_N: np.ndarray | None = None

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """float32 (n, dim), a copy."""
        if self.vectors_ND is not None:
            return np.array(self.vectors_ND[indices], dtype=np.float32)
        assert self.packed is not None
        assert self.offsets_N is not None
        starts_n = self.offsets_N[indices]
        bytes_nB = self.packed[starts_n[:, None] + np.arange(4 * self.dim)]
        return np.ascontiguousarray(bytes_nB).view("<f4").astype(np.float32)


def read_table(path: Path) -> WordTable:
    """Read a table of word vectors; the layout follows from the names of the files.

    Raises:
        UserError: no known layout, or damaged.
    """
    if path.is_dir():
        if (path / "feature.bin").is_file():
            return read_bigfile(path)
        return _read_npy(path)
    if path.suffix == ".bin":
        return read_word2vec(path)
    if path.suffix in (".txt", ".vec"):
        return read_text(path)
    raise UserError(
        f"{path} is no known file of word vectors, expected word2vec (.bin), text (.txt, .vec), a BigFile folder "
        "(feature.bin) or a folder with .npy and .parquet; set extractor.path to one of these"
    )


def read_word2vec(path: Path) -> WordTable:
    """The binary layout of word2vec: a line "<words> <dim>", then word, space, dim little-endian float32.

    Only the words are held in memory: the 3 million vectors of the news model take 3.6 GB, in every process.
    A line break before a word belongs to no word; some writers put one after each vector.
    """
    with path.open("rb") as file:
        header = file.readline(100)
        try:
            count, dim = (int(number) for number in header.split())
        except ValueError:
            raise UserError(
                f"{path} begins with {header[:30]!r}, expected two numbers, as in word2vec files; fetch it again"
            ) from None
        row_of: dict[str, int] = {}
        offsets_N = np.zeros(count, dtype=np.int64)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at, size = len(header), 4 * dim
            for row in range(count):
                space = data.find(b" ", at)
                if space < 0 or space + 1 + size > len(data):
                    raise UserError(f"{path} ends after {row} of {count} words; fetch it again")
                word = data[at:space].lstrip(b"\n").decode("utf-8", errors="replace")
                row_of.setdefault(word, row)
                offsets_N[row] = space + 1
                at = space + 1 + size
    return WordTable(row_of, (path,), dim, packed=np.memmap(path, dtype=np.uint8, mode="r"), offsets_N=offsets_N)


def read_text(path: Path) -> WordTable:
    """One word per line, then its numbers (GloVe); skips a first line "<words> <dim>" (word2vec text, fastText)."""
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        first = file.readline()
        header = len(first.split()) == 2
        sample = (file.readline() if header else first).rstrip().split(" ")
        dim = len(sample) - 1
        if dim < 2:
            raise UserError(f"{path} begins with {first[:40]!r}, expected a word and its numbers; fetch it again")
        file.seek(0)
        row_of: dict[str, int] = {}
        rows: list[np.ndarray] = []
        for number, line in enumerate(file):
            if number == 0 and header:
                continue
            word, _, rest = line.rstrip("\n ").partition(" ")
            row = _numbers(rest)
            if row.size != dim:  # a few words of the 840B table hold spaces
                word, *parts = line.rstrip("\n ").rsplit(" ", dim)
                row = _numbers(" ".join(parts))
            if row.size != dim:
                raise UserError(f"{path}, line {number + 1}: expected a word and {dim} numbers; fetch it again")
            row_of.setdefault(word, len(rows))
            rows.append(row)
    return WordTable(row_of, (path,), dim, vectors_ND=np.stack(rows))


def _numbers(text: str) -> np.ndarray:
    """float32 numbers up to the first text that is none; far faster than `float` on each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the text that is none; the caller counts
        try:
            return np.fromstring(text, dtype=np.float32, sep=" ")
        except ValueError:  # what a later numpy raises instead
            return np.empty(0, dtype=np.float32)


def read_bigfile(folder: Path) -> WordTable:
    """BigFile: feature.bin of little-endian float32 rows, shape.txt "<rows> <dim>", id.txt of words apart by spaces."""
    files = tuple(folder / name for name in ("feature.bin", "shape.txt", "id.txt"))
    lacking = [path.name for path in files if not path.is_file()]
    if lacking:
        raise UserError(f"{folder} lacks {', '.join(lacking)}, expected feature.bin, shape.txt and id.txt")
    try:
        count, dim = (int(number) for number in files[1].read_text().split())
    except ValueError:
        raise UserError(f"{files[1]} is damaged, expected two numbers (words and dim); fetch it again") from None
    # Split at ASCII blanks only: in ISO-8859-1 str.split would also cut at 0x85 and 0xA0 inside of UTF-8 words.
    words = [word.decode("ISO-8859-1") for word in files[2].read_bytes().split()]
    size = files[0].stat().st_size
    if len(words) != count or size != 4 * count * dim:
        raise UserError(
            f"{folder} holds {len(words)} words and {size} bytes of vectors, expected {count} and {4 * count * dim} "
            "from shape.txt; fetch it again"
        )
    row_of: dict[str, int] = {}
    for row, word in enumerate(words):
        row_of.setdefault(word, row)
    vectors_ND = np.memmap(files[0], dtype="<f4", mode="r", shape=(count, dim))
    return WordTable(row_of, files, dim, vectors_ND=vectors_ND)


def _read_npy(folder: Path) -> WordTable:
    """One .npy of vectors and one .parquet whose first column holds the words."""
    vectors, words = sorted(folder.glob("*.npy")), sorted(folder.glob("*.parquet"))
    if len(vectors) != 1 or len(words) != 1:
        raise UserError(
            f"{folder} holds {len(vectors)} .npy and {len(words)} .parquet files, expected one of each, "
            "or the feature.bin, shape.txt and id.txt of a BigFile; set extractor.path to such a folder"
        )
    try:
        from pyarrow import parquet  # type: ignore[import-untyped]  # optional package
    except ImportError:
        raise need("pyarrow", "glove") from None
    vectors_ND = np.load(vectors[0], mmap_mode="r")
    column = parquet.read_table(words[0]).column(0).to_pylist()
    if vectors_ND.ndim != 2 or len(column) != len(vectors_ND):
        raise UserError(f"{folder}: {len(column)} words and vectors of shape {vectors_ND.shape}; fetch it again")
    row_of: dict[str, int] = {}
    for row, word in enumerate(column):
        row_of.setdefault(word, row)
    return WordTable(row_of, (vectors[0], words[0]), vectors_ND.shape[1], vectors_ND=vectors_ND)
