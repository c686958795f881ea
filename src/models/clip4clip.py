"""CLIP4Clip: CLIP on frames, and nothing between its tower and the head."""

from __future__ import annotations

from typing import Literal

from src.batch import FrameSampling
from src.models.clip_retrieval import ClipRetrievalModule, LossName, frame_spec
from src.models.clip_tower import ClipTower
from src.models.freeze import FreezeRule, freeze_clip
from src.models.heads.base import HeadFactory
from src.models.heads.mean import MeanHead
from src.models.temporal import MaskLayout


class Clip4Clip(ClipRetrievalModule):
    """CLIP4Clip (arXiv 2104.08860).

    Args:
        arch: open_clip architecture name, or `videotext-tiny`.
        pretrained: null (random), a tag such as `openai`, or a local weight file.
        head: how a caption is compared with frames (upstream flag `sim_header`), one of conf/model/head.
        linear_patch: "2d", or "3d" for patches over three neighbouring frames.
        num_frames: frames per video (upstream `max_frames`).
        max_words: tokens per caption (upstream `max_words`).
        head_dim: width of one attention head of transformers over frames; null takes the text tower's.
        mask_layout: of these, "per_video", or "upstream" for the mask order of the code before July 2021.
        sampling: rule that picks the frames; see `src.data.sampling`.
        framerate: frames per second or stride of that rule (upstream `feature_framerate`).
        frame_position: which frames of a long list survive, 0 head, 1 tail, 2 uniform (upstream `slice_framepos`).
        freeze_layers: −1 trains all of CLIP; n ≥ 0 see `freeze_clip` (upstream `freeze_layer_num`).
        freeze_rule: "upstream" freezes nothing with 3-d patches, as the released code does.
        activation_checkpointing: see `src.models.tower_speed`.
        compile: see `src.models.tower_speed`.
        gather: "exact" gradients over processes or "upstream", 1/W of them.
        same_video_positives: leave other captions of the same video out of the negatives.
        loss: "infonce", or "dsl": scores are first multiplied by their softmax over the queries; see `DualSoftmaxLoss`.
        dsl_temperature: of that softmax; only read with "dsl".
        ocr: read the words in the picture too, of files that `dataset.ocr_dir` names; see `src.models.clip_ocr`.
        ocr_words: at most so many of a video, the best-scored ones; only read with `ocr`.

    Source: ArrowLuo/CLIP4Clip @ 508ffa3.
    Deviates: a video without a valid frame gets the zero vector, not NaN.
    """

    def __init__(
        self,
        *,
        arch: str,
        pretrained: str | None = None,
        head: HeadFactory = MeanHead,
        linear_patch: Literal["2d", "3d"] = "2d",
        num_frames: int = 12,
        max_words: int = 32,
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
        tower = ClipTower(arch, pretrained, linear_patch)
        freeze_clip(tower, freeze_layers, freeze_rule)
        super().__init__(
            tower=tower,
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
