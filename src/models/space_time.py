"""The space-time transformer of Frozen in Time: a ViT whose patches look along time, then within their frame.

Parameters have the published names (`video_model.` of a checkpoint, without that prefix).

Shape suffixes: B videos, T frames, C channels, H height, W width, P patches of a frame, S = 1 + T·P tokens (the class
token first, then frame after frame), G attention heads, K width of one head, D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import UserError
from src.models.weights import check_fit, read_state_dict

TimeInit = Literal["zeros", "rand"]
TemporalFit = Literal["zeros", "interp", "bilinear"]

EPS = 1e-6  # of every layer norm
INIT_STD = 0.02
MOST_GROUPS = 65_535  # that the kernels of CUDA attend in at once
FRESH = re.compile(r"temporal_embed$|blocks\.\d+\.(timeattn|norm3)\.")
"""What no ViT of images has."""
HEADS = re.compile(r"(head|pre_logits|fc_norm|head_dist)\.")
"""What ViTs have for classification; not used here."""
TINY = "videotext-tiny"


@dataclass(frozen=True)
class VitSize:
    """The numbers behind the name of a ViT.

    Attributes:
        image_size: side of the frames, pixels.
        patch_size: side of a patch, pixels.
        width: D.
        depth: blocks.
        heads: attention heads.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int


_SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


def vit_size(name: str) -> VitSize:
    """Numbers of a ViT by its name in timm (`vit_base_patch16_224`), or of `videotext-tiny`.

    Raises:
        UserError: no such name.
    """
    if name == TINY:
        return VitSize(64, 16, 96, 3, 3)
    found = re.fullmatch(r"vit_(tiny|small|base|large)_patch(\d+)_(\d+)", name)
    if found is None:
        raise UserError(
            f"model.vit={name}, expected vit_SIZE_patchP_N with the sizes {', '.join(_SIZES)}, such as "
            f"vit_base_patch16_224, or {TINY}; model.width, depth, heads, patch_size and image_size set other shapes"
        )
    return VitSize(int(found[3]), int(found[2]), *_SIZES[found[1]])


class _Attention(nn.Module):
    """Attention in groups: the class token sees all tokens, every other one the class token and its own group."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BSD: Tensor, frames: int, over: Literal["time", "space"]) -> Tensor:
        """Tokens (B, S, D) to the same shape; groups are equal places ("time") or equal frames ("space")."""
        batch, tokens, width = x_BSD.shape
        q_BGSK, k_BGSK, v_BGSK = self.qkv(x_BSD).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        class_BG1K = F.scaled_dot_product_attention(q_BGSK[:, :, :1], k_BGSK, v_BGSK)
        q, k, v = (_grouped(part[:, :, 1:], frames, over) for part in (q_BGSK, k_BGSK, v_BGSK))
        k, v = (_with_class(part, whole[:, :, :1]) for part, whole in ((k, k_BGSK), (v, v_BGSK)))
        split = zip(*(part.flatten(0, 1).split(MOST_GROUPS) for part in (q, k, v)), strict=True)
        groups = torch.cat([F.scaled_dot_product_attention(*parts) for parts in split]).view_as(q)
        rest_BGSK = _ungrouped(groups, over)
        merged_BSD = torch.cat([class_BG1K, rest_BGSK], dim=2).transpose(1, 2).reshape(batch, tokens, width)
        return self.proj(merged_BSD)


def _grouped(x_BGSK: Tensor, frames: int, over: Literal["time", "space"]) -> Tensor:
    """(B, groups, G, tokens of a group, K)."""
    x_BGTPK = x_BGSK.unflatten(2, (frames, -1))
    return x_BGTPK.permute(0, 3, 1, 2, 4) if over == "time" else x_BGTPK.transpose(1, 2)


def _ungrouped(x: Tensor, over: Literal["time", "space"]) -> Tensor:
    """(B, G, T·P, K), frame after frame."""
    x_BGTPK = x.permute(0, 2, 3, 1, 4) if over == "time" else x.transpose(1, 2)
    return x_BGTPK.flatten(2, 3)


def _with_class(x: Tensor, class_BG1K: Tensor) -> Tensor:
    """The class token in front of every group."""
    return torch.cat([class_BG1K[:, None].expand(-1, x.shape[1], -1, -1, -1), x], dim=3)


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    """Attention over time, over space, and the perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = _Attention(width, heads)
        self.timeattn = _Attention(width, heads)
        self.mlp = _Mlp(width)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.norm3 = nn.LayerNorm(width, eps=EPS)

    def forward(self, x_BSD: Tensor, frames: int) -> Tensor:
        time_BSD = x_BSD + self.timeattn(self.norm3(x_BSD), frames, "time")
        # The published residual goes around both attentions: x and not the result of the time step.
        space_BSD = x_BSD + self.attn(self.norm1(time_BSD), frames, "space")
        return space_BSD + self.mlp(self.norm2(space_BSD))


