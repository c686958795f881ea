"""The typed objects that flow between data, models, metrics and search.

This module sits below both `src.data` and `src.models`, so that neither needs to import the other.

Shape suffixes: B batch, L tokens, T frames, C channels, H height, W width (of `WordBatch`: words), D features,
E experts, P numbers of a position, N any number of items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, Protocol, Self

import torch
from torch import Tensor


def _map_tensors(value: object, apply: Callable[[Tensor], Tensor]) -> object:
    if isinstance(value, Tensor):
        return apply(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(item, apply) for key, item in value.items()}
    if isinstance(value, _Tensors):
        return value.map(apply)
    return value


class _Tensors:
    """Shared behaviour of the frozen dataclasses below: move, pin, transform every tensor."""

    def map(self, apply: Callable[[Tensor], Tensor]) -> Self:
        """Return a copy with `apply` called on every tensor, however deep."""
        changes = {f.name: _map_tensors(getattr(self, f.name), apply) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **changes)  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self.map(Tensor.pin_memory)


@dataclass(frozen=True)
class TextBatch(_Tensors):
    """Tokenised captions.

    Attributes:
        tokens_BL: int64 token ids, padded to the longest caption of the batch: L differs between batches, so a
            model that returns one vector per token pads it to a length of its own. No columns for a model without
            tokenizer.
        mask_BL: bool, True on real tokens.
        ids: int64 (B,), position of each caption in its split's caption list.
        video_ids: int64 (B,), position of the video that each caption describes in the split's video list.
        features: name -> precomputed x_BLD (one vector per token) or x_BD.
        feature_masks: name -> bool mask_BL of those with a token axis.
        present_BE: bool, whether the caption has the features; columns in the order of `features`.
    """

    tokens_BL: Tensor
    mask_BL: Tensor
    ids: Tensor
    video_ids: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    feature_masks: Mapping[str, Tensor] = field(default_factory=dict)
    present_BE: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class WordBatch(_Tensors):
    """The words that were read in the pictures of videos, best first.

    Attributes:
        tokens_BWL: int64, each word its own sequence; slots beyond a video's last word hold the ids of the word " ".
            W = most words of a video of the batch, at least 1; L = longest word of the batch.
        mask_BWL: bool, True on real pieces, those of the word " " included.
        words_BW: bool, True on real words; no True in the row of a video without any.
        positions_BWP: float32, P = 12 numbers of when and where (`src.data.ocr.position`), frame numbers already
            divided by the length and pixels by the size of the video; zeros beyond the last word.
    """

    tokens_BWL: Tensor
    mask_BWL: Tensor
    words_BW: Tensor
    positions_BWP: Tensor

    def __len__(self) -> int:
        return len(self.words_BW)


@dataclass(frozen=True)
class VideoBatch(_Tensors):
    """Videos as frames, as expert features, or both.

    Attributes:
        ids: int64 (B,), position of each video in its split's video list.
        frames_BTCHW: uint8 RGB (the model normalises on its own device) or float, already normalised;
            None for feature-only data.
        mask_BT: bool, True on real frames; padded frames are zeros. None for feature-only data.
        features: expert name -> x_BTD (or x_BD when the expert is one vector a video).
        feature_masks: expert name -> bool mask_BT of the temporal experts.
        present_BE: bool, whether the video has the expert; columns in the order of `features`.
            A missing expert is said here, never by zeros alone.
        words: what was read in the pictures; None for models that do not ask for it.
    """

    ids: Tensor
    frames_BTCHW: Tensor | None = None
    mask_BT: Tensor | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    feature_masks: Mapping[str, Tensor] = field(default_factory=dict)
    present_BE: Tensor | None = None
    words: WordBatch | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TeacherScores(_Tensors):
    """How well the captions of a batch fit videos, in the view of models that were trained before.

    Attributes:
        scores: teacher's name -> s_BN, one row for each caption of the batch; perhaps in half precision.
        video_ids: int64 (N,), the video of each column, ascending; all videos of the batch are among them.
    """

    scores: Mapping[str, Tensor]
    video_ids: Tensor


@dataclass(frozen=True)
class PairBatch(_Tensors):
    """A training batch: row i of `text` describes row i of `video`, or row `rows[i]` where `rows` is given.

    Attributes:
        text: the captions (B).
        video: their videos, one for each caption; or each distinct video once, so that it is encoded once.
        rows: int64 (B,), row of `video` that each caption describes; None = the same row.
        teachers: what the model should learn to score the pairs like; None = nothing.
    """

    text: TextBatch
    video: VideoBatch
    rows: Tensor | None = None
    teachers: TeacherScores | None = None

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True)
class Embedding(_Tensors):
    """What an encoder returns: named tensors whose first dimension is the item, plus the items' ids.

    `similarity` is a pure function of two of these, so they can be cut, concatenated, gathered over
    processes, stored and indexed without knowing the model.
    """

    ids: Tensor
    parts: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: slice | Tensor) -> Self:
        return self.map(lambda tensor: tensor[index])

    @classmethod
    def cat(cls, pieces: Sequence[Self]) -> Self:
        """Concatenate along the item dimension; all pieces hold the same parts."""
        first = pieces[0]
        tensors = {
            f.name: torch.cat([getattr(p, f.name) for p in pieces])
            for f in fields(first)
            if isinstance(getattr(first, f.name), Tensor)
        }
        parts = {name: torch.cat([p.parts[name] for p in pieces]) for name in first.parts}
        return replace(first, parts=parts, **tensors)


@dataclass(frozen=True)
class TextEmbedding(Embedding):
    """Encoded captions; `video_ids` (N,) int64 names the video that each caption describes."""

    video_ids: Tensor = field(kw_only=True)


@dataclass(frozen=True)
class VideoEmbedding(Embedding):
    """Encoded videos."""


def positives_mask(text: TextEmbedding, video: VideoEmbedding) -> Tensor:
    """bool (N_text, N_video): True where the caption describes the video."""
    return text.video_ids[:, None] == video.ids[None, :]


class Tokenizer(Protocol):
    """Captions to ids. Picklable: it travels to the loader's workers."""

    @property
    def fingerprint(self) -> str:
        """Says everything that the ids depend on besides the captions: kept ids are reused where it is the same."""
        ...

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return int64 tokens_NL and bool mask_NL (True on real tokens)."""
        ...


FrameSampling = Literal["uniform", "clip2video", "clip4clip", "frozen", "internvideo"]
FrameResize = Literal["crop", "squash", "frozen", "textvr"]
FrameAugment = Literal["none", "frozen", "textvr"]


@dataclass(frozen=True)
class FrameSpec:
    """The frames that a model asks for.

    Attributes:
        num_frames: most frames per video (T); shorter videos are padded and masked.
        image_size: side of the square crop, pixels.
        sampling: rule that picks the frame indices (`src.data.sampling` documents each).
        framerate: frames per second (clip4clip, internvideo) or stride (clip2video) of the first pass; see the rule.
        position: which part of a long clip4clip list survives: 0 head, 1 tail, 2 uniform.
        resize: "crop" = short side to image_size (bicubic, antialiased) and centre crop (CLIP);
            "squash" = both sides to image_size (bilinear, antialiased). "frozen" and "textvr" = the same two shapes as
            the published code of Frozen in Time and TextVR makes them (`src.data.frozen_transforms`).
        augment: how training changes the frames (`src.data.frozen_transforms.training_frames`).
    """

    num_frames: int
    image_size: int
    sampling: FrameSampling = "uniform"
    framerate: int = 1
    position: Literal[0, 1, 2] = 2
    resize: FrameResize = "crop"
    augment: FrameAugment = "none"


@dataclass(frozen=True)
class ExpertSpec:
    """One kind of precomputed features that a model reads, of videos ("expert") or of captions.

    Attributes:
        name: key in `VideoBatch.features` or `TextBatch.features`.
        dim: length of one vector (D).
        temporal: True = x_BTD with a mask; False = x_BD, the mean when several vectors are stored.
        max_steps: temporal only: at most so many vectors, the first ones (T or L); None = all.
        pad: "longest" pads to the longest item of the batch, "max" always to `max_steps` (models whose pooling sees
            the padding, as NetVLAD of Collaborative Experts).
        store: name of the feature store that is read; None = `name`. Two specs may read one store, for example its
            first 64 vectors and the mean of all of them.
        training_only: targets of the loss: evaluation neither reads nor asks for them.
    """

    name: str
    dim: int
    temporal: bool = False
    max_steps: int | None = None
    pad: Literal["longest", "max"] = "longest"
    store: str | None = None
    training_only: bool = False


@dataclass(frozen=True)
class WordSpec:
    """The words in the picture (OCR) that a model reads.

    Attributes:
        tokenizer: of single words; its ids fill `WordBatch.tokens_BWL`, its mask is True on the first of them.
        max_words: at most so many words of a video, the best-scored ones.
        min_length: shorter words are left out, characters.
        rule: how words are cleaned; `src.data.ocr.ocr_format` documents both.
        position_rule: how they are placed; None = as `rule`.
        positions: False for models that do not look at them: they are zeros, and no video is asked for its size.
    """

    tokenizer: Tokenizer
    max_words: int = 200
    min_length: int = 3
    rule: Literal["fixed", "upstream"] = "fixed"
    position_rule: Literal["fixed", "upstream"] | None = None
    positions: bool = True


@dataclass(frozen=True)
class WindowSpec:
    """Evaluation over several frame samples of each video, shifted against each other (`src.data.sliding_window`).

    The rows of `VideoBatch` are then windows: those of one video stand side by side and have its id.

    Attributes:
        stride: frames between two windows.
        count: how many there are; `src.data.sliding_window.window_starts` documents both.
        most: at most so many, spread evenly over all of them; None = no limit.
    """

    stride: int
    count: Literal["intervals", "upstream"] = "intervals"
    most: int | None = 64

    @property
    def words(self) -> str:
        """For the protocol."""
        limit = "" if self.most is None else f", at most {self.most}"
        return f"every {self.stride} frames ({self.count}{limit})"


@dataclass(frozen=True)
class InputSpec:
    """What a model needs from the data; the only thing a DataModule learns of the model.

    Attributes:
        tokenizer: None for models that read precomputed text features only.
        frames: None for models that read no frames.
        experts: precomputed features of videos.
        text_features: precomputed features of captions.
        teachers: stores of scores that training imitates; evaluation neither reads nor asks for them.
        words: None for models that read no words in the picture.
        windows: for evaluations over several frame samples of a video; None = one of each.
    """

    tokenizer: Tokenizer | None
    frames: FrameSpec | None = None
    experts: tuple[ExpertSpec, ...] = ()
    text_features: tuple[ExpertSpec, ...] = ()
    teachers: tuple[str, ...] = ()
    words: WordSpec | None = None
    windows: WindowSpec | None = None
