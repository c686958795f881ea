"""Frozen in Time: a space-time transformer over a few frames, DistilBERT over the caption, the cosine between them.

Parameters have the published names: `text_model.`, `video_model.`, `txt_proj.1.`, `vid_proj.0.`.

Shape suffixes: B items, T frames, C channels, H height, W width, V width of a tower, D joint dimension.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.batch import (
    FrameAugment,
    FrameResize,
    FrameSpec,
    InputSpec,
    TextBatch,
    TextEmbedding,
    VideoBatch,
    VideoEmbedding,
)
from src.errors import UserError
from src.losses.gather import GatherMode
from src.losses.max_margin import MaxMarginLoss
from src.losses.norm_softmax import NormSoftmaxLoss
from src.losses.pairs import PairLoss
from src.models.base import RetrievalModule
from src.models.bert_text import BertText
from src.models.clip_retrieval import full_precision, pixels
from src.models.space_time import (
    SpaceTimeTransformer,
    TemporalFit,
    TimeInit,
    VitSize,
    fit_temporal,
    vit_size,
    vit_state,
)
from src.models.weights import load_strictly, read_state_dict

log = logging.getLogger(__name__)

FrozenLoss = Literal["norm_softmax", "max_margin"]
Projection = Literal["minimal", "none"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TEMPORAL = "video_model.temporal_embed"
COUNTER = "embeddings.position_ids"
"""0, 1, 2, …: a buffer that BERT had until transformers 4.31."""
COSINE_EPS = 1e-8
NOTHING = re.compile(r"(?!)")


class FrozenBase(RetrievalModule):
    """What Frozen in Time and TextVR share: towers, projections, cosine, loss, reading of checkpoints.

    Args:
        text: encodes captions; None for models without.
        video: encodes videos; None for models without.
        frames: frames that the model asks for; None with `video`.
        max_words: tokens per caption including the special ones.
        projection: "minimal" = ReLU and a linear layer after the text tower, a linear layer after the video tower;
            "none" = nothing, for towers of equal widths.
        projection_dim: D.
        ranking: the training loss.

    Raises:
        UserError: the towers' widths differ and nothing projects them, or there is nothing to project to.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        text: BertText | None,
        video: SpaceTimeTransformer | None,
        frames: FrameSpec | None,
        max_words: int,
        projection: Projection,
        projection_dim: int,
        ranking: PairLoss,
    ) -> None:
        super().__init__(gather=ranking.gather)
        self.text_model, self.video_model = text, video
        self.frames = frames
        self.max_words = max_words
        self.ranking = ranking
        if projection_dim < 1:
            raise UserError(f"model.projection_dim={projection_dim}, expected at least 1; 256 is published")
        if projection == "none" and text is not None and video is not None and text.width != video.width:
            raise UserError(
                f"model.projection=none compares vectors of the towers, found {text.width} numbers for captions and "
                f"{video.width} for videos; set model.projection=minimal, or towers of one width"
            )
        self.txt_proj = project(text.width, projection_dim, projection, relu=True) if text is not None else None
        self.vid_proj = project(video.width, projection_dim, projection, relu=False) if video is not None else None
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD), persistent=False)

    @property
    def input_spec(self) -> InputSpec:
        tokenizer = None if self.text_model is None else self.text_model.tokenizer(self.max_words)
        return InputSpec(tokenizer=tokenizer, frames=self.frames)

    def encode_text(self, batch: TextBatch) -> TextEmbedding:
        """The caption's vector (B, D), not normalised."""
        assert self.text_model is not None
        assert self.txt_proj is not None
        text_BD = full_precision(self.txt_proj(self.text_model(batch.tokens_BL, batch.mask_BL)))
        return TextEmbedding(ids=batch.ids, parts={"text": text_BD}, video_ids=batch.video_ids)

    def encode_video(self, batch: VideoBatch) -> VideoEmbedding:
        """The video's vector (B, D), not normalised."""
        assert self.vid_proj is not None
        video_BD = full_precision(self.vid_proj(self.video_features(batch)))
        return VideoEmbedding(ids=batch.ids, parts={"video": video_BD})

    def video_features(self, batch: VideoBatch) -> Tensor:
        """What the video tower makes of the frames (B, V), before any projection."""
        assert self.video_model is not None
        return self.video_model(self.normalised(batch))

    def normalised(self, batch: VideoBatch) -> Tensor:
        """Frames (B, T, 3, H, W) as the video tower reads them.

        The frames behind a short video are zeros after normalisation, the mean colour, and are attended to, as in the
        published numbers.
        """
        frames_BTCHW, mask_BT = pixels(batch)
        if frames_BTCHW.is_floating_point():
            return frames_BTCHW
        normal_BTCHW = (frames_BTCHW.float() / 255 - self.mean[:, None, None]) / self.std[:, None, None]
        return normal_BTCHW.masked_fill(~mask_BT[..., None, None, None], 0.0)

    def similarity(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        """Cosines."""
        text_TD, video_VD = text.parts["text"], video.parts["video"]
        return F.normalize(text_TD, dim=1, eps=COSINE_EPS) @ F.normalize(video_VD, dim=1, eps=COSINE_EPS).T

    def loss(self, text: TextEmbedding, video: VideoEmbedding) -> dict[str, Tensor]:
        return {"loss": self.ranking(self.similarity, text, video)}

    def load_pretrained(
        self, path: str, how: TemporalFit = "zeros", fresh: re.Pattern[str] = NOTHING, unused: re.Pattern[str] = NOTHING
    ) -> None:
        """Read a checkpoint of Frozen in Time or TextVR, published or converted; every name has to agree.

        Args:
            path: the file.
            how: `fit_temporal`, where it was trained with another number of frames.
            fresh: our names that the file may lack; they keep their start and are listed in the log.
            unused: names of the file that are not read; they are listed in the log.

        Raises:
            UserError: the file cannot be read, or anything else is missing, unknown or of another shape.
        """
        given = self.own_names(published_state(read_state_dict(Path(path).expanduser())))
        self.check_kind(given, path, fresh)
        state = {name: value for name, value in given.items() if not unused.match(name)}
        own = self.state_dict()
        if TEMPORAL in state and TEMPORAL in own and state[TEMPORAL].ndim == 3:
            state[TEMPORAL] = fit_temporal(state[TEMPORAL], own[TEMPORAL].shape[1], how)
        kept = sorted(name for name in own if name not in state and fresh.match(name))
        load_strictly(self, state | {name: own[name] for name in kept}, path)
        for what, names in (("not read, start afresh", kept), ("not used", sorted(given.keys() - state.keys()))):
            if names:
                log.info("%s: %d tensors %s: %s", path, len(names), what, ", ".join(names))

    def own_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published names as this model's."""
        return state

    def check_kind(self, given: Mapping[str, Tensor], path: str, fresh: re.Pattern[str]) -> None:
        """Refuse a checkpoint of another kind of model in better words than those about single names.

        Args:
            given: its tensors under our names.
            path: the file.
            fresh: as for `load_pretrained`.
        """


class Frozen(FrozenBase):
    """Frozen in Time (arXiv 2104.00650).

    Args:
        text_model: DistilBERT or BERT: a name on the hub, a folder, `package:<module>/<folder>`, or `videotext-tiny`;
            see `BertText`.
        vit: shape of the video tower by its name in timm, or `videotext-tiny`.
        image_size: side of the frames, pixels; null here and below = as `vit` says.
        patch_size: side of a patch, pixels.
        width: numbers per patch.
        depth: blocks.
        heads: attention heads.
        num_frames: frames per video; shorter videos are filled up with empty frames, which take part as published.
        max_words: tokens per caption, special ones included.
        time_init: attention over time starts at "zeros", so that the tower equals its ViT, or at "rand"om.
        load_temporal: positions in time of a `pretrained` file with fewer frames are filled up with "zeros", nearest
            ones ("interp") or linearly ("bilinear"); of one with more the first are kept.
        projection: "minimal" or "none"; see `FrozenBase`.
        projection_dim: length of the vectors that are compared.
        pretrained: file of Frozen in Time's, published or converted, for all of the model; null starts from the text
            model's folder and `vit_weights`.
        vit_weights: file of a ViT's weights or tag of timm's (published: orig_in21k_ft_in1k); null = random.
        loss: "norm_softmax" or "max_margin".
        temperature: of norm_softmax, fixed.
        margin: of max_margin.
        sampling: "frozen" (a random frame of each interval in training, middle ones in evaluation) or "uniform".
        resize: "frozen" and "textvr" as published, "squash" and "crop" smoother; see `FrameSpec`.
        augment: training's changes of frames: "frozen", "textvr" (published, each for its model) or "none".
        gather: "exact" gradients over processes or "upstream", 1/W of them.
        same_video_positives: leave other captions of the same video out of the negatives; norm_softmax only.

    Source: m-bain/frozen-in-time model/model.py @ e1f13e1.
    Deviates: validation looks at middle frames and the same captions every time; upstream draws both anew.
    """

    def __init__(
        self,
        *,
        text_model: str,
        vit: str = "vit_base_patch16_224",
        image_size: int | None = None,
        patch_size: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        num_frames: int = 4,
        max_words: int = 77,
        time_init: TimeInit = "zeros",
        load_temporal: TemporalFit = "zeros",
        projection: Projection = "minimal",
        projection_dim: int = 256,
        pretrained: str | None = None,
        vit_weights: str | None = None,
        loss: FrozenLoss = "norm_softmax",
        temperature: float = 0.05,
        margin: float = 1.0,
        sampling: Literal["frozen", "uniform"] = "frozen",
        resize: FrameResize = "frozen",
        augment: FrameAugment = "frozen",
        gather: GatherMode = "exact",
        same_video_positives: bool = False,
    ) -> None:
        size = sized(vit, image_size=image_size, patch_size=patch_size, width=width, depth=depth, heads=heads)
        super().__init__(
            text=BertText(text_model, weights=pretrained is None),
            video=video_tower(size, num_frames, time_init, vit, vit_weights if pretrained is None else None),
            frames=FrameSpec(num_frames, size.image_size, sampling, resize=resize, augment=augment),
            max_words=max_words,
            projection=projection,
            projection_dim=projection_dim,
            ranking=ranking_loss(loss, temperature, margin, gather, same_video_positives),
        )
        if pretrained is not None:
            self.load_pretrained(pretrained, load_temporal)


def project(width: int, dim: int, projection: Projection, relu: bool) -> nn.Module:
    """From a tower's width to the joint dimension."""
    if projection == "none":
        return nn.Identity()
    return nn.Sequential(*([nn.ReLU()] if relu else []), nn.Linear(width, dim))


def sized(vit: str, **numbers: int | None) -> VitSize:
    """The numbers of a ViT, those given instead of the name's."""
    named = vit_size(vit)
    return VitSize(**{**vars(named), **{key: value for key, value in numbers.items() if value is not None}})


def video_tower(
    size: VitSize, num_frames: int, time_init: TimeInit, vit: str, weights: str | None
) -> SpaceTimeTransformer:
    """The video tower, started from a ViT where weights are given (none are read for an empty model)."""
    tower = SpaceTimeTransformer(**vars(size), num_frames=num_frames, time_init=time_init)
    if weights is not None and not tower.cls_token.is_meta:
        kept, _ = tower.start_from_vit(vit_state(weights, vit), weights)
        log.info("the video tower starts from %s; %d tensors of the attention over time are fresh", weights, len(kept))
    return tower


def ranking_loss(
    name: FrozenLoss, temperature: float, margin: float, gather: GatherMode, same_video_positives: bool
) -> PairLoss:
    """The training loss by its name.

    Raises:
        UserError: an option that the loss does not have.
    """
    if name == "norm_softmax":
        return NormSoftmaxLoss(temperature, gather, same_video_positives)
    if same_video_positives:
        raise UserError(
            "model.loss=max_margin counts every other video as a negative, found model.same_video_positives=true; "
            "set it to false, or model.loss=norm_softmax"
        )
    return MaxMarginLoss(margin, gather=gather)


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a checkpoint under our names, as float32: without the prefix of several GPUs and without counters."""
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {
        name.removeprefix(prefix): value.float() if value.is_floating_point() else value
        for name, value in state.items()
        if not name.endswith(COUNTER)
    }
