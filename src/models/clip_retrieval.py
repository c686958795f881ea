"""What the CLIP family shares: tower, input, head, logit scale.

Shape suffixes: B items, L words, T frames, D joint dimension.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from src.batch import (
    FrameSampling,
    FrameSpec,
    InputSpec,
    TextBatch,
    TextEmbedding,
    Tokenizer,
    VideoBatch,
    VideoEmbedding,
    WordSpec,
)
from src.errors import UserError
from src.losses.dual_softmax import DualSoftmaxLoss
from src.models.base import RetrievalModule
from src.models.clip_ocr import ClipOcr
from src.models.heads.base import Head, HeadFactory, HeadHost, TextTokens, TextTower, VideoTokens, head_class
from src.models.ocr_fusion import words_of
from src.models.temporal import MaskLayout, TemporalTransformer

log = logging.getLogger(__name__)

LossName = Literal["infonce", "dsl"]


class Tower(TextTower, Protocol):
    """What a tower of the family does; `src.models.clip_tower.ClipTower` says what each method means."""

    @property
    def image_size(self) -> int: ...
    def tokenizer(self, max_words: int) -> Tokenizer: ...
    def clamp_logit_scale(self) -> None: ...
    def encode_text(self, tokens_BL: Tensor) -> Tensor: ...
    def encode_text_tokens(self, tokens_BL: Tensor) -> tuple[Tensor, Tensor]: ...
    def check_words(self) -> None: ...
    def encode_frames(self, frames_BTCHW: Tensor, mask_BT: Tensor) -> Tensor: ...
    def speed_up(self, activation_checkpointing: bool, compile: bool) -> None: ...


def full_precision(x: Tensor) -> Tensor:
    """At least float32, whatever the towers computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class ClipRetrievalModule(RetrievalModule):
    """A tower that encodes captions and frames, and a head that compares them.

    A subclass builds its tower, calls this, adds its own layers over frames, and calls `add_head` last. Models with
    such layers, or with a tower that sees all frames at once, override `video_tokens`.

    Args:
        tower: encodes captions and frames.
        frames: frames that the model asks for; its image size is replaced by the tower's.
        max_words: tokens per caption including start and end.
        head_dim: width of one attention head of transformers over frames; None takes the text tower's.
        mask_layout: of transformers over frames; see `key_mask`.
        gather: see `RetrievalModule`.
        same_video_positives: see `RetrievalModule`.
        loss: "infonce", or "dsl": `DualSoftmaxLoss`.
        dsl_temperature: of its softmax.
        ocr: read the words in the picture too; see `src.models.clip_ocr`.
        ocr_words: at most so many of a video.
        activation_checkpointing: see `src.models.tower_speed`.
        compile: see `src.models.tower_speed`.
    """

    head: Head

    def __init__(
        self,
        *,
        tower: Tower,
        frames: FrameSpec,
        max_words: int,
        head_dim: int | None,
        mask_layout: MaskLayout,
        gather: Literal["exact", "upstream"],
        same_video_positives: bool,
        activation_checkpointing: bool,
        compile: bool,
        loss: LossName = "infonce",
        dsl_temperature: float = 1000.0,
        ocr: bool = False,
        ocr_words: int = 200,
    ) -> None:
        super().__init__(gather=gather, same_video_positives=same_video_positives)
        if loss == "dsl":
            self.contrastive = DualSoftmaxLoss(gather, same_video_positives, dsl_temperature)
        self.tower = tower
        if frames.num_frames < 1:
            raise UserError(f"model.num_frames={frames.num_frames}, expected at least 1")
        self.frames = frames
        self.max_words = max_words
        self.mask_layout: MaskLayout = mask_layout
        self.attention_heads = _attention_heads(tower, head_dim)
        if ocr and ocr_words < 1:
            raise UserError(f"model.ocr_words={ocr_words}, expected at least 1; model.ocr=false reads none")
        self.ocr_words = ocr_words if ocr else 0
        self.ocr: ClipOcr | None = None
        if activation_checkpointing or compile:
            tower.speed_up(activation_checkpointing, compile)

    def host(self) -> HeadHost:
        """What a head, or a layer over frames, may know of this model."""
        return HeadHost(self.tower, self.frames.num_frames, self.max_words, self.attention_heads, self.mask_layout)

    def add_head(self, head: HeadFactory) -> None:
        """Make the head, and behind it what reads words in the picture.

        Raises:
            UserError: the class is no head, or reads words of a tower that gives none.
        """
        self.similarity_is_pairwise = head_class(head).pairwise
        if head_class(head).reads_words:  # now rather than after the first batch was read
            self.tower.check_words()
        self.head = head(self.host())
        if self.ocr_words:
            self.ocr = ClipOcr(self.encode_words, self.tower.embed_dim, self.attention_heads)

    @property
    def input_spec(self) -> InputSpec:
        frames = FrameSpec(
            num_frames=self.frames.num_frames,
            image_size=self.tower.image_size,
            sampling=self.frames.sampling,
            framerate=self.frames.framerate,
            position=self.frames.position,
            resize=self.frames.resize,
        )
        tokenizer = self.tower.tokenizer(self.max_words)
        words = WordSpec(tokenizer, self.ocr_words) if self.ocr_words else None
        return InputSpec(tokenizer=tokenizer, frames=frames, words=words)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint of the model without OCR fits: what reads words then stays as it starts, adding zero."""
        state = checkpoint["state_dict"]
        if self.ocr is None or any(name.startswith("ocr.") for name in state):
            return
        log.warning("the checkpoint was trained without model.ocr=true: until training, OCR changes none of its scores")
        checkpoint["state_dict"] = {**state, **self.ocr.state_dict(prefix="ocr.")}

    def after_step(self) -> None:
        self.tower.clamp_logit_scale()

    def exact_arithmetic(self) -> torch.autocast:
        """Everything after the towers runs in float32 under any trainer precision (upstream: fp32 always)."""
        return torch.autocast(self.device.type, enabled=False)

    def encode_text(self, batch: TextBatch) -> TextEmbedding:
        """The parts that the head keeps of captions."""
        tokens = self.text_tokens(batch)
        with self.exact_arithmetic():
            return TextEmbedding(ids=batch.ids, parts=self.head.text_parts(tokens), video_ids=batch.video_ids)

    def encode_video(self, batch: VideoBatch) -> VideoEmbedding:
        """The parts that the head keeps of videos."""
        tokens = self.video_tokens(batch)
        if self.ocr is not None:
            tokens = self.ocr(tokens, words_of(batch))
        with self.exact_arithmetic():
            return VideoEmbedding(ids=batch.ids, parts=self.head.video_parts(tokens))

    def text_tokens(self, batch: TextBatch) -> TextTokens:
        """What the tower makes of captions."""
        if not self.head.reads_words:
            return TextTokens(full_precision(self.tower.encode_text(batch.tokens_BL)), batch.mask_BL)
        tokens_BL, mask_BL = batch.tokens_BL, batch.mask_BL
        if self.head.reads_padding:
            padding = (0, self.max_words - tokens_BL.shape[1])
            tokens_BL, mask_BL = F.pad(tokens_BL, padding), F.pad(mask_BL, padding)
        sentence_BD, words_BLD = self.tower.encode_text_tokens(tokens_BL)
        return TextTokens(full_precision(sentence_BD), mask_BL, full_precision(words_BLD))

    @cached_property
    def padding_id(self) -> int:
        """What the tokeniser puts behind a short text."""
        tokens_1L, mask_1L = self.tower.tokenizer(self.max_words)([" "])
        return 0 if mask_1L[0, -1] else int(tokens_1L[0, -1])

    def encode_words(self, tokens_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """Words in the picture, each a caption of its own (N, D), as `text_tokens` encodes sentences."""
        if not self.tower.is_plain:  # such towers look at padding; ids behind a word need not be their tokeniser's
            tokens_NL = tokens_NL.masked_fill(~mask_NL, self.padding_id)
            if tokens_NL.shape[1] < self.max_words:
                tokens_NL = F.pad(tokens_NL, (0, 1), value=self.padding_id)
        return full_precision(self.tower.encode_text(tokens_NL))

    def video_tokens(self, batch: VideoBatch) -> VideoTokens:
        """What the tower, and layers over frames where there are some, make of videos."""
        frames_BTD, mask_BT = self.encode_frames(batch)
        return VideoTokens(frames_BTD, mask_BT, ordered_BTD=frames_BTD)

    def encode_frames(self, batch: VideoBatch) -> tuple[Tensor, Tensor]:
        """Raw frame vectors (B, T, D) in float32 and their bool mask (B, T)."""
        frames_BTCHW, mask_BT = pixels(batch)
        return full_precision(self.tower.encode_frames(frames_BTCHW, mask_BT)), mask_BT

    def depends_on_batch(self) -> str:
        if any(isinstance(part, TemporalTransformer) and part.mask_layout == "upstream" for part in self.modules()):
            return "model.mask_layout=upstream, whose attention sees the padding of other videos"
        return super().depends_on_batch()

    def similarity(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        return self.head.similarity(text, video, self.tower.logit_scale)

    def loss(self, text: TextEmbedding, video: VideoEmbedding) -> dict[str, Tensor]:
        return self.head.loss(self.contrastive, text, video, self.tower.logit_scale)


def pixels(batch: VideoBatch) -> tuple[Tensor, Tensor]:
    """Frames (B, T, C, H, W) and their bool mask (B, T)."""
    if batch.frames_BTCHW is None or batch.mask_BT is None:
        raise UserError("this model reads frames, the data set gives none; choose a dataset with videos")
    return batch.frames_BTCHW, batch.mask_BT


def _attention_heads(tower: Tower, head_dim: int | None) -> int:
    width = tower.embed_dim
    if head_dim is None:
        per_head = tower.text_width // max(tower.text_heads, 1)
        head_dim = per_head if width % max(per_head, 1) == 0 else 64
    if head_dim < 1 or width % head_dim:
        raise UserError(f"model.head_dim={head_dim} does not divide the joint dimension {width} of {tower.arch}")
    return width // head_dim


def frame_spec(num_frames: int, sampling: FrameSampling, framerate: int, frame_position: Literal[0, 1, 2]) -> FrameSpec:
    """The frames of a CLIP model: centre crop; the image size follows the architecture."""
    return FrameSpec(num_frames, image_size=0, sampling=sampling, framerate=framerate, position=frame_position)
