"""A dual encoder of transformers, or one that looks like it, as the tower of a retrieval model.

Shape suffixes: B items, T frames, C channels, H height, W width, L tokens, D joint dimension, N frames of all items.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.batch import Tokenizer
from src.errors import UserError
from src.models import tower_speed
from src.models.clip_tower import MAX_LOGIT_SCALE, normalise_frames
from src.models.hf_folder import HfFolder, Preprocessing
from src.models.hf_tokenizer import HfTokenizer
from src.models.tokenizer import ClipTokenizer

Layout = Literal["BTCHW", "BCTHW"]

VIDEO_METHODS = ("get_video_features", "get_vid_features", "get_vid_feat", "encode_video")
IMAGE_METHODS = ("get_image_features", "encode_image")
TEXT_METHODS = ("get_text_features", "get_txt_feat", "encode_text")
# Trained on captions padded to one length, whose last position is the caption's vector.
FIXED_LENGTH = ("siglip", "siglip2")
# Parameters that the two encoders do not use: X-CLIP's prompts for class names, SigLIP's bias of its sigmoid loss.
UNUSED = ("prompts_", "logit_bias")


@dataclass(frozen=True)
class Calls:
    """How the network is asked for vectors; None = found by the names that published classes use.

    Attributes:
        text: method that takes token ids, and `attention_mask` where it has such an argument.
        video: method that takes whole videos, or single frames; whichever it is, `frames` says.
        frames: True = `video` takes frames (N, C, H, W), each by itself.
        layout: axes of whole videos.
    """

    text: str
    video: str
    frames: bool
    layout: Layout = "BTCHW"

    @classmethod
    def find(cls, network: nn.Module, text: str | None, video: str | None, layout: Layout) -> Calls:
        """Look for the methods.

        Raises:
            UserError: the network has none of these names.
        """
        text = text or _first(network, TEXT_METHODS, "model.text_method")
        video = video or _first(network, VIDEO_METHODS + IMAGE_METHODS, "model.video_method")
        for name, option in ((text, "model.text_method"), (video, "model.video_method")):
            if not callable(getattr(network, name, None)):
                raise UserError(f"{type(network).__name__} has no method {name}; set {option} to one that it has")
        return cls(text, video, video in IMAGE_METHODS, layout)


class HfTower(nn.Module):
    """The tower interface of `src.models.clip_retrieval.Tower` over a network of a transformers folder.

    Args:
        folder: where it is.
        network: the network itself.
        calls: how it is asked.
        preprocessing: what it expects of frames.
        num_frames: whole videos are filled up to this number by their last frame; unused for single frames.
        temperature: cosines are divided by it, in training, where the network has no `logit_scale` of its own.

    Raises:
        UserError: config.json does not say how long the vectors are.
    """

    is_plain = False
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        folder: HfFolder,
        network: nn.Module,
        *,
        calls: Calls,
        preprocessing: Preprocessing,
        num_frames: int,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.arch = type(network).__name__
        self.clip = network
        self.calls = calls
        self.preprocessing = preprocessing
        self.num_frames = num_frames
        own = getattr(network, "logit_scale", None)
        self.own_scale = None if isinstance(own, nn.Parameter) else nn.Parameter(torch.tensor(-math.log(temperature)))
        # A published scale above CLIP's limit (SigLIP's 117) stays as it is.
        start = self.logit_scale.detach()
        self.scale_limit = MAX_LOGIT_SCALE if start.is_meta else max(MAX_LOGIT_SCALE, float(start.max()))
        self.register_buffer("mean", torch.tensor(preprocessing.mean), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std), persistent=False)
        for name, parameter in network.named_parameters():
            if name.startswith(UNUSED):
                parameter.requires_grad_(False)

    @property
    def image_size(self) -> int:
        return self.preprocessing.image_size

    @property
    def embed_dim(self) -> int:
        found = self.folder.setting(
            "projection_dim", "embed_dim", "text_config.projection_size", "text_config.projection_dim",
            "vision_config.hidden_size", "hidden_size",
        )  # fmt: skip
        if found is None:
            raise UserError(f"{self.folder.path}/config.json does not say how long vectors are; add projection_dim")
        return int(found)

    @property
    def text_width(self) -> int:
        return int(self.folder.setting("text_config.hidden_size", "text_config.width") or self.embed_dim)

    @property
    def text_heads(self) -> int:
        return int(self.folder.setting("text_config.num_attention_heads") or max(1, self.text_width // 64))

    @property
    def context_length(self) -> int:
        return int(self.folder.setting("text_config.max_position_embeddings", "max_txt_l") or 77)

    @property
    def logit_scale(self) -> Tensor:
        """Scalar; its exponential multiplies cosines."""
        return self._scale.squeeze()

    @property
    def _scale(self) -> Tensor:
        """The parameter itself, of one element: SigLIP's has a dimension."""
        scale: Tensor = self.clip.logit_scale if self.own_scale is None else self.own_scale  # type: ignore[assignment]
        return scale

    def freeze_logit_scale(self) -> None:
        """For a head that does not read it: without a gradient it would stall distributed training."""
        self._scale.requires_grad_(False)

    def clamp_logit_scale(self) -> None:
        """Keep exp(logit_scale) at most 100, or what it was at the start."""
        with torch.no_grad():
            self.logit_scale.clamp_(max=self.scale_limit)

    def speed_up(self, activation_checkpointing: bool, compile: bool) -> None:
        """Recompute the blocks' activations, or compile the blocks: see `src.models.tower_speed`."""
        tower_speed.speed_up(self.clip, activation_checkpointing, compile)

    def tokenizer(self, max_words: int) -> Tokenizer:
        """The folder's own, or CLIP's byte pairs where it has none."""
        if max_words > self.context_length:
            raise UserError(
                f"model.max_words={max_words} is more than the {self.context_length} positions of {self.arch}; "
                f"set model.max_words={self.context_length} or less"
            )
        if self.folder.tokenizer_files:
            return HfTokenizer(str(self.folder.path), max_words, trust=self.folder.trust)
        size = self.folder.setting("text_config.vocab_size", "vocab_size")
        end = self.folder.setting("text_config.eos_token_id")
        if size is None or end not in (2, size - 1):  # 2: what older CLIP folders say of the last id
            raise UserError(
                f"{self.folder.path} has no tokenizer.json and its vocabulary is not CLIP's "
                f"(vocab_size {size}, eos_token_id {end}); copy the tokenizer's files into it"
            )
        return ClipTokenizer(max_words, int(size))

    @property
    def fixed_length(self) -> bool:
        """Whether captions are always as long as the tokeniser pads them, and padding is read like words."""
        return self.folder.setting("model_type") in FIXED_LENGTH

    def encode_text(self, tokens_BL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Sentence vectors (B, D), not normalised unless the network does it."""
        return _vectors(self._text(tokens_BL, mask_BL), self.calls.text)

    def encode_text_tokens(self, tokens_BL: Tensor, mask_BL: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sentence vectors (B, D) and projected token vectors (B, L, D).

        Raises:
            UserError: the network gives no states of tokens, or projects them in another way than CLIP.
        """
        self.check_words()
        found = self._text(tokens_BL, mask_BL)
        states_BLM = getattr(found, "last_hidden_state", None)
        if states_BLM is None:
            raise self._no_words()
        return _vectors(found, self.calls.text), self.clip.text_projection(states_BLM)  # type: ignore[operator]

    def check_words(self) -> None:
        """Refuse to be the tower of a head that reads words, where they have no projection of their own."""
        if not isinstance(getattr(self.clip, "text_projection", None), nn.Linear):
            raise self._no_words()

    def _no_words(self) -> UserError:
        return UserError(
            f"{self.arch} gives one vector per caption, this head reads its words; choose model.head=meanP"
        )

    def _text(self, tokens_BL: Tensor, mask_BL: Tensor | None) -> Any:
        method = getattr(self.clip, self.calls.text)
        known = _arguments(method)
        mask = {"attention_mask": mask_BL.long()} if mask_BL is not None and "attention_mask" in known else {}
        return method(tokens_BL, **({} if self.fixed_length else mask))

    def encode_frames(self, frames_BTCHW: Tensor, mask_BT: Tensor) -> Tensor:
        """Frame vectors (B, T, D), each frame by itself; zeros where there is none.

        Args:
            frames_BTCHW: uint8 RGB, or float frames that are already normalised.
            mask_BT: bool; padded frames are not encoded.
        """
        self._check_size(frames_BTCHW)
        valid_BT = mask_BT | ~mask_BT.any(dim=1, keepdim=True)  # a batch may be all padding, and needs a shape
        pixels_NCHW = normalise_frames(frames_BTCHW[valid_BT], self.mean, self.std)
        found_ND = _vectors(getattr(self.clip, self.calls.video)(pixels_NCHW), self.calls.video)
        frames_BTD = found_ND.new_zeros(*mask_BT.shape, found_ND.shape[-1])
        frames_BTD[valid_BT] = found_ND
        return frames_BTD.masked_fill(~mask_BT[..., None], 0.0)

    def encode_video(self, frames_BTCHW: Tensor, mask_BT: Tensor) -> Tensor:
        """Vectors of whole videos (B, D); short videos repeat their last frame, since these networks know no mask."""
        self._check_size(frames_BTCHW)
        last_B1 = (mask_BT.sum(dim=1, keepdim=True) - 1).clamp_min(0)
        place_BT = torch.minimum(torch.arange(self.num_frames, device=mask_BT.device)[None], last_B1)
        rows_B1 = torch.arange(len(mask_BT), device=mask_BT.device)[:, None]
        pixels = normalise_frames(frames_BTCHW[rows_B1, place_BT], self.mean, self.std)
        if self.calls.layout == "BCTHW":
            pixels = pixels.transpose(1, 2)
        found = _vectors(getattr(self.clip, self.calls.video)(pixels), self.calls.video, of_frames=True)
        return found.masked_fill(~mask_BT.any(dim=1, keepdim=True), 0.0)

    def _check_size(self, frames_BTCHW: Tensor) -> None:
        height, width = frames_BTCHW.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            raise UserError(
                f"frames are {height}×{width} px, {self.arch} was built for {self.image_size}×{self.image_size}; "
                "prepare the frame cache for this model"
            )


def pad_words(tokens_BL: Tensor, mask_BL: Tensor, length: int, padding: int) -> tuple[Tensor, Tensor]:
    """Tokens and mask, as long as the tokeniser made them before the batch was cut to its longest caption."""
    more = (0, length - tokens_BL.shape[1])
    return F.pad(tokens_BL, more, value=padding), F.pad(mask_BL, more, value=False)


def _vectors(found: Any, method: str, of_frames: bool = False) -> Tensor:
    """One vector per item, of what transformers' versions and other classes return."""
    vectors = getattr(found, "pooler_output", found)
    if isinstance(vectors, tuple | list) and vectors:
        vectors = vectors[0]
    if isinstance(vectors, Tensor) and vectors.ndim == 3 and of_frames:
        vectors = vectors.mean(dim=1)
    if not isinstance(vectors, Tensor) or vectors.ndim != 2:
        shape = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
        raise UserError(f"{method} returned {shape}, expected one vector per item; choose another method")
    return vectors


def _first(network: nn.Module, names: tuple[str, ...], option: str) -> str:
    for name in names:
        if callable(getattr(network, name, None)):
            return name
    raise UserError(
        f"{type(network).__name__} has none of the methods {', '.join(names)}: it is no dual encoder that is known "
        f"here; name its own by {option}"
    )


def _arguments(method: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(method).parameters)
