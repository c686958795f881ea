"""Captions to the token ids of a transformers folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.errors import UserError


@dataclass(frozen=True)
class HfTokenizer:
    """The tokeniser of a transformers folder, with a fixed length.

    It holds the folder's name only, so that it travels to other processes; transformers is imported when it is used.

    Attributes:
        folder: with tokenizer.json or the older vocabulary files.
        max_words: tokens per caption, special ones included; longer captions are cut as the tokeniser does it.
        pad_id: id of padding where the tokeniser names none; None = it has to.
        trust: run the Python files that the folder brings.
    """

    folder: str
    max_words: int
    pad_id: int | None = None
    trust: bool = False

    @property
    def fingerprint(self) -> str:
        return f"transformers {importlib.metadata.version('transformers')} {_digest(self.folder)} {self.max_words}"

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return int64 tokens_NL, padded at the end, and bool mask_NL."""
        tokenizer = _loaded(self.folder, self.trust)
        rows = tokenizer(
            list(captions), truncation=True, max_length=self.max_words, padding=False, return_attention_mask=False
        )["input_ids"]
        tokens_NL = torch.full((len(rows), self.max_words), self.padding, dtype=torch.int64)
        mask_NL = torch.zeros(len(rows), self.max_words, dtype=torch.bool)
        for row, ids in enumerate(rows):
            tokens_NL[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
            mask_NL[row, : len(ids)] = True
        return tokens_NL, mask_NL

    @property
    def padding(self) -> int:
        """Id that fills the end of short captions."""
        found = self.pad_id if self.pad_id is not None else _loaded(self.folder, self.trust).pad_token_id
        if found is None:
            raise UserError(f"the tokeniser in {self.folder} has no padding token; set model.pad_id=ID")
        return int(found)


@cache
def _loaded(folder: str, trust: bool) -> Any:
    from transformers import AutoTokenizer  # here: it takes seconds

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the tokeniser in {folder} cannot be loaded ({reason}); copy the folder again with all its files"
        ) from None


@cache
def _digest(folder: str) -> str:
    """SHA-256 of the small text files of the folder, on which the ids depend."""
    files = sorted(p for p in Path(folder).iterdir() if p.suffix in (".json", ".txt", ".model"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
