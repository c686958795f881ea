"""Words to ids by a closed list of words, as recurrent text encoders use it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

PAD, START, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
_NOT_A_WORD = re.compile(r"[^A-Za-z0-9]")


def words_of(caption: str) -> list[str]:
    """Lower-case words of a caption; every character but ASCII letters and digits separates words.

    Source: danieljf24/hybrid_space @ b934eff, `clean_str` of its vocabulary and data provider.
    """
    return _NOT_A_WORD.sub(" ", caption).lower().split()


@dataclass(frozen=True)
class VocabularyTokenizer:
    """Caption to ids: start, one id per word, end; words outside the list become the unknown word. No length limit.

    Attributes:
        words: the vocabulary without the four special words, which have the ids 0 to 3.

    Source: danieljf24/hybrid_space @ b934eff, text part of its data provider.
    """

    words: tuple[str, ...]

    @cached_property
    def ids(self) -> dict[str, int]:
        """Word -> id, special words included."""
        return {word: index for index, word in enumerate((*SPECIAL, *self.words))}

    @property
    def fingerprint(self) -> str:
        return "vocabulary-1 " + hashlib.sha256("\n".join(self.words).encode()).hexdigest()

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return int64 tokens_NL, padded to the longest caption, and bool mask_NL."""
        known = self.ids
        rows = [[START, *(known.get(word, UNKNOWN) for word in words_of(caption)), END] for caption in captions]
        longest = max(map(len, rows), default=0)
        tokens_NL = torch.full((len(rows), longest), PAD, dtype=torch.int64)
        for row, ids in enumerate(rows):
            tokens_NL[row, : len(ids)] = torch.tensor(ids)
        lengths_N = torch.tensor([len(ids) for ids in rows], dtype=torch.int64)
        return tokens_NL, torch.arange(longest) < lengths_N[:, None]

    def bag_of_words(self, tokens_BL: Tensor) -> Tensor:
        """float32 (B, vocabulary without special words): how often each word stands in the caption."""
        counts = torch.zeros(len(tokens_BL), len(SPECIAL) + len(self.words), device=tokens_BL.device)
        counts.scatter_add_(1, tokens_BL, torch.ones_like(tokens_BL, dtype=counts.dtype))
        return counts[:, len(SPECIAL) :]
