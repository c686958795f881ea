"""Captions of a part as token ids, computed once and kept on disk for the next run."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.batch import TextBatch, Tokenizer

logger = logging.getLogger(__name__)

# Below, tokenising takes less time than it is worth a file.
FEWEST_TO_KEEP = 5_000


class CaptionTokens:
    """Captions of a part, tokenised once.

    Args:
        captions: texts; any Unicode, any length (the tokeniser truncates).
        tokenizer: the model's tokeniser; None for a model that reads no words.
        folder: where token ids of large parts are kept, under a name that follows from the captions and from the
            tokeniser's fingerprint; None = nowhere. A folder that cannot be written costs time, no more.
    """

    def __init__(self, captions: Sequence[str], tokenizer: Tokenizer | None, folder: Path | None = None) -> None:
        if tokenizer is None:
            self.tokens_NL, self.mask_NL = _nothing(len(captions))
        elif folder is None or len(captions) < FEWEST_TO_KEEP:
            self.tokens_NL, self.mask_NL = _tokenize(captions, tokenizer)
        else:
            self.tokens_NL, self.mask_NL = _kept(captions, tokenizer, folder)

    def __len__(self) -> int:
        return len(self.tokens_NL)

    def lengths(self) -> Tensor:
        """int64 (N,): tokens of each caption."""
        return self.mask_NL.sum(1)

    def batch(self, ids: Tensor, video_ids: Tensor) -> TextBatch:
        """The captions `ids`, cut after the longest of them (in steps of 8, for the kernels): padding costs time."""
        mask_BL = self.mask_NL[ids]
        length = _cut_at(mask_BL)
        return TextBatch(self.tokens_NL[ids, :length].long(), mask_BL[:, :length], ids, video_ids)


class TokensOnDemand(CaptionTokens):
    """Captions of a part of millions, tokenised when a batch asks for them: their ids would not fit into memory.

    Args:
        captions: texts.
        tokenizer: the model's tokeniser.
    """

    def __init__(self, captions: Sequence[str], tokenizer: Tokenizer) -> None:
        self.captions = captions
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.captions)

    def lengths(self) -> Tensor:
        """int64 (N,): tokens of each caption; tokenises all of them, a few thousand at a time."""
        starts = range(0, len(self), FEWEST_TO_KEEP)
        found = [self.tokenizer(list(self.captions[start : start + FEWEST_TO_KEEP]))[1].sum(1) for start in starts]
        return torch.cat(found)

    def batch(self, ids: Tensor, video_ids: Tensor) -> TextBatch:
        """The captions `ids`, cut as those of `CaptionTokens`."""
        tokens_BL, mask_BL = self.tokenizer([self.captions[index] for index in ids.tolist()])
        length = _cut_at(mask_BL)
        return TextBatch(tokens_BL[:, :length].long(), mask_BL[:, :length], ids, video_ids)


def _cut_at(mask_BL: Tensor) -> int:
    """Length of a batch: that of its longest caption, in steps of 8."""
    longest = int((mask_BL * torch.arange(1, mask_BL.shape[1] + 1)).max()) if mask_BL.numel() else 1
    return min(-(-longest // 8) * 8, mask_BL.shape[1])


def _nothing(count: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(count, 0, dtype=torch.int32), torch.zeros(count, 0, dtype=torch.bool)


def _tokenize(captions: Sequence[str], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    tokens_NL, mask_NL = tokenizer(list(captions))
    # Half the memory in every worker; ids are far below 2**31.
    return tokens_NL.to(torch.int32), mask_NL


def _kept(captions: Sequence[str], tokenizer: Tokenizer, folder: Path) -> tuple[Tensor, Tensor]:
    """From the file if there is one, else tokenised and written to it."""
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    for caption in captions:
        digest.update(caption.encode("utf-8", "surrogatepass") + b"\0")
    path = folder / f"{digest.hexdigest()[:32]}.safetensors"
    if path.is_file():
        try:
            kept = load_file(path)
            return kept["tokens_NL"], kept["mask_NL"]
        except (SafetensorError, KeyError, OSError):
            logger.info("%s cannot be read; the captions are tokenised again", path)
    tokens_NL, mask_NL = _tokenize(captions, tokenizer)
    try:
        _write({"tokens_NL": tokens_NL, "mask_NL": mask_NL}, path)
    except OSError as error:
        logger.info("token ids are not kept for the next run: %s", error)
    return tokens_NL, mask_NL


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    """Several processes may tokenise the same part at the same time: each writes its own file and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, name)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
