"""Any dual encoder of videos or images and captions in the form of transformers, with any head of the CLIP family.

Shape suffixes: B items, T frames, D joint dimension.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from src.batch import FrameSampling, FrameSpec, TextBatch, VideoBatch
from src.errors import UserError
from src.models.clip_retrieval import ClipRetrievalModule, LossName, full_precision, pixels
from src.models.heads.base import HeadFactory, TextTokens, VideoTokens, head_class
from src.models.hf_folder import HfFolder, Preprocessing
from src.models.hf_tokenizer import HfTokenizer
from src.models.hf_tower import Calls, HfTower, Layout, pad_words


class HfVideoText(ClipRetrievalModule):
    """A folder of transformers (CLIP, SigLIP, X-CLIP, …) or a class of your own (ViCLIP, InternVideo2-CLIP).

    Networks that encode images give a vector per frame, which every head accepts. Networks that encode videos give one
    vector per video, for the head meanP.

    Args:
        path: folder with config.json, weights and tokeniser; a hub name, where the hub can be reached; or one of our
            tiny configurations without weights, `videotext-tiny-clip` and `videotext-tiny-xclip`.
        pretrained: "folder" = the safetensors of the folder, FILE = other safetensors with the same names, null =
            random weights.
        head: how captions are compared with frames; one of conf/model/head.
        network: `module:function` that makes the network from what config.json says, for classes that transformers
            does not know; null = transformers' own class.
        text_method: method that makes vectors of token ids; null = `get_text_features` and the like.
        video_method: method that makes vectors of videos or frames; null = `get_video_features`, `get_image_features`
            and the like.
        layout: axes of whole videos, in the order that `video_method` expects.
        trust: run Python files that the folder brings, and trust them.
        num_frames: frames per video; null = as config.json says, else 8.
        max_words: tokens per caption.
        image_size: side of the frames, pixels; null = as the folder's image processor says.
        temperature: of the softmax, where the network has no `logit_scale`.
        head_dim: width of one attention head of transformers over frames; null takes the text tower's, or 64, where
            it divides the length of the vectors.
        sampling: rule that picks the frames; see `src.data.sampling`.
        framerate: frames per second or stride of that rule.
        frame_position: which frames of a long list survive, 0 head, 1 tail, 2 uniform.
        activation_checkpointing: see `src.models.tower_speed`.
        compile: see `src.models.tower_speed`.
        gather: see `RetrievalModule`.
        same_video_positives: leave other captions of the same video out of the negatives.
        loss: "infonce", or "dsl": scores are first multiplied by their softmax over the queries; see `DualSoftmaxLoss`.
        dsl_temperature: of that softmax; only read with "dsl".
        ocr: read the words in the picture too, of files that `dataset.ocr_dir` names; see `src.models.clip_ocr`.
        ocr_words: at most so many of a video, the best-scored ones; only read with `ocr`.

    Deviates: X-CLIP's prompts, which rewrite class names for every video, are left out: captions are encoded once.
    """

    tower: HfTower

    def __init__(
        self,
        *,
        path: str,
        head: HeadFactory,
        pretrained: str | None = "folder",
        network: str | None = None,
        text_method: str | None = None,
        video_method: str | None = None,
        layout: Layout = "BTCHW",
        trust: bool = False,
        num_frames: int | None = None,
        max_words: int = 32,
        image_size: int | None = None,
        temperature: float = 0.07,
        head_dim: int | None = None,
        sampling: FrameSampling = "uniform",
        framerate: int = 1,
        frame_position: Literal[0, 1, 2] = 2,
        activation_checkpointing: bool = False,
        compile: bool = False,
        gather: Literal["exact", "upstream"] = "exact",
        same_video_positives: bool = False,
        loss: LossName = "infonce",
        dsl_temperature: float = 1000.0,
        ocr: bool = False,
        ocr_words: int = 200,
    ) -> None:
        folder = HfFolder.find(path, trust)
        made = folder.network(pretrained, network)
        calls = Calls.find(made, text_method, video_method, layout)
        frames = _frames(folder, calls, num_frames)
        found = Preprocessing(image_size) if image_size is not None else folder.preprocessing()
        tower = HfTower(folder, made, calls=calls, preprocessing=found, num_frames=frames, temperature=temperature)
        super().__init__(
            tower=tower,
            frames=FrameSpec(frames, 0, sampling, framerate, frame_position, found.resize),
            max_words=max_words,
            head_dim=head_dim or _head_dim(tower),
            mask_layout="per_video",
            gather=gather,
            same_video_positives=same_video_positives,
            loss=loss,
            dsl_temperature=dsl_temperature,
            ocr=ocr,
            ocr_words=ocr_words,
            activation_checkpointing=activation_checkpointing,
            compile=compile,
        )
        if pretrained == "folder" and folder.is_only_configuration:
            self.starts_random = f"model.path={path} is a configuration without weights"
        if not calls.frames and head_class(head).reads_frames:
            raise UserError(
                f"{tower.arch} has one vector for a whole video, the head {head_class(head).__name__} reads one per "
                "frame; set model.head=meanP, or name a method for single images by model.video_method"
            )
        self.add_head(head)

    def text_tokens(self, batch: TextBatch) -> TextTokens:
        """What the network makes of captions."""
        tokens_BL, mask_BL = batch.tokens_BL, batch.mask_BL
        if self.tower.fixed_length or self.head.reads_padding:
            tokens_BL, mask_BL = pad_words(tokens_BL, mask_BL, self.max_words, self._padding())
        if not self.head.reads_words:
            return TextTokens(full_precision(self.tower.encode_text(tokens_BL, mask_BL)), mask_BL)
        sentence_BD, words_BLD = self.tower.encode_text_tokens(tokens_BL, mask_BL)
        return TextTokens(full_precision(sentence_BD), mask_BL, full_precision(words_BLD))

    def encode_words(self, tokens_NL: Tensor, mask_NL: Tensor) -> Tensor:
        tokens_NL = tokens_NL.masked_fill(~mask_NL, self._padding())
        if self.tower.fixed_length:
            tokens_NL, mask_NL = pad_words(tokens_NL, mask_NL, self.max_words, self._padding())
        return full_precision(self.tower.encode_text(tokens_NL, mask_NL))

    def _padding(self) -> int:
        tokenizer = self.tower.tokenizer(self.max_words)
        return tokenizer.padding if isinstance(tokenizer, HfTokenizer) else 0

    def video_tokens(self, batch: VideoBatch) -> VideoTokens:
        """One vector per frame, or one per video where the network reads whole videos."""
        if self.tower.calls.frames:
            return super().video_tokens(batch)
        frames_BTCHW, mask_BT = pixels(batch)
        pooled_BD: Tensor = full_precision(self.tower.encode_video(frames_BTCHW, mask_BT))
        one_B1D = pooled_BD[:, None]
        return VideoTokens(one_B1D, mask_BT.any(dim=1, keepdim=True), one_B1D, pooled_BD=pooled_BD)


def _frames(folder: HfFolder, calls: Calls, wanted: int | None) -> int:
    """Frames per video; networks over whole videos are built for one number."""
    built_for = folder.setting("vision_config.num_frames", "num_frames") if not calls.frames else None
    if built_for is not None and wanted not in (None, built_for):
        raise UserError(
            f"model.num_frames={wanted}, but {folder.path} was built for {built_for} frames; "
            f"set model.num_frames={built_for}"
        )
    return int(built_for or wanted or 8)


def _head_dim(tower: HfTower) -> int:
    """The text tower's, where it fits; the largest power of two up to 64 that does else."""
    per_head = max(1, tower.text_width // tower.text_heads)
    return per_head if tower.embed_dim % per_head == 0 else math.gcd(tower.embed_dim, 64)
