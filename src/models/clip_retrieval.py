"""What CLIP4Clip and CLIP2Video share: the CLIP tower, its input, the logit scale, the fresh start.

Shape suffixes: B items, T frames, D joint dimension.
"""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor, nn

from src.batch import FrameSampling, FrameSpec, InputSpec, VideoBatch
from src.errors import UserError
from src.models.base import RetrievalModule
from src.models.clip_tower import ClipTower
from src.models.freeze import FreezeRule, freeze_clip
from src.models.temporal import TemporalTransformer

log = logging.getLogger(__name__)


def full_precision(x: Tensor) -> Tensor:
    """At least float32, whatever the towers computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class ClipRetrievalModule(RetrievalModule):
    """A retrieval model on CLIP's sentence and frame vectors.

    Args:
        arch: open_clip architecture; see `ClipTower`.
        pretrained: weights of the tower; see `ClipTower`.
        linear_patch: see `ClipTower`.
        frames: frames that the model asks for; its image size is replaced by the tower's.
        max_words: tokens per caption including start and end.
        head_dim: width of one attention head of the temporal layers; None takes the text tower's.
        freeze_layers: see `freeze_clip`.
        freeze_rule: see `freeze_clip`.
        gather: see `RetrievalModule`.
        same_video_positives: see `RetrievalModule`.
    """

    def __init__(
        self,
        *,
        arch: str,
        pretrained: str | None,
        linear_patch: Literal["2d", "3d"],
        frames: FrameSpec,
        max_words: int,
        head_dim: int | None,
        freeze_layers: int,
        freeze_rule: FreezeRule,
        gather: Literal["exact", "upstream"],
        same_video_positives: bool,
    ) -> None:
        super().__init__(gather=gather, same_video_positives=same_video_positives)
        self.tower = ClipTower(arch, pretrained, linear_patch)
        if frames.num_frames < 1:
            raise UserError(f"model.num_frames={frames.num_frames}, expected at least 1")
        self.frames = frames
        self.max_words = max_words
        self.heads = _temporal_heads(self.tower, head_dim)
        freeze_clip(self.tower, freeze_layers, freeze_rule)

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
        return InputSpec(tokenizer=self.tower.tokenizer(self.max_words), frames=frames)

    def after_step(self) -> None:
        self.tower.clamp_logit_scale()

    def encode_frames(self, batch: VideoBatch) -> tuple[Tensor, Tensor]:
        """Raw frame vectors (B, T, D) in float32 and their bool mask (B, T)."""
        if batch.frames_BTCHW is None or batch.mask_BT is None:
            raise UserError("this model reads frames, the data set gives none; choose a dataset with videos")
        return full_precision(self.tower.encode_frames(batch.frames_BTCHW, batch.mask_BT)), batch.mask_BT

    def exact_arithmetic(self) -> torch.autocast:
        """Everything after the towers runs in float32 under any trainer precision (upstream: fp32 always)."""
        return torch.autocast(self.device.type, enabled=False)

    def scaled_products(self, text_ND: Tensor, video_VD: Tensor) -> Tensor:
        """exp(logit_scale)·cosine (N, V) of normalised vectors."""
        return self.tower.logit_scale.exp() * (text_ND @ video_VD.T)

    def position_table(self, tokens: int) -> nn.Embedding:
        """Learned positions, one row per position of CLIP's text tower.

        Args:
            tokens: the longest sequence that will be looked up.
        """
        rows = self.tower.context_length
        if tokens > rows:
            raise UserError(
                f"model.num_frames={self.frames.num_frames} needs {tokens} positions, the table has {rows}; "
                f"set model.num_frames={self.frames.num_frames - tokens + rows} or less"
            )
        return nn.Embedding(rows, self.tower.embed_dim)

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


def _temporal_heads(tower: ClipTower, head_dim: int | None) -> int:
    width = tower.embed_dim
    if head_dim is None:
        heads = int(tower.config["text_cfg"].get("heads", 8))
        head_dim = tower.text_width // heads if width % max(tower.text_width // heads, 1) == 0 else 64
    if head_dim < 1 or width % head_dim:
        raise UserError(f"model.head_dim={head_dim} does not divide the joint dimension {width} of {tower.arch}")
    return width // head_dim


def frame_spec(num_frames: int, sampling: FrameSampling, framerate: int, frame_position: Literal[0, 1, 2]) -> FrameSpec:
    """The frames of a CLIP model: centre crop; the image size follows the architecture."""
    return FrameSpec(num_frames, image_size=0, sampling=sampling, framerate=framerate, position=frame_position)
