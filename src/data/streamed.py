"""Data sets of millions of pairs: one csv row, one file, one caption. Rows stay columns; records are made when used.

A split of millions costs a few hundred bytes a pair here, where records, lists and sets would cost several thousand.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from src.data.annotation import Annotation
from src.data.benchmarks.published import PublishedDataModule
from src.data.caption_tokens import CaptionTokens, TokensOnDemand
from src.data.columns import Chained
from src.data.listing import Captions, Ids, Listing, Texts, Videos
from src.data.splits import AppliedSplit, Counts, Exclusion, SplitPart, by_hash
from src.errors import UserError

logger = logging.getLogger(__name__)

LISTED = 1_000  # of each kind of exclusion; the others are counted
SAMPLE = 1_000  # rows of the published val part
FilePart = Literal["train", "val"]
Kind = Literal["missing video", "empty caption", "video without caption"]
DETAILS: Mapping[Kind, str] = {"missing video": "file not found", "empty caption": "the caption has no word"}


@dataclass(frozen=True)
class OnePerVideo(SplitPart):
    """A part in which each video has one caption."""

    def captions_per_video(self) -> list[int]:
        return [1] * len(self.videos)


@dataclass(frozen=True)
class CountedSplit(AppliedSplit):
    """A split of which at most `LISTED` exclusions of a kind are listed; `counts` has all of them."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def excluded_counts(self, part: str) -> dict[str, int]:
        return dict(self.counts.get(part, {}))


@dataclass(frozen=True, eq=False)
class Chosen:
    """Rows of a listing that are an id list."""

    listing: Listing
    rows_R: Tensor

    def ids(self) -> Ids:
        """Their video ids."""
        return Ids(self.listing, self.rows_R)

    def only(self, keep_R: np.ndarray) -> Chosen:
        """Those of them where `keep_R`, bool (R,), says so."""
        return Chosen(self.listing, self.rows_R[torch.from_numpy(keep_R)])


@dataclass(eq=False, kw_only=True, repr=False)
class StreamedDataModule(PublishedDataModule, ABC):
    """A data set whose parts come from csv files with one row for each video, or image, and its caption.

    Id lists: train and val (each file whole), and val_1k, the `SAMPLE` rows of val that Frozen in Time validates on.
    """

    @abstractmethod
    def table_of(self, part: FilePart) -> str:
        """Name of the csv of a part."""

    @abstractmethod
    def read_rows(self, part: FilePart, path: Path) -> Listing:
        """Read the csv of a part.

        Raises:
            UserError: it is damaged.
        """

    def read(self) -> Annotation:
        """All rows of the files that the split uses; their records are made when they are looked at."""
        chosen = {name: self.chosen(name) for name in dict.fromkeys(self.split.parts.values())}
        # val_1k is a part of val
        whole = {
            id(listing): listing for listing in (self.listings[_file_of(name)] for name in self.split.parts.values())
        }
        root = Path(self.videos_dir).expanduser()
        rows = [(listing, torch.arange(len(listing))) for listing in whole.values()]
        return Annotation(
            Chained([Videos(listing, rows_R, root) for listing, rows_R in rows]),
            Chained([Captions(listing, rows_R) for listing, rows_R in rows]),
            {name: part.ids() for name, part in chosen.items()},
        )

    @cached_property
    def annotation(self) -> Annotation:
        """What `read` returns; ids are unique as they are made."""
        return self.read()

    @cached_property
    def listings(self) -> dict[str, Listing]:
        """File -> its rows, of the files that the split uses."""
        found: dict[str, Listing] = {}
        for name in self.split.parts.values():
            part = _file_of(name)
            path = self.need((self.table_of(part),), name)
            if part not in found and path is not None:
                found[part] = self.read_rows(part, path)
        return found

    def chosen(self, name: str) -> Chosen:
        """The rows of an id list.

        Raises:
            UserError: there is no such list.
        """
        if name not in ("train", "val", "val_1k"):
            raise UserError(
                f"split {self.split.name!r} uses the list {name!r}, expected train, val or val_1k; "
                "choose one with split.parts.PART=LIST"
            )
        listing = self.listings[_file_of(name)]
        if name != "val_1k":
            return Chosen(listing, torch.arange(len(listing)))
        picked = published_sample(listing.total)
        place = {number: row for row, number in enumerate(listing.rows_R.tolist())}
        return Chosen(listing, torch.tensor([place[n] for n in picked if n in place], dtype=torch.int64))

    @cached_property
    def applied(self) -> AppliedSplit:
        """The split's parts, and what was left out of them."""
        self._check_split()
        chosen = {part: self.chosen(name) for part, name in self.split.parts.items()}
        _check_disjoint(self.split.name, chosen)
        for part, expected in self.split.expected.items():
            if part in chosen:
                found = Counts(len(chosen[part].rows_R), len(chosen[part].rows_R))
                if not expected.agrees_with(found):
                    raise UserError(
                        f"split {self.split.name!r}: {part} has {found}, expected {expected}; use the published files, "
                        f"or set split.expected.{part} to your own numbers"
                    )
        if self.split.val_holdout:
            chosen = _hold_out(chosen, self.split.val_holdout)
        parts: dict[str, SplitPart] = {}
        excluded: list[Exclusion] = []
        counts: dict[str, dict[str, int]] = {}
        for part in (name for name in ("train", "val", "test") if name in chosen):
            parts[part], left_out, counts[part] = self._build(part, chosen[part])
            excluded += left_out
        return CountedSplit(self.split, parts, tuple(excluded), counts)

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if self.unique_videos_in_batch or self.keep_groups_together:
            raise UserError(
                "dataset.unique_videos_in_batch or keep_groups_together, but every video has one caption and no "
                "group; set them to false"
            )

    def missing(self, chosen: Chosen) -> np.ndarray:
        """bool (R,): rows of an id list without a file, or without the experts that the model reads."""
        root = Path(self.videos_dir).expanduser()
        if self.inputs.frames is None:
            if not self.inputs.experts:
                return np.zeros(len(chosen.rows_R), dtype=bool)
            return np.array([not self.is_available(video) for video in self.videos_of(chosen)], dtype=bool)
        gone_R = ~chosen.listing.has_file(root)[chosen.rows_R.numpy()]
        if self.cache == "disk":
            rows = chosen.rows_R[torch.from_numpy(gone_R)]
            cached = [self.source.has_cached(video) for video in Videos(chosen.listing, rows, root)]
            gone_R[gone_R] = ~np.array(cached, dtype=bool)
        return gone_R

    def videos_of(self, chosen: Chosen) -> Videos:
        """Videos of an id list."""
        return Videos(chosen.listing, chosen.rows_R, Path(self.videos_dir).expanduser())

    def _build(self, part: str, chosen: Chosen) -> tuple[SplitPart, list[Exclusion], dict[str, int]]:
        """Leave out what cannot be used.

        Raises:
            UserError: files are missing while every one is wanted.
        """
        gone_R = self.missing(chosen)
        blank_R = chosen.listing.is_blank()[chosen.rows_R.numpy()] & ~gone_R
        if gone_R.any() and self.split.subset == "full":
            first = self.videos_of(chosen)[int(np.argmax(gone_R))]
            raise UserError(
                f"split {self.split.name!r}: {gone_R.sum():,} of {len(gone_R):,} files of {part} are missing (first: "
                f"{first.id!r} at {first.path}), expected all of them; add the files, or use what is there with "
                "split.subset=available"
            )
        excluded: list[Exclusion] = []
        counts: dict[str, int] = {}
        masks: dict[Kind, np.ndarray] = {"missing video": gone_R, "empty caption": blank_R}
        for kind, mask_R in masks.items():
            if mask_R.any():
                counts[kind] = int(mask_R.sum())
                some = self.videos_of(chosen.only(mask_R))[:LISTED]
                excluded += [Exclusion(part, kind, video.id, str(video.path), DETAILS[kind]) for video in some]
                logger.warning(
                    "%s: %s of %s videos left out: %s; the first %d are listed, task=check_data lists all",
                    *(part, f"{counts[kind]:,}", f"{len(mask_R):,}", kind, len(some)),
                )
        kept = chosen.only(~(gone_R | blank_R))
        captions = Captions(kept.listing, kept.rows_R)
        return OnePerVideo(part, self.videos_of(kept), captions, range(len(captions))), excluded, counts

    def _tokens_of(self, part: SplitPart) -> CaptionTokens:
        """Those of the training part are made batch by batch."""
        captions = part.captions
        if self.inputs.tokenizer is None or part.name != "train" or not isinstance(captions, Captions):
            return super()._tokens_of(part)
        if part.name not in self._tokens:
            texts = Texts(captions.listing, captions.rows_R)
            self._tokens[part.name] = TokensOnDemand(texts, self.inputs.tokenizer)
        return self._tokens[part.name]

    def _check_split(self) -> None:
        policies = {part: policy for part, policy in self.split.captions.items() if policy not in ("all", "first")}
        if policies or self.split.caption_holdout:
            what = f"split.captions={policies}" if policies else f"split.caption_holdout={self.split.caption_holdout}"
            raise UserError(f"{what}, but each video of {self.name} has one caption, expected all or first")


