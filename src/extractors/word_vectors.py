"""Word vectors: GloVe, word2vec and the BigFile of Dual Encoding, one vector per word of a caption."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np

from src.errors import UserError
from src.extractors.base import Clip, Extractor
from src.extractors.local_files import file_sha256, local_path
from src.extractors.spelling import Speller
from src.extractors.word_tables import WordTable, read_table

Fallback = Literal["lower", "lemma", "split", "spelling"]

# Words with their clitics apart ("do", "n't"; "dog", "'s"), numbers, and every other sign by itself, as English
# treebanks and spaCy cut them.
_TOKEN = re.compile(
    r"[^\W\d_]+(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|\d+(?:[.,]\d+)*(?![^\W_])|[^\W_]+(?:-[^\W_]+)*|[^\s\w]|_",
    re.IGNORECASE,
)
_COMPOUNDS = {"roundtable": ("round", "table")}
_UNKNOWN_WORDS = 50_000


def tokens_of(text: str) -> list[str]:
    """Words, numbers and signs of an English sentence in order."""
    return _TOKEN.findall(text.replace("’", "'"))


def lemmas(word: str) -> list[str]:
    """What an English word may be an inflection of, the likeliest first: dogs, boxes, cities, running, baked, …"""
    rules = (
        *(("ies", "y"), ("s", ""), ("es", ""), ("ying", "ie")),
        *(("ing", ""), ("ing", "e"), ("ied", "y"), ("ed", ""), ("ed", "e"), ("er", ""), ("est", "")),
    )
    found = []
    for ending, put in rules:
        stem = word.removesuffix(ending)
        if stem != word and (len(stem) > 1 or put == "ie") and not (ending == "s" and stem.endswith("s")):
            doubled = put == "" and len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "lsz"
            found += [stem[:-1], stem] if doubled else [stem + put]
    return found


class WordVectors(Extractor):
    """One vector per word of a caption, from a table of word vectors.

    A word that the table does not have goes through the `fallbacks` in their order, the first hit counts; without one
    the word is dropped. A caption of which nothing is left gets one row: the unknown vector, which is the mean over
    the first 50,000 words of the table in sorted order. Stop words are kept.

    - lower: the word in lower case;
    - lemma: what the word is an inflection of;
    - split: roundtable -> round, table; words with hyphens -> their parts;
    - spelling: the closest word of the table at one or two edits, the earliest in the table among equals (tables are
      sorted by frequency). For words of three or more letters from a to z.

    Source: Collaborative Experts, text pipeline of the word models.
    Deviates: the reference cuts with spaCy, takes spaCy's lemmas and SymSpell's frequency list of English; here a
    regular expression, endings and the table's own order take their places, so that no further package and model is
    needed. Captions of plain words, which is nearly all, give the same rows.

    Args:
        name: of the store.
        path: a word2vec .bin file, a text file of GloVe or word2vec (.txt, .vec), a BigFile folder (feature.bin,
            shape.txt, id.txt), a folder with a .npy of vectors and a .parquet of words, or
            `package:<module>/<folder>` for one that an installed package carries.
        lower_case: captions are lowered before anything else; for tables without capitals.
        fallbacks: for words that the table does not have.
        pooling: tokens = one row per word; mean = their mean, one row per caption.
        unknown: what a caption of unknown words alone gets: mean = the unknown vector; missing = nothing.
    """

    medium = "text"
    nothing = "no known word"

    def __init__(
        self,
        *,
        path: str | None,
        name: str = "word2vec",
        lower_case: bool = True,
        fallbacks: tuple[Fallback, ...] = ("lower", "lemma", "split", "spelling"),
        pooling: Literal["tokens", "mean"] = "tokens",
        unknown: Literal["mean", "missing"] = "mean",
    ) -> None:
        if path is None:
            raise UserError(
                "found no extractor.path, expected a file of word vectors; "
                "set extractor.path=GoogleNews-vectors-negative300.bin or another local file (see the extractor's yaml)"
            )
        self.name = name
        self.path = local_path(path, "extractor.path", "glove")
        self.lower_case = lower_case
        self.fallbacks = tuple(fallbacks)
        self.pooling = pooling
        self.unknown = unknown
        self._resolve = lru_cache(maxsize=100_000)(self._find)

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value
            for key, value in self.__dict__.items()
            if key not in ("_resolve", "table", "speller", "unknown_D")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._resolve = lru_cache(maxsize=100_000)(self._find)

    @cached_property
    def table(self) -> WordTable:
        return read_table(self.path)

    @cached_property
    def speller(self) -> Speller:
        return Speller(self.table.row_of)

    @cached_property
    def unknown_D(self) -> np.ndarray:
        """The mean over the first 50,000 words in sorted order."""
        first = sorted(self.table.row_of)[:_UNKNOWN_WORDS]
        rows = np.asarray([self.table.row_of[word] for word in first])
        return self.table.rows(rows).mean(axis=0, dtype=np.float64).astype(np.float32)

    @property
    def dim(self) -> int:
        return self.table.dim

    def recipe(self) -> Mapping[str, Any]:
        return {
            "extractor": "word_vectors",
            "weights": {path.name: file_sha256(path) for path in self.table.files},
            "words": len(self.table.row_of),
            "dim": self.dim,
            "lower_case": self.lower_case,
            "fallbacks": list(self.fallbacks),
            "pooling": self.pooling,
            "unknown": self.unknown,
        }

    def extract(self, clip: Clip) -> np.ndarray | None:
        indices = [row for token in self._tokens(clip) for row in self._resolve(token)]
        if not indices:
            return None if self.unknown == "missing" else self.unknown_D[None].copy()
        rows_LD = self.table.rows(np.asarray(indices))
        if self.pooling == "tokens":
            return rows_LD
        return rows_LD.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)

    def details(self, clip: Clip) -> Mapping[str, Any] | None:
        """The words that were dropped, if any."""
        dropped = [token for token in self._tokens(clip) if not self._resolve(token)]
        return {"dropped": dropped} if dropped else None

    def _tokens(self, clip: Clip) -> list[str]:
        return tokens_of(clip.text.lower() if self.lower_case else clip.text)

    def lookup(self, word: str) -> np.ndarray | None:
        """The vector (dim,) of one word, the mean of its parts where it was split; None = unknown."""
        indices = self._resolve(word.lower() if self.lower_case else word)
        return self.table.rows(np.asarray(indices)).mean(axis=0) if indices else None

    def _find(self, token: str) -> tuple[int, ...]:
        """Rows of the table for one token, none when it is dropped."""
        row_of = self.table.row_of
        if token in row_of:
            return (row_of[token],)
        for fallback in self.fallbacks:
            found = tuple(row_of[word] for word in self._candidates(token, fallback))
            if found:
                return found
        return ()

    def _candidates(self, token: str, fallback: Fallback) -> tuple[str, ...]:
        """The words of the table that stand for the token under one fall-back."""
        row_of, lowered = self.table.row_of, token.lower()
        if fallback == "lower":
            return (lowered,) if lowered in row_of else ()
        if fallback == "lemma":
            return next(((lemma,) for lemma in lemmas(lowered) if lemma in row_of), ())
        if fallback == "split":
            parts = _COMPOUNDS.get(lowered, tuple(part for part in token.split("-") if part))
            return tuple(part for part in parts if part in row_of) if len(parts) > 1 else ()
        closest = self.speller.closest(lowered) if len(lowered) > 2 else None
        return () if closest is None else (closest,)
