"""The closest word of a vocabulary, for words that are spelled wrongly."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_CHUNK = 100_000  # words; bounds memory while letters are counted


class Speller:
    """Finds the word at the fewest edits (delete, insert, replace, swap neighbours), among equals the earliest.

    Only words of plain small letters are looked for and suggested. Every edit changes at most two letter counts by
    one, so a comparison of counts, which is one pass over an array, leaves few words to be compared letter by letter.

    Args:
        words: the vocabulary, the most frequent words first.
        max_edits: the farthest suggestion.
    """

    def __init__(self, words: Iterable[str], max_edits: int = 2) -> None:
        self.max_edits = max_edits
        self.words = [word for word in words if is_plain(word)]
        parts = [self.words[at : at + _CHUNK] for at in range(0, len(self.words), _CHUNK)]
        self.counts_NL = np.concatenate([np.zeros((0, 26), np.int8), *(_letter_counts(part) for part in parts)])
        self.lengths_N = np.array([len(word) for word in self.words], dtype=np.int64)

    def closest(self, word: str) -> str | None:
        """None when there is no word at `max_edits` or fewer, or when `word` is not made of plain small letters."""
        if not is_plain(word):
            return None
        near = np.flatnonzero(np.abs(self.lengths_N - len(word)) <= self.max_edits)
        apart = np.abs(self.counts_NL[near] - _letter_counts([word])).sum(axis=1, dtype=np.int64)
        for edits in range(self.max_edits + 1):
            for row in near[apart <= 2 * edits]:
                if edit_distance(word, self.words[row]) <= edits:
                    return self.words[row]
        return None


def is_plain(word: str) -> bool:
    """Small letters from a to z alone, and not too many of them to be counted in a byte."""
    return word.isascii() and word.isalpha() and word.islower() and len(word) < 64


def _letter_counts(words: list[str]) -> np.ndarray:
    """int8 (words, 26)."""
    letters = np.frombuffer("".join(words).encode(), dtype=np.uint8).astype(np.int64) - ord("a")
    owner = np.repeat(np.arange(len(words)), [len(word) for word in words])
    return np.bincount(owner * 26 + letters, minlength=len(words) * 26).reshape(-1, 26).astype(np.int8)


def edit_distance(first: str, second: str) -> int:
    """Deletions, insertions, replacements and swaps of neighbours, no letter touched twice after a swap.

    Source: optimal string alignment, the distance of SymSpell.
    """
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        older, before, row = before, row, [i]
        for j, b in enumerate(second, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == second[j - 2] and first[i - 2] == b:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]
