"""InternVideo: a CLIP whose video half sees all frames at once, on the heads of CLIP4Clip.

Shape suffixes: B items, T frames, D joint dimension.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import Literal

from src.batch import FrameSampling, VideoBatch
from src.models.clip_retrieval import ClipRetrievalModule, LossName, frame_spec, full_precision, pixels
from src.models.evl_tower import EvlTower, Padding, TextTokenSpace
from src.models.freeze import FreezeRule, freeze_clip
from src.models.fusion_tower import FusionTower
from src.models.heads.base import HeadFactory, HeadHost, VideoTokens
from src.models.heads.mean import MeanHead
from src.models.temporal import MaskLayout

log = logging.getLogger(__name__)

TOWERS: dict[str, type[EvlTower]] = {"global": EvlTower, "fusion": FusionTower}
DECODER = re.compile(r"visual\.transformer\.(dpe|dec|temporal_cls_token|balance)\b")
TEXT_PROJECTION = re.compile(r"text_projection\b")


class InternVideo(ClipRetrievalModule):
    """InternVideo's text-video retrieval (arXiv 2212.03191).

    Args:
        arch: open_clip architecture that the tower extends: `ViT-L-14-quickgelu` or `ViT-B-16-quickgelu` for the
            published weights, or `videotext-tiny`.
        pretrained: null (random), a tag such as `openai`, or a local weight file: InternVideo's, or a CLIP, to
            which the fresh parts are added. Files are told apart by their tensors.
        tower: "global", of all published weights, or "fusion", whose blocks also mix neighbouring frames.
        decoder_layers: the global token reads after so many of the last blocks; null: 4, or all of fewer blocks.
        padding: "masked" encodes valid frames only; "upstream" lets the empty frames behind a short video take part,
            as in the published numbers.
        head: how captions are compared with videos, one of conf/model/head. One that reads frames gets their class
            tokens, and the decoder is left out.
        text_tokens: what a head that reads words gets: "projected" tokens, or "upstream" those before the text
            projection, which are only comparable where both widths are equal.
        merge_clip: tag or file of CLIP's weights with which InternVideo's are interpolated (upstream `mergeclip`).
        merge_weight: share of CLIP's (upstream `mergeweight`).
        num_frames: frames per video (upstream `max_frames`).
        max_words: tokens per caption (upstream `max_words`).
        head_dim: width of one attention head of transformers over frames; null takes the text tower's.
        mask_layout: of these; see `key_mask`.
        sampling: rule that picks the frames; see `src.data.sampling`.
        framerate: frames per second or stride of that rule (upstream `feature_framerate`).
        frame_position: which frames of a long list survive, 0 head, 1 tail, 2 uniform (upstream `slice_framepos`).
        freeze_layers: −1 trains all; n ≥ 0 see `freeze_clip` (upstream `freeze_layer_num`).
        freeze_rule: "upstream" also freezes the new layers that the released code freezes.
        activation_checkpointing: see `src.models.tower_speed`.
        compile: see `src.models.tower_speed`.
        gather: "exact" gradients over processes or "upstream", 1/W of them.
        same_video_positives: leave other captions of the same video out of the negatives.
        loss: "infonce", or "dsl": scores are first multiplied by their softmax over the queries; see `DualSoftmaxLoss`.
        dsl_temperature: of that softmax; only read with "dsl".
        ocr: read the words in the picture too, of files that `dataset.ocr_dir` names; see `src.models.clip_ocr`.
        ocr_words: at most so many of a video, the best-scored ones; only read with `ocr`.

    Source: OpenGVLab/InternVideo InternVideo1/Downstream/Video-Text-Retrieval @ 3965eef.
    Deviates: padding is masked by default; a video without a valid frame then gets the zero vector. Parameters
        that the head leaves without a gradient are not trained (upstream then fails in distributed training).
    """

    tower: EvlTower

    def __init__(
        self,
        *,
        arch: str,
        pretrained: str | None = None,
        tower: Literal["global", "fusion"] = "global",
        decoder_layers: int | None = None,
        padding: Padding = "masked",
        head: HeadFactory = MeanHead,
        text_tokens: TextTokenSpace = "projected",
        merge_clip: str | None = None,
        merge_weight: float = 0.5,
        num_frames: int = 12,
        max_words: int = 77,
        head_dim: int | None = None,
        mask_layout: MaskLayout = "per_video",
        sampling: FrameSampling = "uniform",
        framerate: int = 1,
        frame_position: Literal[0, 1, 2] = 2,
        freeze_layers: int = -1,
        freeze_rule: FreezeRule = "intended",
        activation_checkpointing: bool = False,
        compile: bool = False,
        gather: Literal["exact", "upstream"] = "exact",
        same_video_positives: bool = False,
        loss: LossName = "infonce",
        dsl_temperature: float = 1000.0,
        ocr: bool = False,
        ocr_words: int = 200,
    ) -> None:
        built = TOWERS[tower](
            arch,
            pretrained,
            decoder_layers=decoder_layers,
            padding=padding,
            text_tokens=text_tokens,
            merge_clip=merge_clip,
            merge_weight=merge_weight,
        )
        freeze_clip(built, freeze_layers, freeze_rule)
        super().__init__(
            tower=built,
            frames=frame_spec(num_frames, sampling, framerate, frame_position),
            max_words=max_words,
            head_dim=head_dim,
            mask_layout=mask_layout,
            gather=gather,
            same_video_positives=same_video_positives,
            loss=loss,
            dsl_temperature=dsl_temperature,
            ocr=ocr,
            ocr_words=ocr_words,
            activation_checkpointing=activation_checkpointing,
            compile=compile,
        )
        self.add_head(head)
        self._stop_unread()

    def host(self) -> HeadHost:
        """As for other models; the fusion tower gives every second frame."""
        host = super().host()
        return replace(host, num_frames=-(-host.num_frames // self.tower.clip.visual.frames_a_step))

    def _stop_unread(self) -> None:
        """Stop what gets no gradient: distributed training would wait for it."""
        unread = {DECODER: "the global token's decoder"} if self.head.reads_frames else {}
        if self.ocr is None and not self.head.reads_sentence and self.tower.text_tokens == "upstream":
            unread[TEXT_PROJECTION] = "the text projection"
        for names, what in unread.items():
            stopped = [p for name, p in self.tower.clip.named_parameters() if names.match(name) and p.requires_grad]
            for parameter in stopped:
                parameter.requires_grad_(False)
            if not self.tower.logit_scale.is_meta:  # said once, not for the empty model that is made first
                log.info(
                    "%s does not read %s: %d tensors are not trained", type(self.head).__name__, what, len(stopped)
                )

    def video_tokens(self, batch: VideoBatch) -> VideoTokens:
        """The video's one vector, or frame vectors without it for a head that reads frames."""
        features = self.tower.encode_video(*pixels(batch), decode=not self.head.reads_frames)
        frames_BTD = full_precision(features.frames_BTD)
        pooled_BD = None if features.pooled_BD is None else full_precision(features.pooled_BD)
        return VideoTokens(frames_BTD, features.mask_BT, ordered_BTD=frames_BTD, pooled_BD=pooled_BD)
