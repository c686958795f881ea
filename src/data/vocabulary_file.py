"""The file of words that recurrent text encoders know, and its word vectors."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from src.data.whole_file import write_whole
from src.errors import UserError

VECTORS = "vocabulary.npy"
FOUND = "vocabulary_found.npy"


@dataclass(frozen=True)
class VocabularyFile:
    """What `vocabulary.json` holds.

    Attributes:
        words: in the order in which the captions first use them; without special words.
        counts: how often the captions use each word.
        min_count: rarer words are left out.
        dataset: whose training captions these are.
        split: likewise.
        num_captions: number of captions counted.
        num_words: number of different words in them, rare ones included.
    """

    words: list[str]
    counts: list[int]
    min_count: int
    dataset: str
    split: str
    num_captions: int
    num_words: int


def count_words(captions: Iterable[Sequence[str]]) -> Counter[str]:
    """How often each word occurs, in the order in which the words first occur."""
    counts: Counter[str] = Counter()
    for words in captions:
        counts.update(words)
    return counts


def frequent(counts: Mapping[str, int], min_count: int) -> dict[str, int]:
    """The words that occur at least so often, in the given order.

    Raises:
        UserError: there are none.
    """
    kept = {word: count for word, count in counts.items() if count >= min_count}
    if not kept:
        most = max(counts.values(), default=0)
        raise UserError(
            f"no word of the training captions occurs {min_count} times (the most frequent one {most}); "
            "set task.min_count to a smaller number"
        )
    return kept


def write_vocabulary(path: Path, content: VocabularyFile) -> None:
    """Write the file, and the word counts in the authors' layout to `vocabulary/word_vocab_counter_<min>.txt`."""
    folder = path.parent / "vocabulary"
    folder.mkdir(parents=True, exist_ok=True)
    ranked = Counter(dict(zip(content.words, content.counts, strict=True))).most_common()
    counter = folder / f"word_vocab_counter_{content.min_count}.txt"
    write_whole(counter, "\n".join(f"{word} {count}" for word, count in ranked).encode())
    write_whole(path, json.dumps(asdict(content), indent=0, ensure_ascii=False).encode() + b"\n")


def read_vocabulary(path: Path) -> VocabularyFile:
    """Read what `write_vocabulary` wrote.

    Raises:
        UserError: no such file, or not such a one.
    """
    try:
        return VocabularyFile(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; write it by task=prepare task.steps=[vocabulary]") from None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is no vocabulary ({error}); write it again by task=prepare task.steps=[vocabulary]"
        ) from error


def write_vectors(folder: Path, vectors_VD: np.ndarray, found_V: np.ndarray) -> None:
    """Write the vector of each word (zeros where there is none) and which words have one."""
    for name, array in ((VECTORS, vectors_VD.astype(np.float32, copy=False)), (FOUND, found_V.astype(bool))):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        write_whole(folder / name, buffer.getvalue())
