"""TextVR: Frozen in Time that also reads the words in the picture.

Shape suffixes: B items, L words of a caption, K words of a video, D joint dimension.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from src.batch import (
    FrameAugment,
    FrameResize,
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
from src.losses.gather import GatherMode
from src.models.base import Ties
from src.models.bert_text import BertText
from src.models.clip_retrieval import full_precision
from src.models.frozen import (
    NOTHING,
    FrozenBase,
    FrozenLoss,
    Projection,
    ranking_loss,
    sized,
    video_tower,
)
from src.models.ocr_fusion import OcrFusion, words_of
from src.models.space_time import TemporalFit, TimeInit
from src.models.word_overlap import NO_WORD, WORDS_OF_VIDEO, WholeWords, shared_words

Mode = Literal["fusion", "vision", "ocr", "offline"]
Parts = Literal["all", "frozen", "video"]
OcrRule = Literal["fixed", "upstream"]

FUSION = re.compile(r"(query_token$|(ocr_model|fusion_model|type_embedding|ocr_pos_embeds|fusion_proj)\.)")
"""Published names of what `OcrFusion` holds."""
PARTS: dict[Parts, re.Pattern[str]] = {
    "all": NOTHING,
    "frozen": re.compile(r"fusion\."),
    "video": re.compile(r"(?!video_model\.)"),
}
"""Of a checkpoint: names that are left alone, in the file and in the model."""
TOWER_OF_CAPTIONS = re.compile(r"(fusion|video_model|vid_proj)\.")
"""The same of "frozen" where the model has no video tower."""
QUIET = 0.1  # of a picture that starts after the words; 1 = as loud as they


class TextVR(FrozenBase):
    """TextVR (arXiv 2305.03347), called StarVR there: captions against what is seen and read in a video.

    Args:
        mode: "fusion" sees and reads; "vision" only sees (Frozen in Time); "ocr" only reads, without positions;
            "offline" counts the words that a caption shares with the video's 20 best: nothing to train, evaluate it
            with `task.random_weights=true ties=average`.
        text_model: of captions, and once more, with weights of its own, of the words in the picture; see `Frozen`.
        vit: shape of the video tower; see `Frozen`, also for the next five.
        image_size: side of the frames, pixels.
        patch_size: side of a patch, pixels.
        width: numbers per patch; for "fusion" those of the text model.
        depth: blocks.
        heads: attention heads.
        num_frames: frames per video; see `Frozen`.
        max_words: tokens per caption, special ones included.
        time_init: see `Frozen`.
        load_temporal: see `Frozen`.
        projection: "minimal" or "none"; see `FrozenBase`.
        projection_dim: length of the vectors that are compared.
        pretrained: file of TextVR's or Frozen in Time's, published or converted.
        pretrained_parts: "all": it holds this model, no less and no more; "frozen": the towers that the model has, and
            their projections, the words' part starts afresh or is left out; "video": the video tower only, as TextVR
            starts from Frozen in Time.
        vit_weights: see `Frozen`.
        loss: "norm_softmax" or "max_margin".
        temperature: of norm_softmax, fixed.
        margin: of max_margin.
        sampling: see `Frozen`.
        resize: "textvr" as published; see `Frozen`.
        augment: "textvr" as published, which does not mirror what is written; see `Frozen`.
        ocr_words: most words of a video.
        ocr_pieces: tokens per word, special ones included; the rest of a longer word is cut off.
        ocr_rule: how words are cleaned, "upstream" as published; see `src.data.ocr.ocr_format`.
        ocr_positions: how they are placed, "upstream" as published.
        ocr_heads: of the attention over the words.
        ocr_hide_picture: share of training videos with words whose picture is hidden; see `OcrFusion`.
        ocr_start: where no checkpoint gives the words' part: "published", at random but for the text model; or
            "words_first": words count as those of captions from the first step (`OcrFusion.align`), and the picture
            starts at a tenth. A word of few clips is else learnt together with their pictures, and not recognised with
            others.
        ocr_words_per_pass: see `OcrFusion`.
        ocr_checkpointing: less memory for words; see `OcrFusion`.
        ocr_share_words: repeated words are encoded once in training, too; see `OcrFusion`.
        gather: "exact" gradients over processes or "upstream", 1/W of them.
        same_video_positives: see `Frozen`.

    Source: callsys/TextVR model/model.py @ ae16786.
    Deviates: captions are compared with what the attention made of picture and words in evaluation, too; upstream's
        `forward` without `return_embeds` compares them with the picture. In "offline" a repeated word does not take two
        of the 20 places, scores are numbers, captions become lower case; see also `shared_words`.
    """

    def __init__(
        self,
        *,
        text_model: str,
        mode: Mode = "fusion",
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
        pretrained_parts: Parts = "all",
        vit_weights: str | None = None,
        loss: FrozenLoss = "norm_softmax",
        temperature: float = 0.05,
        margin: float = 1.0,
        sampling: Literal["frozen", "uniform"] = "frozen",
        resize: FrameResize = "textvr",
        augment: FrameAugment = "textvr",
        ocr_words: int = 200,
        ocr_pieces: int = 64,
        ocr_rule: OcrRule = "fixed",
        ocr_positions: OcrRule = "fixed",
        ocr_heads: int = 8,
        ocr_hide_picture: float = 0.0,
        ocr_start: Literal["published", "words_first"] = "published",
        ocr_words_per_pass: int = 1024,
        ocr_checkpointing: bool = False,
        ocr_share_words: bool = False,
        gather: GatherMode = "exact",
        same_video_positives: bool = False,
    ) -> None:
        sees, reads = mode in ("fusion", "vision"), mode in ("fusion", "ocr")
        size = sized(vit, image_size=image_size, patch_size=patch_size, width=width, depth=depth, heads=heads)
        from_folder = pretrained is None or pretrained_parts == "video"
        vit_weights = vit_weights if pretrained is None else None
        super().__init__(
            text=BertText(text_model, weights=from_folder) if mode != "offline" else None,
            video=video_tower(size, num_frames, time_init, vit, vit_weights) if sees else None,
            frames=FrameSpec(num_frames, size.image_size, sampling, resize=resize, augment=augment) if sees else None,
            max_words=max_words,
            projection=projection,
            projection_dim=projection_dim,
            ranking=ranking_loss(loss, temperature, margin, gather, same_video_positives),
        )
        self.ocr_words, self.ocr_pieces = ocr_words, ocr_pieces
        self.ocr_rule: OcrRule = ocr_rule
        self.ocr_positions: OcrRule = ocr_positions
        self.fusion: OcrFusion | None = None
        if reads:
            self.fusion = self._make_fusion(
                self._word_encoder(text_model, same_start=from_folder, weights=pretrained_parts != "all"),
                None if projection == "none" else projection_dim,
                num_heads=ocr_heads,
                words_per_pass=ocr_words_per_pass,
                activation_checkpointing=ocr_checkpointing,
                share_words=ocr_share_words,
                hide_picture=ocr_hide_picture,
            )
        self._check_options(mode, pretrained, pretrained_parts)
        if pretrained is not None:
            left = PARTS[pretrained_parts] if sees or pretrained_parts != "frozen" else TOWER_OF_CAPTIONS
            self.load_pretrained(pretrained, load_temporal, left, left)
            if pretrained_parts == "video" or (pretrained_parts == "frozen" and reads):
                self.starts_random = f"model.pretrained_parts={pretrained_parts} leaves layers of the score at random"
        if self.fusion is not None and ocr_start == "words_first" and (from_folder or pretrained_parts == "frozen"):
            self._start_with_words(self.fusion)

    def _check_options(self, mode: Mode, pretrained: str | None, parts: Parts) -> None:
        if mode != "vision" and min(self.ocr_words, self.max_words) < 1:
            raise UserError(
                f"found model.ocr_words={self.ocr_words} and max_words={self.max_words}, expected at least 1 of each; "
                "model.mode=vision reads no words"
            )
        if pretrained is not None and self.text_model is None:
            raise UserError(f"model.mode=offline has no parameters, found model.pretrained={pretrained}; drop it")
        if pretrained is not None and parts == "video" and self.video_model is None:
            raise UserError(
                f"model.pretrained_parts=video reads a video tower, model.mode={mode} has none; drop model.pretrained, "
                "or choose pretrained_parts=all"
            )

    def _word_encoder(self, text_model: str, same_start: bool, weights: bool) -> BertText:
        """A text model for words, which starts as that of captions does, or from the folder where that one did not."""
        assert self.text_model is not None
        encoder = BertText(text_model, weights=weights and not same_start, pooled=False)
        if same_start:
            encoder.load_state_dict(self.text_model.state_dict())
        return encoder

    def _make_fusion(self, words: BertText, projection_dim: int | None, **options: Any) -> OcrFusion:
        video = self.video_model
        if video is not None and video.width != words.width:
            raise UserError(
                f"model.mode=fusion attends to words of {words.width} numbers and a picture of {video.width}; set "
                f"model.width={words.width} (with model.heads that divide it), or choose a model.vit of this width"
            )
        if self.vid_proj is not None:
            # Kept for checkpoints; nothing reads it, and a parameter without gradient would stall DDP.
            self.vid_proj.requires_grad_(False)
        return OcrFusion(words, words.width, projection_dim, reads_video=video is not None, **options)

    @torch.no_grad()
    def _start_with_words(self, fusion: OcrFusion) -> None:
        assert self.text_model is not None
        assert self.txt_proj is not None
        fusion.ocr_model.load_state_dict(self.text_model.state_dict())
        fusion.align(self.txt_proj)
        if self.video_model is not None:
            for parameter in self.video_model.norm.parameters():
                parameter.mul_(QUIET)

    @property
    def input_spec(self) -> InputSpec:
        if self.text_model is None:
            words = self._word_spec(WholeWords(1), min(self.ocr_words, WORDS_OF_VIDEO), min_length=1)
            return InputSpec(tokenizer=WholeWords(self.max_words), words=words)
        if self.fusion is None:
            return super().input_spec
        words = self._word_spec(self.text_model.tokenizer(self.ocr_pieces, "model.ocr_pieces"), self.ocr_words)
        return replace(super().input_spec, words=words)

    def _word_spec(self, tokenizer: Tokenizer, most: int, min_length: int = 3) -> WordSpec:
        return WordSpec(
            tokenizer,
            max_words=most,
            min_length=min_length,
            rule=self.ocr_rule,
            position_rule=self.ocr_positions,
            positions=self.fusion is not None and self.fusion.reads_video,
        )

    def encode_text(self, batch: TextBatch) -> TextEmbedding:
        """The caption's vector (B, D), not normalised; without parameters, its words (B, L)."""
        if self.text_model is not None:
            return super().encode_text(batch)
        words_BL = batch.tokens_BL.masked_fill(~batch.mask_BL, NO_WORD)
        words_BL = F.pad(words_BL, (0, self.max_words - words_BL.shape[1]), value=NO_WORD)
        return TextEmbedding(ids=batch.ids, parts={"text": words_BL}, video_ids=batch.video_ids)

    def encode_video(self, batch: VideoBatch) -> VideoEmbedding:
        """The video's vector (B, D), not normalised; without parameters, its words (B, K)."""
        if self.fusion is not None:
            picture_BV = None if self.video_model is None else self.video_features(batch)
            video_BD = full_precision(self.fusion(words_of(batch), picture_BV))
            return VideoEmbedding(ids=batch.ids, parts={"video": video_BD})
        if self.text_model is not None:
            return super().encode_video(batch)
        words = words_of(batch)
        words_BK = words.tokens_BWL.masked_fill(~words.mask_BWL, NO_WORD)[..., 0]
        words_BK = F.pad(words_BK, (0, WORDS_OF_VIDEO - words_BK.shape[1]), value=NO_WORD)
        return VideoEmbedding(ids=batch.ids, parts={"video": words_BK})

    def similarity(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        """Cosines; without parameters, numbers of shared words."""
        if self.text_model is not None:
            return super().similarity(text, video)
        return shared_words(text.parts["text"], video.parts["video"])

    def own_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"fusion.{name}" if FUSION.match(name) else name: value for name, value in state.items()}

    def check_kind(self, given: Mapping[str, Tensor], path: str, fresh: re.Pattern[str]) -> None:
        """See `FrozenBase`.

        Raises:
            UserError: the model reads words and the checkpoint is one that does not, or the other way round.
        """
        reads = any(name.startswith("fusion.") for name in given)
        if reads == (self.fusion is not None) or fresh.match("fusion.query_token"):
            return
        found = "reads words, model.mode=vision does not" if reads else "holds nothing that reads words, the model does"
        raise UserError(
            f"{path} {found}; set model.pretrained_parts=frozen for the towers of captions and videos, or "
            "pretrained_parts=video for that of videos only"
        )

    def configure_optimizers(self) -> Any:
        """See `RetrievalModule`.

        Raises:
            UserError: there is nothing to train.
        """
        if self.text_model is None:
            raise UserError(
                "model.mode=offline has no parameters, found task=fit; type task=evaluate task.random_weights=true "
                "ties=average, or choose model.mode=fusion, vision or ocr"
            )
        return super().configure_optimizers()

    def configure_evaluation(self, ties: Ties, topk: int, loss_batch: int = 0) -> None:
        """See `RetrievalModule`.

        Raises:
            UserError: ties would count as hits, where most pairs tie.
        """
        if self.text_model is None and ties == "optimistic":
            raise UserError(
                "model.mode=offline counts shared words, most pairs share none, and ties=optimistic would rank them "
                "all first; set ties=average (as TextVR) or pessimistic"
            )
        super().configure_evaluation(ties, topk, loss_batch)
