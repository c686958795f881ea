"""A CLIP of open_clip as frame encoder and caption encoder.

Shape suffixes: B items, T frames, C channels, H height, W width, L tokens, D joint dimension,
N frames of all items, P patches, M width of the visual transformer.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from open_clip.transformer import text_global_pool
from torch import Tensor, nn

from src.errors import UserError
from src.models import tower_speed
from src.models.tokenizer import ClipTokenizer, PretrainedTokenizer
from src.models.weights import ARCHIVE_SCALARS, check_fit, load_strictly, read_state_dict

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_LOGIT_SCALE = math.log(100)

open_clip.add_model_config(Path(__file__).with_name("archs"))


def normalise_frames(frames: Tensor, mean: Tensor, std: Tensor, mask: Tensor | None = None) -> Tensor:
    """uint8 pixels to normalised float32; float frames pass through as already normalised.

    Args:
        frames: (…, C, H, W).
        mean: (C,) of the pixels in 0–1.
        std: (C,).
        mask: bool, the leading dimensions of `frames`; where False the result is exactly 0.

    Returns:
        float tensor of the same shape.
    """
    if frames.is_floating_point():
        return frames
    pixels = (frames.float() / 255 - mean[:, None, None]) / std[:, None, None]
    return pixels if mask is None else pixels.masked_fill(~mask[..., None, None, None], 0.0)


class ClipTower(nn.Module):
    """CLIP by the name of its open_clip architecture.

    Args:
        arch: an open_clip architecture, or `videotext-tiny` (64 px, 128-d, small vocabulary).
        pretrained: None for random weights; a tag that open_clip can fetch (`openai`); or a local file:
            OpenAI's archive, a state dict (.pt, .bin) or safetensors.
        linear_patch: "2d" embeds every frame alone; "3d" convolves over three neighbouring frames.

    Raises:
        UserError: unknown architecture, weights that do not fit, or weights trained with another
            activation (QuickGELU) than the architecture uses.

    Source: CLIP4Clip modules/module_clip.py @ 508ffa3 for `linear_patch`.
    """

    clip: Any  # open_clip's model: its attributes are not typed
    mean: Tensor
    std: Tensor

    def __init__(self, arch: str, pretrained: str | None = None, linear_patch: Literal["2d", "3d"] = "2d") -> None:
        super().__init__()
        self.arch = arch
        self.config = _arch_config(arch)
        self.clip = _build(arch, pretrained, self.config)
        self.is_plain = type(self.clip) is open_clip.CLIP  # else: a text tower that only gives the pooled vector
        preprocess = open_clip.get_model_preprocess_cfg(self.clip)
        self.register_buffer("mean", torch.tensor(preprocess["mean"]), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess["std"]), persistent=False)
        # Read by sigmoid losses only; without a gradient it would stall distributed training.
        if getattr(self.clip, "logit_bias", None) is not None:
            self.clip.logit_bias.requires_grad_(False)
        self.patch_conv3d: nn.Conv3d | None = None
        if linear_patch == "3d":
            self.patch_conv3d = self._make_patch_conv3d()

    def _make_patch_conv3d(self) -> nn.Conv3d:
        """3-frame patch embedding whose central slice is the 2-d one, so that it starts as the 2-d model."""
        if not self.is_plain or not isinstance(self.clip.visual, open_clip.transformer.VisionTransformer):
            raise UserError(f"model.linear_patch=3d needs a CLIP ViT, found model.arch={self.arch}; use 2d")
        conv1 = self.clip.visual.conv1
        height, width = conv1.kernel_size
        conv = nn.Conv3d(3, conv1.out_channels, (3, height, width), (1, height, width), (1, 0, 0), bias=False)
        with torch.no_grad():
            conv.weight.zero_()
            conv.weight[:, :, 1] = conv1.weight
        conv1.weight.requires_grad_(False)
        return conv

    def check_file(self, state: Mapping[str, Tensor], source: str) -> None:
        """Whether `pretrained` could be this CLIP file; under its names, without wrappers.

        Raises:
            UserError: lists names and shapes that do not fit.
        """
        check_fit(self.clip, state, source)

    @property
    def image_size(self) -> int:
        size = self.clip.visual.image_size
        return int(size[0] if isinstance(size, tuple) else size)

    @property
    def embed_dim(self) -> int:
        return int(self.config["embed_dim"])

    @property
    def text_width(self) -> int:
        return int(self.config["text_cfg"].get("width", self.embed_dim))

    @property
    def text_heads(self) -> int:
        """Attention heads of the text tower."""
        return int(self.config["text_cfg"].get("heads", 8))

    @property
    def context_length(self) -> int:
        return int(self.config["text_cfg"].get("context_length", 77))

    @property
    def logit_scale(self) -> Tensor:
        return self.clip.logit_scale

    def freeze_logit_scale(self) -> None:
        """For a head that does not read it: without a gradient it would stall distributed training."""
        self.logit_scale.requires_grad_(False)

    def clamp_logit_scale(self) -> None:
        """Keep exp(logit_scale) at most 100, as CLIP does after every optimiser step."""
        with torch.no_grad():
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    def speed_up(self, activation_checkpointing: bool, compile: bool) -> None:
        """Recompute the blocks' activations, or compile the blocks: see `src.models.tower_speed`."""
        tower_speed.speed_up(self.clip, activation_checkpointing, compile)

    def tokenizer(self, max_words: int) -> ClipTokenizer | PretrainedTokenizer:
        """The tokeniser that the text tower was made for, padding to `max_words`."""
        text = self.config["text_cfg"]
        if max_words > self.context_length:
            raise UserError(
                f"model.max_words={max_words} is more than the {self.context_length} positions of {self.arch}; "
                f"set model.max_words={self.context_length} or less"
            )
        if "hf_tokenizer_name" in text or text.get("tokenizer_kwargs"):
            return PretrainedTokenizer(self.arch, max_words)
        return ClipTokenizer(max_words, int(text.get("vocab_size", 49408)))

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """Sentence vectors (B, D), not normalised: the token at the end of the text, projected."""
        if not self.is_plain:
            # These towers want all positions; the last id is padding, or the end token, whatever the vocabulary.
            padding_BP = tokens_BL[:, -1:].expand(-1, self.context_length - tokens_BL.shape[1])
            return self.clip.encode_text(torch.cat([tokens_BL, padding_BP], dim=1))
        x_BLD = self._text_states(tokens_BL)
        pooled = text_global_pool(x_BLD, tokens_BL, self.clip.text_pool_type, eos_token_id=self.clip.text_eos_id)
        return self._project_text(pooled)

    def check_words(self) -> None:
        """Refuse to be the tower of a head that reads words, where the text tower gives none."""
        if not self.is_plain:
            raise UserError(
                f"model.arch={self.arch} gives one vector per caption, this model.head reads its words; "
                "set model.head=meanP or use a CLIP ViT architecture such as ViT-B-32-quickgelu"
            )

    def encode_text_tokens(self, tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Sentence vectors (B, D) and all projected token vectors (B, L, D), neither normalised."""
        self.check_words()
        tokens_BLD = self._project_text(self._text_states(tokens_BL))
        pool = self.clip.text_pool_type
        return text_global_pool(tokens_BLD, tokens_BL, pool, eos_token_id=self.clip.text_eos_id), tokens_BLD

    def _text_states(self, tokens_BL: Tensor) -> Tensor:
        """Text transformer on the first L positions only: open_clip's own method demands all of them."""
        length = tokens_BL.shape[1]
        if length > self.context_length:
            raise UserError(
                f"captions have {length} tokens, {self.arch} has {self.context_length} positions; "
                f"set model.max_words={self.context_length} or less"
            )
        clip = self.clip
        dtype = clip.transformer.get_cast_dtype()
        x_BLD = clip.token_embedding(tokens_BL).to(dtype) + clip.positional_embedding[:length].to(dtype)
        mask_LL = clip.attn_mask[:length, :length] if clip.attn_mask is not None else None
        return clip.ln_final(clip.transformer(x_BLD, attn_mask=mask_LL))

    def _project_text(self, x: Tensor) -> Tensor:
        projection = self.clip.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection

    def encode_frames(self, frames_BTCHW: Tensor, mask_BT: Tensor) -> Tensor:
        """Frame vectors (B, T, D), not normalised: the class token of each frame, projected.

        Args:
            frames_BTCHW: uint8 RGB, or float frames that are already normalised.
            mask_BT: bool; padded frames enter as exact zeros (the mean colour) and are encoded too, since
                the difference after the last frame and the 3-d patches look at them.
        """
        self.check_size(frames_BTCHW)
        batch, time = frames_BTCHW.shape[:2]
        pixels = normalise_frames(frames_BTCHW, self.mean, self.std, mask_BT)
        if self.patch_conv3d is not None:
            features = self._encode_3d(pixels)
        else:
            features = self.clip.encode_image(pixels.flatten(0, 1))
        return features.view(batch, time, -1)

    def check_size(self, frames_BTCHW: Tensor) -> None:
        """Refuse frames of another size than the architecture's."""
        height, width = frames_BTCHW.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            raise UserError(
                f"frames are {height}×{width} px, {self.arch} was built for {self.image_size}×{self.image_size}; "
                "prepare the frame cache for this architecture"
            )

    def _encode_3d(self, pixels_BTCHW: Tensor) -> Tensor:
        """The visual tower with its patch embedding replaced by the convolution over time."""
        visual = self.clip.visual
        assert self.patch_conv3d is not None
        patches = self.patch_conv3d(pixels_BTCHW.transpose(1, 2))  # (B, M, T, grid, grid)
        x_NPM = patches.transpose(1, 2).flatten(0, 1).flatten(2).transpose(1, 2)
        class_N1M = visual.class_embedding.to(x_NPM.dtype).expand(len(x_NPM), 1, -1)
        x_NPM = torch.cat([class_N1M, x_NPM], dim=1) + visual.positional_embedding.to(x_NPM.dtype)
        x_NPM = visual.transformer(visual.ln_pre(x_NPM))
        return visual.ln_post(x_NPM[:, 0]) @ visual.proj


def _arch_config(arch: str) -> dict[str, Any]:
    config = open_clip.get_model_config(arch)
    if config is None:
        close = difflib.get_close_matches(arch, open_clip.list_models(), n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else "see open_clip.list_models()"
        raise UserError(f"model.arch={arch} is no open_clip architecture; {hint}")
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """Random weights are asked for here on purpose: mute open_clip's warning about them."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def _build(arch: str, pretrained: str | None, config: dict[str, Any]) -> nn.Module:
    """Make the open_clip model and fill it with the asked weights."""
    if pretrained is not None and not Path(pretrained).is_file():
        return build_from_tag(arch, pretrained, config)
    try:
        with _quiet():
            model = open_clip.create_model(arch, device=torch.get_default_device(), pretrained_text=False)
    except (RuntimeError, OSError) as error:
        if "hf_model_name" not in config["text_cfg"]:
            raise
        reason = str(error).splitlines()[0][:160]
        raise UserError(
            f"the text tower of model.arch={arch} comes from the Hugging Face hub and could not be made ({reason}); "
            "install the `text` extra and fetch it once with network, or choose another architecture"
        ) from None
    if pretrained is not None:
        state = read_state_dict(pretrained)
        if any(name in state for name in ARCHIVE_SCALARS) and not config.get("quick_gelu", False):
            raise wrong_activation(arch, pretrained)
        load_strictly(model, clip_state(state), pretrained)
    return model


def clip_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP file's tensors as float32 under open_clip's names: without wrappers and archive scalars."""
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {
        name.removeprefix(prefix): value.float()
        for name, value in state.items()
        if name.removeprefix(prefix) not in ARCHIVE_SCALARS
    }


def build_from_tag(arch: str, tag: str, config: dict[str, Any]) -> nn.Module:
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if tag not in tags:
        raise UserError(
            f"model.pretrained={tag} is neither a file nor a tag of {arch} (tags: {', '.join(tags) or 'none'}); "
            "give a file, one of the tags, or null"
        )
    if open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu", False) != config.get("quick_gelu", False):
        raise wrong_activation(arch, tag)
    try:
        return open_clip.create_model(arch, pretrained=tag, device=torch.get_default_device())
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(
            f"the weights {arch}/{tag} could not be fetched ({reason}); "
            "download the file on a machine with network and set model.pretrained=FILE, or use null"
        ) from None


def wrong_activation(arch: str, pretrained: str) -> UserError:
    other = arch.removesuffix("-quickgelu") if arch.endswith("-quickgelu") else f"{arch}-quickgelu"
    return UserError(
        f"the weights {pretrained} were trained with {'GELU' if arch.endswith('-quickgelu') else 'QuickGELU'}, "
        f"model.arch={arch} uses the other activation and would give wrong features silently; set model.arch={other}"
    )