class _PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)


class SpaceTimeTransformer(nn.Module):
    """Divided space-time attention over the patches of a few frames; one vector per video.

    Args:
        image_size: side of the frames, pixels.
        patch_size: side of a patch, pixels.
        width: D.
        depth: blocks.
        heads: attention heads.
        num_frames: most frames of a video; fewer use the first of the temporal positions.
        time_init: "zeros" starts the attention over time so that it adds exactly nothing; "rand" as any layer.

    Source: m-bain/frozen-in-time model/video_transformer.py @ e1f13e1, attention style `frozen-in-time`.
    Deviates: `time_init` holds for one frame, too.
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        num_frames: int = 4,
        time_init: TimeInit = "zeros",
    ) -> None:
        super().__init__()
        _check(VitSize(image_size, patch_size, width, depth, heads), num_frames)
        self.image_size, self.width, self.num_frames = image_size, width, num_frames
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch_size) ** 2, width))
        self.temporal_embed = nn.Parameter(torch.zeros(1, num_frames, width))
        self.patch_embed = _PatchEmbed(patch_size, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self._initialise(time_init)

    def _initialise(self, time_init: TimeInit) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=INIT_STD)
        nn.init.trunc_normal_(self.cls_token, std=INIT_STD)
        if self.num_frames == 1:
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=INIT_STD)
                    nn.init.zeros_(module.bias)
        if time_init == "zeros":
            for block in self.blocks:
                assert isinstance(block, _Block)
                for parameter in block.timeattn.parameters():
                    nn.init.zeros_(parameter)
                # Values are zero, so the result is; ones here let their gradient through.
                nn.init.ones_(block.timeattn.proj.weight)

    def forward(self, frames_BTCHW: Tensor) -> Tensor:
        """Normalised frames (B, T, 3, H, W), T at most `num_frames`, to the class token (B, D).

        Raises:
            UserError: frames of another size, or too many.
        """
        x_BSD = self.embed(frames_BTCHW)
        for block in self.blocks:
            x_BSD = block(x_BSD, frames_BTCHW.shape[1])
        return self.norm(x_BSD[:, 0])

    def embed(self, frames_BTCHW: Tensor) -> Tensor:
        """Class token and patches with their positions (B, S, D)."""
        batch, frames, _, height, width = frames_BTCHW.shape
        if (height, width) != (self.image_size, self.image_size) or frames > self.num_frames:
            raise UserError(
                f"found {frames} frames of {height}×{width} px, expected at most {self.num_frames} of "
                f"{self.image_size}×{self.image_size}; set model.num_frames and model.image_size, or prepare the frame "
                "cache for this model"
            )
        proj = self.patch_embed.proj
        # Pixels come in float32, weights perhaps in half precision: model.half() of an application.
        patches_BTPD = proj(frames_BTCHW.flatten(0, 1).to(proj.weight.dtype)).flatten(2).transpose(1, 2)
        patches_BTPD = patches_BTPD.unflatten(0, (batch, frames))
        patches_BTPD = patches_BTPD + self.pos_embed[:, None, 1:] + self.temporal_embed[:, :frames, None]
        class_B1D = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        return torch.cat([class_B1D.to(patches_BTPD.dtype), patches_BTPD.flatten(1, 2)], dim=1)

    def start_from_vit(self, vit: Mapping[str, Tensor], source: str) -> tuple[list[str], list[str]]:
        """Take over a ViT of images, under the names of timm; temporal parts keep their start.

        Args:
            vit: its tensors.
            source: what to call it in errors.

        Returns:
            Names that stay as they were, and names of `vit` that are not used.

        Raises:
            UserError: anything else is missing, unknown or of another shape.
        """
        own = self.state_dict()
        kept = [name for name in own if FRESH.search(name) and name not in vit]
        unused = [name for name in vit if HEADS.match(name)]
        state = {name: value for name, value in vit.items() if name not in unused}
        state |= {name: own[name] for name in kept}
        check_fit(self, state, source)
        self.load_state_dict(state)
        return kept, unused


def vit_state(weights: str, vit: str) -> dict[str, Tensor]:
    """Tensors of a ViT: from a file, or by the tag of timm's published weights.

    Args:
        weights: file (safetensors, .pth, .bin), or a tag such as `orig_in21k_ft_in1k`.
        vit: name of the architecture in timm.

    Raises:
        UserError: neither a file nor a known tag, or the weights cannot be fetched.
    """
    if Path(weights).expanduser().is_file():
        return {name: value.float() for name, value in read_state_dict(Path(weights).expanduser()).items()}
    import timm  # here: it takes seconds, and files do not need it

    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{vit}.*")]
    if weights not in tags:
        raise UserError(
            f"model.vit_weights={weights} is neither a file nor a tag of {vit} (tags: {', '.join(tags) or 'none'}); "
            "give a file, one of the tags, or null for random weights"
        )
    try:
        model: Any = timm.create_model(f"{vit}.{weights}", pretrained=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the weights {vit}.{weights} could not be fetched ({reason}); fetch them on a machine with network (hf "
            f"download timm/{vit}.{weights} model.safetensors) and set model.vit_weights=FILE, or null for random ones"
        ) from None
    return dict(model.state_dict())


def fit_temporal(table: Tensor, num_frames: int, how: TemporalFit = "zeros") -> Tensor:
    """Temporal positions (1, F, D) for another number of frames (1, `num_frames`, D).

    Args:
        table: of the checkpoint.
        num_frames: of the model; fewer than F keep the first rows, whatever `how` says.
        how: what further rows hold: "zeros"; "interp" copies of the nearest; "bilinear" linear between neighbours.

    Source: m-bain/frozen-in-time base/base_model.py and model/model.py _inflate_positional_embeds @ e1f13e1.
    """
    given = table.shape[1]
    if num_frames <= given:
        return table[:, :num_frames].clone()
    if how == "zeros":
        return torch.cat([table, table.new_zeros(1, num_frames - given, table.shape[2])], dim=1)
    if how == "interp":
        return F.interpolate(table[:, None], (num_frames, table.shape[2]), mode="nearest")[:, 0]
    return F.interpolate(table[:, None], (num_frames, table.shape[2]), mode="bilinear", align_corners=False)[:, 0]


def _check(size: VitSize, num_frames: int) -> None:
    positive = min(*vars(size).values(), num_frames) >= 1
    if not positive or size.image_size % size.patch_size or size.width % size.heads:
        found = ", ".join(f"{name}={value}" for name, value in vars(size).items())
        raise UserError(
            f"found model.{found}, num_frames={num_frames}; expected positive numbers, image_size a multiple of "
            "patch_size and width a multiple of heads"
        )