def published_sample(total: int) -> list[int]:
    """Rows of the published val part: `DataFrame.sample(1000, random_state=0)` of the whole file.

    Source: m-bain/frozen-in-time@e1f13e1, the loaders of WebVid and ConceptualCaptions3M.
    Deviates: a file with fewer rows is used whole.
    """
    if total <= SAMPLE:
        return list(range(total))
    drawn: np.ndarray = np.random.RandomState(0).choice(total, size=SAMPLE, replace=False)
    return drawn.tolist()


def _file_of(name: str) -> FilePart:
    """Which file an id list comes from."""
    return "train" if name == "train" else "val"


def _check_disjoint(split: str, chosen: Mapping[str, Chosen]) -> None:
    """Raise UserError when two parts share a video."""
    parts = list(chosen)
    for position, first in enumerate(parts):
        for second in parts[position + 1 :]:
            one, other = chosen[first], chosen[second]
            keys = other.listing.key_R[other.rows_R].numpy()
            shared_R = np.isin(keys, one.listing.key_R[one.rows_R].numpy())
            if shared_R.any():
                name = other.ids()[int(np.argmax(shared_R))]
                raise UserError(
                    f"split {split!r}: {shared_R.sum():,} videos are both in {first} and in {second} (first: "
                    f"{name!r}), expected disjoint parts; remove them from one of the files"
                )


def _hold_out(chosen: Mapping[str, Chosen], count: int) -> dict[str, Chosen]:
    """Make a val part of the train videos whose ids have the smallest hashes."""
    train = chosen["train"]
    if count >= len(train.rows_R):
        raise UserError(f"split.val_holdout={count}, but train has {len(train.rows_R)} videos; hold out fewer")
    ids = train.ids()
    place = {video_id: row for row, video_id in enumerate(ids)}
    held = np.zeros(len(ids), dtype=bool)
    held[[place[video_id] for video_id in by_hash(place)[:count]]] = True
    return {**chosen, "train": train.only(~held), "val": train.only(held)}
