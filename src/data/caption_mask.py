"""Which captions training leaves out because they describe their video badly (denoising).

A mask file is JSON: `format`, `version`, `origin` (where it comes from) and `masks`, a string for each video with one
digit for each of its captions in the order of the annotation, 1 = kept, 0 = left out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.data.annotation import CaptionRecord
from src.data.feature_source import FeatureSource
from src.data.splits import SplitPart
from src.data.whole_file import write_whole
from src.errors import UserError

logger = logging.getLogger(__name__)
FORMAT = "videotext caption mask"
VERSION = 1


@dataclass(frozen=True)
class KeptCaptions:
    """A mask applied to a part.

    Attributes:
        kept_N: bool, of the captions of the part.
        num_dropped: captions left out.
        videos_dropped: ids of the videos of which no caption is left; training goes without them.
        file: name of the mask file.
    """

    kept_N: np.ndarray
    num_dropped: int
    videos_dropped: tuple[str, ...]
    file: str

    def words(self) -> str:
        """For the protocol line."""
        videos = f", {len(self.videos_dropped)} videos without any" if self.videos_dropped else ""
        return f"{self.num_dropped} of {len(self.kept_N)} training captions left out{videos} ({self.file})"


def read_mask(path: Path) -> Mapping[str, str]:
    """Video id -> its digits.

    Raises:
        UserError: no such file, or not a mask.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"dataset.caption_mask={path} does not exist; make it by task=prepare task.steps=[denoise] "
            "task.teacher=teacher.NAME, or import a published one by task=convert task.source=PICKLE task.output=FILE"
        ) from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as a caption mask ({error}); make it again") from error
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise UserError(
            f"{path} is no {FORMAT} of version {VERSION}; import a published pickle by task=convert task.source={path}"
        )
    return content["masks"]


def write_mask(path: Path, masks: Mapping[str, Sequence[bool]], origin: Mapping[str, Any]) -> None:
    """Write a mask file.

    Args:
        path: ends in .json.
        masks: video id -> whether each of its captions is kept, in the order of the annotation.
        origin: where it comes from, as plain JSON.

    Raises:
        UserError: another ending.
    """
    if path.suffix != ".json":
        raise UserError(f"found {path} for a caption mask, expected a name that ends in .json; rename it")
    digits = {video: "".join("01"[bool(kept)] for kept in of_video) for video, of_video in masks.items()}
    content = {"format": FORMAT, "version": VERSION, "origin": dict(origin), "masks": digits}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=0, ensure_ascii=False).encode() + b"\n")


def number_of(caption: CaptionRecord) -> int:
    """Position of a caption among those of its video in the annotation.

    Raises:
        UserError: it is a paragraph of several sentences, or has a key without a number.
    """
    number = caption.keys[0].rpartition("#")[2] if len(caption.keys) == 1 else ""
    if not number.isdecimal():
        raise UserError(
            f"a caption of video {caption.video_id!r} has the keys {list(caption.keys)}, expected one such as "
            "video#3: masks are for single captions of the annotation; drop dataset.caption_mask"
        )
    return int(number)


def apply_mask(path: Path, part: SplitPart) -> KeptCaptions:
    """What is left of a part.

    Raises:
        UserError: the file is no mask, knows fewer videos or captions, or leaves nothing.
    """
    masks = read_mask(path)
    unknown = [video.id for video in part.videos if video.id not in masks]
    if unknown:
        raise UserError(
            f"{path} lacks {len(unknown)} of {len(part.videos)} {part.name} videos (first: {unknown[0]!r}), expected "
            "all of them; is it of this data set and split?"
        )
    kept_N = np.zeros(len(part.captions), dtype=bool)
    for position, caption in enumerate(part.captions):
        digits, number = masks[caption.video_id], number_of(caption)
        if number >= len(digits):
            raise UserError(
                f"{path} has {len(digits)} captions of video {caption.video_id!r}, found caption number {number}; "
                "use the annotation file that the mask was made for"
            )
        kept_N[position] = digits[number] == "1"
    if not kept_N.any():
        raise UserError(f"{path} leaves no caption of the {part.name} part; drop dataset.caption_mask")
    with_caption = {part.video_index[position] for position in np.flatnonzero(kept_N).tolist()}
    gone = tuple(video.id for index, video in enumerate(part.videos) if index not in with_caption)
    return KeptCaptions(kept_N, int((~kept_N).sum()), gone, path.name)


def captions_to_train_on(
    part: SplitPart, kept: KeptCaptions | None, features: FeatureSource | None
) -> np.ndarray | None:
    """bool (N,), captions that the mask leaves and of which the model is told something; None = all of them.

    Args:
        part: the training part.
        kept: what the mask says; None without mask.
        features: all that the model is told of captions; None when it reads their words.

    Raises:
        UserError: no caption has a feature.
    """
    if kept is not None:
        logger.info("caption mask: %s", kept.words())
    kept_N = None if kept is None else kept.kept_N
    if not features:
        return kept_N
    known_N = np.array([features.has_any(caption.keys) for caption in part.captions])
    if known_N.all():
        return kept_N
    names = ", ".join(spec.name for spec in features.specs)
    if not known_N.any():
        raise UserError(
            f"none of the {len(known_N)} training captions has a feature in {names}; extract them, or choose another "
            "option of the group text"
        )
    lacking = int((~known_N).sum())
    logger.warning("%d of %d training captions have no feature in %s: left out", lacking, len(known_N), names)
    return known_N if kept_N is None else known_N & kept_N
