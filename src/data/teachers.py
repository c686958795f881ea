"""Scores that trained models gave to all pairs of a training caption and a training video, read batch by batch.

Such a store has one row for each caption, under the first key of the caption (a paragraph has several), and one
column for each video; the ids of the columns stand in its recipe as `videos`.

Shape suffixes: B captions of a batch, C columns of a batch, V columns of a store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.batch import TeacherScores
from src.data.annotation import CaptionRecord
from src.data.features.store import FeatureStore
from src.data.splits import SplitPart
from src.errors import UserError

MAKE = "python -m src.run task=extract extractor=teacher ckpt_path=RUN"


def row_id(caption: CaptionRecord) -> str | None:
    """Under which a store has the scores of a caption; None for a caption that has no key."""
    return caption.keys[0] if caption.keys else None


def row_ids(part: SplitPart) -> list[str]:
    """The same for all captions of a part.

    Raises:
        UserError: some have no key, or share one.
    """
    found = [row_id(caption) for caption in part.captions]
    ids = [key for key in found if key is not None]
    repeated = [key for key, count in Counter(ids).items() if count > 1]
    if len(ids) < len(found) or repeated:
        what = f"share the key {repeated[0]!r}" if repeated else "have no key"
        raise UserError(
            f"the {part.name} part has captions that {what}, expected a key of its own for each; choose a split whose "
            "captions come from the annotation (split.captions.train=all)"
        )
    return ids


class TeacherSource:
    """Rows of the captions of a batch, from each teacher's store.

    Args:
        names: of the teachers, as in `folders`.
        folders: name -> folder of the store.
        part: whose captions and videos the batches number.
        split: name of the split that the part belongs to.
        whole_rows: give the scores of all videos of the part, not only those of the batch: the loss of several
            processes looks at the videos of all of them.
    """

    def __init__(
        self,
        names: Sequence[str],
        folders: Mapping[str, Path],
        part: SplitPart,
        *,
        split: str,
        whole_rows: bool = False,
    ) -> None:
        self.folders = {name: folders[name] for name in names}
        self.split = split
        self.whole_rows = whole_rows
        self.rows = row_ids(part)
        self.videos = [video.id for video in part.videos]

    def __getstate__(self) -> dict[str, Any]:
        # Workers open the stores themselves.
        return {key: value for key, value in self.__dict__.items() if key != "stores"}

    @cached_property
    def stores(self) -> dict[str, FeatureStore]:
        """The opened store of each teacher."""
        return {name: FeatureStore.open(folder) for name, folder in self.folders.items()}

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Teacher -> int64 (videos of the part,), the column of each video."""
        found = {}
        for name, store in self.stores.items():
            place = {video: column for column, video in enumerate(store.recipe["videos"])}
            found[name] = np.array([place[video] for video in self.videos], dtype=np.int64)
        return found

    def check(self) -> None:
        """Open every store and look for all captions and videos.

        Raises:
            UserError: a store is missing, is none of scores, was made for another split, or lacks something.
        """
        for name, store in self.stores.items():
            self._check(f"teacher {name} ({store.path})", store)

    def batch(self, captions: Sequence[int], videos: Sequence[int]) -> TeacherScores:
        """Scores of these captions with the videos of the batch, or with all of the part."""
        ids_C = np.arange(len(self.videos)) if self.whole_rows else np.unique(videos)
        rows = [self.rows[caption] for caption in captions]
        scores = {}
        for name, store in self.stores.items():
            s_BV, _ = store.rows(rows)
            scores[name] = torch.from_numpy(np.take(s_BV, self.columns[name][ids_C], axis=1))
        return TeacherScores(scores, torch.from_numpy(ids_C.astype(np.int64)))

    def _check(self, called: str, store: FeatureStore) -> None:
        videos = store.recipe.get("videos")
        if not isinstance(videos, list) or len(videos) != store.dim:
            raise UserError(f"{called} holds no scores of training videos; make them by {MAKE}")
        made_for = store.recipe.get("split", self.split)
        if made_for != self.split:
            raise UserError(
                f"{called} was made for the split {made_for!r}, expected {self.split!r}, whose test videos that "
                f"teacher may have seen; make it for this one: {MAKE} and the split"
            )
        known = frozenset(videos)
        lacking = [video for video in self.videos if video not in known]
        if lacking:
            raise UserError(
                f"{called} has no scores of {len(lacking)} of {len(self.videos)} training videos (first: "
                f"{lacking[0]!r}), expected all of them; make it anew for this split: {MAKE} and the split"
            )
        absent = [row for row, length in zip(self.rows, store.lengths(self.rows), strict=True) if length != 1]
        if absent:
            raise UserError(
                f"{called} has no scores of {len(absent)} of {len(self.rows)} training captions (first: "
                f"{absent[0]!r}), expected all of them; make it anew with this split.captions.train: {MAKE}"
            )
