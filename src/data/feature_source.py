"""Precomputed features of a batch of videos or captions, read from feature stores in one go per store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.batch import ExpertSpec
from src.data.features.store import FeatureStore
from src.errors import UserError

Keys = tuple[str, ...]


class Features(NamedTuple):
    """What `VideoBatch` and `TextBatch` hold: x_BTD or x_BD by name, masks of those with steps, and who has what."""

    values: dict[str, Tensor]
    masks: dict[str, Tensor]
    present_BE: Tensor


class FeatureSource:
    """Reads the stores that a model asks for.

    An item is named by one key (a video) or several (a paragraph of sentences, whose vectors follow each other).

    Args:
        specs: what the model wants, in its order.
        folders: store name -> its folder.
        item: "video" or "caption", for messages.
    """

    def __init__(self, specs: Sequence[ExpertSpec], folders: Mapping[str, Path], item: str = "video") -> None:
        self.specs = tuple(specs)
        self.folders = dict(folders)
        self.item = item
        self._stores: dict[str, FeatureStore] = {}
        for spec in self.specs:
            if spec.pad == "max" and spec.max_steps is None:
                raise UserError(f"{self.called(spec)} pads to max_steps, but max_steps is not given; set it")

    def __bool__(self) -> bool:
        return bool(self.specs)

    def check(self) -> None:
        """Open every store.

        Raises:
            UserError: a store is missing, unfinished, or of another dimension than the model expects.
        """
        for spec in self.specs:
            store = self.store(spec)
            if store.dim != spec.dim:
                key = f"experts.{spec.name}.dim" if self.item == "video" else "text.dim"
                raise UserError(
                    f"{self.called(spec)} has dim {spec.dim} in the configuration, but {store.dim} in "
                    f"{self._folder(spec)}; set {key}={store.dim}, or give the right store"
                )

    def store(self, spec: ExpertSpec) -> FeatureStore:
        """The opened store of a spec."""
        name = spec.store or spec.name
        if name not in self._stores:
            self._stores[name] = FeatureStore.open(self._folder(spec))
        return self._stores[name]

    def has_any(self, keys: Keys) -> bool:
        """Whether at least one store has something of the item."""
        return any(key in self.store(spec) for spec in self.specs for key in keys)

    def lacking(self, items: Iterable[Keys]) -> dict[str, int]:
        """Name of each spec -> number of items that it has nothing of; those without gaps are left out."""
        listed = list(items)
        counts = {
            spec.name: sum(not any(key in self.store(spec) for key in keys) for keys in listed) for spec in self.specs
        }
        return {name: count for name, count in counts.items() if count}

    def lengths(self, items: Sequence[Keys]) -> np.ndarray:
        """int64 (N,): number of vectors of each item in the longest of its temporal stores, as far as it is read."""
        longest = np.zeros(len(items), dtype=np.int64)
        for spec in (spec for spec in self.specs if spec.temporal):
            store = self.store(spec)
            for index, keys in enumerate(items):
                steps = int(store.lengths([key for key in keys if key in store]).sum())
                longest[index] = max(longest[index], min(steps, spec.max_steps or steps))
        return longest

    def batch(self, items: Sequence[Keys]) -> Features:
        """Features of these items; a missing one is zeros, and False in `present_BE`."""
        values: dict[str, Tensor] = {}
        masks: dict[str, Tensor] = {}
        present_BE = np.zeros((len(items), len(self.specs)), dtype=bool)
        for column, spec in enumerate(self.specs):
            rows_ND, steps_B = self._read(spec, items)
            present_BE[:, column] = steps_B > 0
            if spec.temporal:
                values[spec.name], masks[spec.name] = _pad(rows_ND, steps_B, spec)
            else:
                values[spec.name] = _mean(rows_ND, steps_B, spec.dim)
        return Features(values, masks, torch.from_numpy(present_BE))

    def _read(self, spec: ExpertSpec, items: Sequence[Keys]) -> tuple[np.ndarray, np.ndarray]:
        """All vectors of all items one after another, and how many belong to each item."""
        store = self.store(spec)
        owners, keys = [], []
        for index, item in enumerate(items):
            for key in item:
                if key in store:
                    owners.append(index)
                    keys.append(key)
        steps_B = np.zeros(len(items), dtype=np.int64)
        if not keys:
            return np.zeros((0, spec.dim), dtype=np.float32), steps_B
        rows_ND, lengths = store.rows(keys)
        np.add.at(steps_B, owners, lengths)
        # torch converts half precision three times as fast as numpy.
        return torch.from_numpy(rows_ND).float().numpy(), steps_B

    def _folder(self, spec: ExpertSpec) -> Path:
        name = spec.store or spec.name
        if name not in self.folders:
            known = ", ".join(self.folders) or "none"
            group = "experts" if self.item == "video" else "text"
            raise UserError(
                f"the model reads the {self.item} features {name!r}, but only these are configured: {known}; "
                f"add the store to conf/{group}, or choose another option of the group {group}"
            )
        return self.folders[name]

    def called(self, spec: ExpertSpec) -> str:
        """What a message calls the features: `expert ocr` or `text feature openai`."""
        return f"{'expert' if self.item == 'video' else 'text feature'} {spec.name}"


def _pad(rows_ND: np.ndarray, steps_B: np.ndarray, spec: ExpertSpec) -> tuple[Tensor, Tensor]:
    """float32 x_BTD with the first vectors of each item, zeros after them, and its bool mask_BT."""
    kept_B = np.minimum(steps_B, spec.max_steps) if spec.max_steps else steps_B
    longest = spec.max_steps if spec.pad == "max" and spec.max_steps else int(kept_B.max(initial=1))
    if len(steps_B) and (steps_B == longest).all():  # nothing to cut or pad
        x_BTD = rows_ND.reshape(len(steps_B), longest, spec.dim)
        return torch.from_numpy(x_BTD), torch.ones(x_BTD.shape[:2], dtype=torch.bool)
    x_BTD = np.zeros((len(steps_B), max(longest, 1), spec.dim), dtype=np.float32)
    owner_N = np.repeat(np.arange(len(steps_B)), steps_B)
    position_N = np.arange(len(rows_ND)) - np.repeat(np.cumsum(steps_B) - steps_B, steps_B)
    kept_N = position_N < kept_B[owner_N]
    x_BTD[owner_N[kept_N], position_N[kept_N]] = rows_ND[kept_N]
    mask_BT = np.arange(x_BTD.shape[1]) < kept_B[:, None]
    return torch.from_numpy(x_BTD), torch.from_numpy(mask_BT)


def _mean(rows_ND: np.ndarray, steps_B: np.ndarray, dim: int) -> Tensor:
    """float32 x_BD, the mean vector of each item; zeros where there is none."""
    if (steps_B == 1).all():  # nothing to average
        return torch.from_numpy(rows_ND)
    x_BD = np.zeros((len(steps_B), dim), dtype=np.float32)
    has_B = steps_B > 0
    if has_B.any():
        starts = (np.cumsum(steps_B) - steps_B)[has_B]
        x_BD[has_B] = np.add.reduceat(rows_ND, starts, axis=0) / steps_B[has_B, None]
    return torch.from_numpy(x_BD)
