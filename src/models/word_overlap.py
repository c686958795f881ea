"""Retrieval without parameters: how many words a caption shares with the writing in a video.

Shape suffixes: N texts, L words of a caption, T captions, V videos, K words of a video.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WORDS_OF_VIDEO = 20  # the best-scored ones
SHORTEST = 4  # characters of a word that counts
NO_WORD = 0  # id of an empty place


@dataclass(frozen=True)
class WholeWords:
    """Every distinct word of a text as one id, a hash; in the order in which they appear.

    Words are what blanks separate, with their punctuation, in lower case; shorter ones than four characters are left
    out. 31 bits: among ten thousand words, two share an id in one case out of forty.

    Attributes:
        max_words: further words of a text are left out.
    """

    max_words: int

    @property
    def fingerprint(self) -> str:
        return f"whole words, from {SHORTEST} characters, lower case, {self.max_words}"

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return int64 tokens_NL and bool mask_NL."""
        rows = [self._ids(caption) for caption in captions]
        tokens_NL = torch.full((len(rows), self.max_words), NO_WORD)
        for row, ids in enumerate(rows):
            tokens_NL[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return tokens_NL, tokens_NL != NO_WORD

    def _ids(self, caption: str) -> list[int]:
        words = dict.fromkeys(word for word in caption.lower().split() if len(word) >= SHORTEST)
        return [word_id(word) for word in words][: self.max_words]


def word_id(word: str) -> int:
    """The same in every process and run; never `NO_WORD`."""
    digest = hashlib.blake2b(word.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % (2**31 - 1) + 1


def shared_words(text_TL: Tensor, video_VK: Tensor) -> Tensor:
    """Number of words that a caption and a video have in common, float32 (T, V).

    Args:
        text_TL: distinct ids of each caption, `NO_WORD` in empty places.
        video_VK: ids of each video; repeated ones count once.

    Source: TextVR model/model.py, version "offline" @ ae16786.
    Deviates: upstream returns videos in rows and hands that to the metrics as if captions were, so that its
        text-to-video figures are those of video-to-text; here rows are captions as everywhere. Most pairs share no
        word and tie: upstream takes the mean rank of equal scores, `ties=average`.
    """
    counts_TV = torch.zeros(len(text_TL), len(video_VK), device=text_TL.device)
    for words_T in text_TL.unbind(dim=1):
        if bool((words_T != NO_WORD).any()):
            found_TV = (words_T[:, None, None] == video_VK).any(dim=-1) & (words_T != NO_WORD)[:, None]
            counts_TV += found_TV
    return counts_TV
