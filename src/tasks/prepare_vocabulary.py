"""task=prepare task.steps=[vocabulary]: the words of the training captions, and their vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from src.data.vocabulary_file import (
    FOUND,
    VECTORS,
    VocabularyFile,
    count_words,
    frequent,
    write_vectors,
    write_vocabulary,
)
from src.errors import UserError
from src.extractors.word_tables import read_table
from src.models.vocabulary import read_vocabulary
from src.tasks.prepare_text import folder_of, say, training_captions, whole_number


def run(cfg: DictConfig) -> None:
    """Write DATA_DIR/DATASET/vocabulary.json, and vocabulary.npy when `task.word_vectors` is given.

    Raises:
        UserError: no word is frequent enough, or the table of word vectors cannot be read.
    """
    min_count = whole_number(cfg, "min_count", 1)
    given = training_captions(cfg)
    counts = count_words(given.words)
    kept = frequent(counts, min_count)
    content = VocabularyFile(
        words=list(kept),
        counts=list(kept.values()),
        min_count=min_count,
        dataset=cfg.dataset.name,
        split=cfg.split.name,
        num_captions=len(given.captions),
        num_words=len(counts),
    )
    vectors = None if cfg.task.word_vectors is None else _vectors(Path(cfg.task.word_vectors).expanduser(), kept)
    path = given.folder / "vocabulary.json"
    write_vocabulary(path, content)
    say(
        f"vocabulary: {len(kept)} of {len(counts)} words of {len(given.captions)} training captions in {path}: those "
        f"that occur at least {min_count} times, {sum(kept.values()) / max(1, sum(counts.values())):.1%} of the text"
    )
    if vectors is None:  # those of an earlier vocabulary would belong to other words
        for name in (VECTORS, FOUND):
            (given.folder / name).unlink(missing_ok=True)
    else:
        vectors_VD, found_V = vectors
        write_vectors(given.folder, vectors_VD, found_V)
        say(
            f"vocabulary: {int(found_V.sum())} of them have a vector of dim {vectors_VD.shape[1]}: "
            f"{given.folder / VECTORS}; which ones: {given.folder / FOUND}"
        )


def found(cfg: DictConfig) -> str | None:
    """What is there already; None when the vocabulary is lacking, or its vectors though `task.word_vectors` is given.

    Raises:
        UserError: a file that is no vocabulary.
    """
    path = folder_of(cfg) / "vocabulary.json"
    if not path.is_file() or (cfg.task.word_vectors is not None and not path.with_name(VECTORS).is_file()):
        return None
    return f"{path} ({len(read_vocabulary(path).words)} words)"


def _vectors(path: Path, words: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """float32 (V, D) vectors, zeros where the table has none, and bool (V,) where it has one."""
    if not path.exists():
        raise UserError(f"task.word_vectors={path} does not exist, expected a table of word vectors")
    try:
        table = read_table(path)
    except UserError as error:  # its advice names the option of the extractor that reads such tables too
        raise UserError(str(error).replace("extractor.path", "task.word_vectors")) from None
    rows_V = np.array([table.row_of.get(word, -1) for word in words], dtype=np.int64)
    found_V = rows_V >= 0
    vectors_VD = np.zeros((len(rows_V), table.dim), dtype=np.float32)
    vectors_VD[found_V] = table.rows(rows_V[found_V])
    return vectors_VD, found_V
