"""Words to ids by a closed list of words, as recurrent text encoders use it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.errors import UserError

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


def read_vocabulary(path: str | Path) -> VocabularyTokenizer:
    """The tokenizer of a JSON file of words.

    Raises:
        UserError: no such file, or not such a one.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"no vocabulary at {path}; write it with task=prepare task.steps=[vocabulary], or bring a published one "
            "with task=convert task.source=word_vocab_5.pkl"
        ) from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is no JSON file ({error}), expected a vocabulary; write it again") from None
    words = content.get("words") if isinstance(content, dict) else None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words) or len(set(words)) < len(words):
        raise UserError(f'{path} holds no list of different "words"; write it again with task=prepare')
    return VocabularyTokenizer(tuple(words))


def read_concept_list(path: str | Path | None, size: int) -> tuple[str, ...]:
    """Names of the concepts: the list `concepts` of a JSON file, or a bare list; none without a file.

    Raises:
        UserError: a file that holds no such list, or one of another length.
    """
    if path is None or not Path(path).is_file():
        return ()
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is no JSON file ({error}), expected concepts; write it again") from None
    words = content.get("concepts") if isinstance(content, dict) else content
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{path} holds no list of concepts; write it again by task=prepare task.steps=[concepts]")
    if len(words) != size:
        raise UserError(
            f"{path} names {len(words)} concepts, expected model.num_concepts={size}; set model.num_concepts="
            f"{len(words)}, or model.concept_list=null for weights that were trained with others"
        )
    return tuple(words)


def check_same_words(trained: Sequence[str] | None, ours: Sequence[str], option: str) -> None:
    """Refuse weights whose rows and columns mean other words than ours; either list may be unknown.

    Args:
        trained: the words with which the weights were trained, in order.
        ours: the words here.
        option: where ours come from.

    Raises:
        UserError: names the first difference.
    """
    if not trained or not ours or list(trained) == list(ours):
        return
    pairs = zip(trained, ours, strict=False)
    place = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(trained), len(ours)))
    theirs, own = (repr(words[place]) if place < len(words) else "none" for words in (trained, ours))
    raise UserError(
        f"{option}: found {len(ours)} words with {own} at place {place}, expected the {len(trained)} with which the "
        f"weights were trained, {theirs} there; give {option} the file of that training"
    )


def read_word_vectors(path: str | Path, tokenizer: VocabularyTokenizer, dim: int) -> Tensor:
    """float32 (special words and words, dim): the vectors of a file, random ones in ±1 for all words without.

    Args:
        path: .npy with one row per word; NAME_found.npy beside it says which words have a vector (all, if absent).
        tokenizer: the words.
        dim: length of a vector.

    Raises:
        UserError: no such file, or not of these words and this length.

    Source: hybrid_space model.py init_weights @ b934eff, `get_we_parameter`.
    """
    path = Path(path)
    if not path.is_file() or path.suffix != ".npy":
        raise UserError(
            f"model.word_vectors={path} is no .npy file; write it with task=prepare task.steps=[vocabulary] from a "
            "table of word vectors, or set model.word_vectors=null (an evaluation needs none)"
        )
    rows_ND = np.load(path, allow_pickle=False)
    beside = path.with_name(f"{path.stem}_found.npy")
    found_N = np.load(beside, allow_pickle=False) if beside.is_file() else np.ones(len(rows_ND), dtype=bool)
    if rows_ND.shape != (len(tokenizer.words), dim) or len(found_N) != len(rows_ND):
        raise UserError(
            f"{path} holds vectors of shape {rows_ND.shape}, expected ({len(tokenizer.words)}, {dim}): one of length "
            "model.word_dim for each word of the vocabulary; write both again with task=prepare task.steps=[vocabulary]"
        )
    table = torch.empty(len(SPECIAL) + len(rows_ND), dim, device="cpu").uniform_(-1, 1)
    table[len(SPECIAL) :][torch.from_numpy(found_N)] = torch.from_numpy(rows_ND[found_N]).float()
    return table
