"""What every head is, what it is given, and what it may know of the model that it sits on.

Shape suffixes: B items, L words, T frames, X extra tokens, D joint dimension, N captions, V videos.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.losses.infonce import SymmetricInfoNCE
from src.models.temporal import MaskLayout, TemporalTransformer

log = logging.getLogger(__name__)


class TextTower(Protocol):
    """What fresh layers copy from a CLIP tower, and the scale that they share with it."""

    arch: str
    is_plain: bool
    clip: Any

    @property
    def embed_dim(self) -> int: ...
    @property
    def text_width(self) -> int: ...
    @property
    def text_heads(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def logit_scale(self) -> Tensor: ...
    def freeze_logit_scale(self) -> None: ...


@dataclass(frozen=True)
class TextTokens:
    """Captions as the tower gives them: float32, not normalised.

    Attributes:
        sentence_BD: one vector per caption.
        mask_BL: bool, True on real tokens (start and end tokens included).
        words_BLD: projected token vectors; None unless the head `reads_words`.
    """

    sentence_BD: Tensor
    mask_BL: Tensor
    words_BLD: Tensor | None = None

    def padded_words(self, length: int) -> tuple[Tensor, Tensor]:
        """Words (B, length, D), 0 where there are none, and their mask: L differs between batches."""
        assert self.words_BLD is not None, "a head that reads words says reads_words = True"
        more = length - self.mask_BL.shape[1]
        words_BLD = self.words_BLD.masked_fill(~self.mask_BL[..., None], 0.0)
        return F.pad(words_BLD, (0, 0, 0, more)), F.pad(self.mask_BL, (0, more), value=False)


@dataclass(frozen=True)
class VideoTokens:
    """Videos as the tower and the temporal layers of the model give them: float32, not normalised.

    Attributes:
        frames_BTD: each frame by itself.
        mask_BT: bool, True on real frames.
        ordered_BTD: frames that know of each other; `frames_BTD` where the model has no temporal layers.
        extra_BXD: further tokens of the video, for a head that `reads_extra`; None where the model has none.
        extra_mask_BX: bool, their mask.
        pooled_BD: the one vector of a tower that sees all frames at once; None for other towers.
    """

    frames_BTD: Tensor
    mask_BT: Tensor
    ordered_BTD: Tensor
    extra_BXD: Tensor | None = None
    extra_mask_BX: Tensor | None = None
    pooled_BD: Tensor | None = None


@dataclass(frozen=True)
class HeadHost:
    """The model from the view of a head that is being made; heads do not keep it.

    Attributes:
        tower: fresh layers start from its text tower.
        num_frames: frames per video (T).
        max_words: tokens per caption (most of L).
        attention_heads: of transformers over frames.
        mask_layout: of transformers over frames, see `src.models.temporal.key_mask`.
    """

    tower: TextTower
    num_frames: int
    max_words: int
    attention_heads: int
    mask_layout: MaskLayout = "per_video"

    @property
    def width(self) -> int:
        """Joint dimension D."""
        return self.tower.embed_dim

    def position_table(self, tokens: int) -> nn.Embedding:
        """Learned positions, one row per position of CLIP's text tower.

        Args:
            tokens: the longest sequence that will be looked up.
        """
        rows = self.tower.context_length
        if tokens > rows:
            raise UserError(
                f"model.num_frames={self.num_frames} needs {tokens} positions, the table has {rows}; "
                f"set model.num_frames={self.num_frames - tokens + rows} or less"
            )
        return nn.Embedding(rows, self.width)

    def temporal_transformer(self, layers: int) -> TemporalTransformer:
        """A transformer over the frames of this model."""
        return TemporalTransformer(self.width, layers, self.attention_heads, self.mask_layout)

    def start_from_text_tower(self, tables: list[nn.Embedding], transformers: list[TemporalTransformer]) -> None:
        """Fresh start: copy CLIP's text positions and blocks into position tables and temporal transformers.

        Transformers deeper than the text tower keep random upper blocks.

        Source: CLIP4Clip modules/modeling.py from_pretrained @ 508ffa3; the paper's "image encoder" is a
            slip, the author confirmed the text encoder (issue 60).
        """
        tower = self.tower
        if not tower.is_plain or tower.text_width != tower.embed_dim:
            log.info("temporal layers start at random: the text tower of %s has another shape", tower.arch)
            return
        blocks = tower.clip.transformer.resblocks
        with torch.no_grad():
            for table in tables:
                table.weight.copy_(tower.clip.positional_embedding[: len(table.weight)])
            for transformer in transformers:
                for own, source in zip(transformer.resblocks, blocks, strict=False):
                    own.load_state_dict(source.state_dict(), strict=True)


class Head(nn.Module, ABC):
    """Turns tokens into what is kept of a caption or video, and scores pairs of these.

    A subclass takes the host first, then plain options, and has a file in conf/model/head.
    """

    reads_words = False
    """Wants the token vectors of captions."""

    reads_padding = False
    """Wants those of padding too: the tower gets captions of `max_words` tokens."""

    reads_sentence = True
    """Wants the vector of the whole caption."""

    reads_frames = True
    """Wants a vector per frame; else a tower that has one vector for the whole video gives only that."""

    reads_extra = False
    """Wants the further video tokens of a model that has some."""

    pairwise = False
    """True when `similarity` runs trained layers on every pair; see `RetrievalModule.similarity_is_pairwise`."""

    @abstractmethod
    def text_parts(self, text: TextTokens) -> dict[str, Tensor]:
        """What `TextEmbedding.parts` keeps; the first dimension is the caption, the others are fixed."""

    @abstractmethod
    def video_parts(self, video: VideoTokens) -> dict[str, Tensor]:
        """What `VideoEmbedding.parts` keeps; the first dimension is the video, the others are fixed."""

    @abstractmethod
    def similarity(self, text: TextEmbedding, video: VideoEmbedding, logit_scale: Tensor) -> Tensor:
        """Scores (N, V); `logit_scale` is the tower's scalar, cosines are multiplied by its exponential."""

    def loss(
        self, contrastive: SymmetricInfoNCE, text: TextEmbedding, video: VideoEmbedding, logit_scale: Tensor
    ) -> dict[str, Tensor]:
        """Training loss of this process's pairs; "loss" is minimised, other entries are logged."""
        return {"loss": contrastive(lambda t, v: self.similarity(t, v, logit_scale), text, video)}


HeadFactory = type[Head] | partial[Head]
"""A head that still lacks its host: the class, or the class with options."""


def head_class(head: HeadFactory) -> type[Head]:
    """The class that the factory makes."""
    kind = head.func if isinstance(head, partial) else head
    if not (isinstance(kind, type) and issubclass(kind, Head)):
        raise UserError(f"model.head makes a {kind}, expected a Head; choose a file of conf/model/head")
    return kind


def scaled_cosines(text_ND: Tensor, video_VD: Tensor, logit_scale: Tensor) -> Tensor:
    """exp(logit_scale)·cosine (N, V) of normalised vectors."""
    return logit_scale.exp() * (text_ND @ video_VD.T)
