"""Captions to token ids.

Only the merge table of open_clip is read, the package itself is not imported: tokenisers travel to the
loader's worker processes, where importing it would cost seconds each.
"""

from __future__ import annotations

import gzip
import html
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import ftfy
import regex
import torch
from torch import Tensor

from src.errors import UserError

FULL_VOCABULARY = 49408
BYTE_TOKENS = 512  # 256 bytes, alone and at the end of a word
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
END_OF_WORD = "</w>"
# Contractions, runs of letters, single digits, runs of anything else.
WORDS = regex.compile(
    "|".join(regex.escape(s) for s in SPECIAL) + r"|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


def _byte_characters() -> dict[int, str]:
    """One visible character for each byte, in the order of the vocabulary.

    Bytes that print as themselves come first; the others are shifted above 255.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


@dataclass(frozen=True)
class _Tables:
    """Look-up tables of one vocabulary."""

    ids: dict[str, int]
    ranks: dict[tuple[str, str], int]
    characters: dict[int, str]
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)  # memory of words seen


@cache
def _tables(vocab_size: int) -> _Tables:
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise UserError("open_clip is not installed, its merge table is needed; run pip install open_clip_torch")
    packed = (Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")
    count = vocab_size - BYTE_TOKENS - len(SPECIAL)
    merges = [(left, right) for left, right in (line.split() for line in lines[1 : count + 1])]
    characters = _byte_characters()
    single = list(characters.values())
    pieces = [*single, *(c + END_OF_WORD for c in single), *("".join(pair) for pair in merges), *SPECIAL]
    return _Tables(
        ids={piece: i for i, piece in enumerate(pieces)},
        ranks={pair: rank for rank, pair in enumerate(merges)},
        characters=characters,
    )


def _merge(word: str, ranks: dict[tuple[str, str], int]) -> tuple[str, ...]:
    """Join neighbouring pieces, best-ranked pair first and everywhere it stands, until no pair is known."""
    pieces = [*word[:-1], word[-1] + END_OF_WORD]
    while len(pieces) > 1:
        best = min(pairwise(pieces), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        joined: list[str] = []
        position = 0
        while position < len(pieces):
            if tuple(pieces[position : position + 2]) == best:
                joined.append(pieces[position] + pieces[position + 1])
                position += 2
            else:
                joined.append(pieces[position])
                position += 1
        pieces = joined
    return tuple(pieces)


@dataclass(frozen=True)
class ClipTokenizer:
    """CLIP's lower-case byte-level BPE with a fixed length.

    Attributes:
        max_words: tokens per caption including start and end; longer captions lose their tail, not the end token.
        vocab_size: 49408, or less to keep only the most frequent merges. Ids of the kept merges stay as
            they are; start and end are always the two largest ids.

    Raises:
        UserError: a size that leaves no room for the bytes or for any word.

    Source: OpenAI CLIP simple_tokenizer.py; CLIP4Clip dataloaders/*_retrieval.py _get_text @ 508ffa3.
    """

    max_words: int
    vocab_size: int = FULL_VOCABULARY

    def __post_init__(self) -> None:
        smallest = BYTE_TOKENS + len(SPECIAL)
        if not smallest <= self.vocab_size <= FULL_VOCABULARY:
            raise UserError(
                f"vocab_size={self.vocab_size}, expected {smallest} to {FULL_VOCABULARY}; change the architecture"
            )
        if self.max_words < 3:
            raise UserError(f"model.max_words={self.max_words}, expected at least 3 (start, one word, end)")

    @property
    def fingerprint(self) -> str:
        return f"clip-bpe-1 ftfy {ftfy.__version__} max_words={self.max_words} vocab_size={self.vocab_size}"

    @property
    def start_id(self) -> int:
        return self.vocab_size - 2

    @property
    def end_id(self) -> int:
        return self.vocab_size - 1

    def pieces(self, caption: str) -> list[str]:
        """The caption's sub-words, without start and end."""
        tables = _tables(self.vocab_size)
        text = " ".join(html.unescape(html.unescape(ftfy.fix_text(caption))).split()).lower()
        found: list[str] = []
        for word in WORDS.findall(text):
            if word in SPECIAL:
                found.append(word)
                continue
            key = "".join(tables.characters[byte] for byte in word.encode("utf-8"))
            if key not in tables.words:
                tables.words[key] = _merge(key, tables.ranks)
            found.extend(tables.words[key])
        return found

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return int64 tokens_NL, padded with 0, and bool mask_NL."""
        ids = _tables(self.vocab_size).ids
        tokens_NL = torch.zeros(len(captions), self.max_words, dtype=torch.int64)
        mask_NL = torch.zeros(len(captions), self.max_words, dtype=torch.bool)
        for row, caption in enumerate(captions):
            inner = [ids[piece] for piece in self.pieces(caption)][: self.max_words - 2]
            tokens = [self.start_id, *inner, self.end_id]
            tokens_NL[row, : len(tokens)] = torch.tensor(tokens)
            mask_NL[row, : len(tokens)] = True
        return tokens_NL, mask_NL


@dataclass(frozen=True)
class PretrainedTokenizer:
    """The tokeniser that open_clip names for an architecture with a foreign vocabulary (SigLIP, HF text towers)."""

    arch: str
    max_words: int

    @property
    def fingerprint(self) -> str:
        return f"open_clip {importlib.metadata.version('open_clip_torch')} {self.arch} max_words={self.max_words}"

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return int64 tokens_NL and bool mask_NL; the mask ends at the first repeated last id (padding)."""
        tokens_NL = _foreign(self.arch)(list(captions), context_length=self.max_words)
        padding = tokens_NL == tokens_NL[:, -1:]
        # Trailing run of one id = padding, except its first token.
        trailing = padding.flip(1).int().cumprod(1).flip(1).bool()
        trailing[:, 1:] &= trailing[:, :-1].clone()
        return tokens_NL.long(), ~trailing


@cache
def _foreign(arch: str) -> Any:
    import open_clip  # here: see the module docstring

    try:
        return open_clip.get_tokenizer(arch)
    except (OSError, ImportError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(
            f"the tokeniser of model.arch={arch} could not be loaded ({reason}); "
            "it comes from the Hugging Face hub: fetch it once with network and the `text` extra, "
            "or use an architecture with CLIP's own vocabulary"
        ) from None
