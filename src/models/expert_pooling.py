"""From precomputed features, as the data hands them over, to one vector per expert and one per caption.

Shape suffixes: V videos, T captions, N steps or tokens, D feature dimension, M experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from src.batch import ExpertSpec, TextBatch, VideoBatch
from src.errors import UserError
from src.models.netvlad import NetVLAD

TEXT = "text"
"""The captions' name among those of the experts, in `vlad_clusters`, `max_tokens` and `randomise`."""
FIRST_POOLED = ("ocr", "audio", "speech")
"""Experts whose pooling stands first among the parameters, as in the published checkpoints."""
TextPooling = Literal["vlad", "mean"]


class ExpertPooling(nn.ModuleDict):
    """The experts of a batch of videos: temporal ones through NetVLAD (its modules by name), others as they are.

    Args:
        experts: entries of conf/experts. Their order here is that of their stores' names.
        clusters: of each temporal expert; names that are not among `experts` mean nothing.
        max_tokens: steps that are read of each, instead of the entry's `max_steps`; likewise.
        randomise: experts whose features are replaced by noise: new one at each training step, in evaluation always
            the same for the same video.
    """

    def __init__(
        self,
        experts: Mapping[str, Mapping[str, Any]],
        clusters: Mapping[str, int],
        max_tokens: Mapping[str, int],
        randomise: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not experts:
            raise UserError("this model reads experts, found none; choose some, such as experts=[scene,ocr]")
        specs = (feature_spec(name, entry, max_tokens.get(name)) for name, entry in experts.items())
        self.specs = tuple(sorted(specs, key=lambda spec: spec.store or spec.name))
        self.randomise = tuple(randomise)
        pooled = [spec for spec in self.specs if spec.temporal]
        for spec in sorted(pooled, key=lambda s: FIRST_POOLED.index(s.name) if s.name in FIRST_POOLED else len(pooled)):
            if clusters.get(spec.name, 0) < 1:
                raise UserError(
                    f"expert {spec.name!r} has several vectors a video, found no number of clusters to pool them; give "
                    f"+model.vlad_clusters.{spec.name}=16, or experts.{spec.name}.temporal=false for their mean"
                )
            self[spec.name] = NetVLAD(spec.dim, clusters[spec.name])
        self.output_dims: list[int] = [s.dim * (clusters[s.name] if s.temporal else 1) for s in self.specs]

    def forward(self, batch: VideoBatch) -> tuple[list[Tensor], Tensor]:
        """M times (V, input dim), and float present_VM.

        Raises:
            UserError: a video has none of the experts.
        """
        columns = list(batch.features)
        names = [spec.name for spec in self.specs]
        first = batch.features[names[0]]
        present_VM = first.new_ones(len(batch), len(names))
        if batch.present_BE is not None:
            present_VM = batch.present_BE[:, [columns.index(name) for name in names]].to(first)
        if not bool(present_VM.any(1).all()):
            lacking = batch.ids[~present_VM.any(1)].tolist()
            raise UserError(
                f"{len(lacking)} videos have none of the experts {', '.join(names)} (positions {lacking[:8]}…), "
                "expected at least one; extract the missing features, or take these videos out of the split"
            )
        pooled = []
        for place, (spec, present_V) in enumerate(zip(self.specs, present_VM.T, strict=True)):
            x = batch.features[spec.name]
            if spec.name in self.randomise:
                x = noise_like(x, batch.ids, place, self.training)
            # Missing means zeros, whatever stands there; pooling sees them like everything else.
            x = x.masked_fill(present_V.view(-1, *[1] * (x.ndim - 1)) == 0, 0.0)
            pooled.append(self[spec.name](x) if spec.temporal else x)
        return pooled, present_VM


class CaptionPooling(nn.Module):
    """The features of a batch of captions: token vectors through NetVLAD or averaged, single vectors as they are.

    Args:
        text: the entry of conf/text, `name` included.
        pooling: "vlad", or "mean" over the tokens.
        clusters: for "vlad"; 0 = none, for captions of one token.
        ghost_clusters: see `NetVLAD`.
        max_tokens: tokens that are read, instead of the entry's `max_steps`.
        randomise: replace the features by noise, as `ExpertPooling` does.
    """

    def __init__(
        self,
        text: Mapping[str, Any],
        pooling: TextPooling,
        *,
        clusters: int,
        ghost_clusters: int = 0,
        max_tokens: int | None = None,
        randomise: bool = False,
    ) -> None:
        super().__init__()
        if not text:
            raise UserError("this model reads precomputed text features, found none; choose some, such as text=openai")
        entry = {key: value for key, value in text.items() if key != "name"}
        self.spec = feature_spec(text["name"], entry, max_tokens, group=TEXT)
        self.randomise = randomise
        use_vlad = pooling == "vlad" and self.spec.temporal and clusters > 0
        if pooling == "vlad" and self.spec.temporal and not use_vlad and self.spec.max_steps != 1:
            raise UserError(
                f"found model.vlad_clusters.text={clusters} and {self.spec.max_steps} tokens a caption, expected one "
                "token without clusters; give clusters, or model.text_pooling=mean"
            )
        self.vlad = NetVLAD(self.spec.dim, clusters, ghost_clusters) if use_vlad else None
        self.output_dim = self.vlad.output_dim if self.vlad is not None else self.spec.dim

    def forward(self, batch: TextBatch) -> Tensor:
        """(T, output_dim)."""
        x = batch.features[self.spec.name]
        if self.randomise:
            x = noise_like(x, batch.ids, -1, self.training)
        if self.vlad is not None:
            return self.vlad(x)
        if not self.spec.temporal:
            return x
        mask_TN1 = batch.feature_masks[self.spec.name][..., None].to(x)
        return (x * mask_TN1).sum(1) / mask_TN1.sum(1).clamp(min=1)


def feature_spec(name: str, entry: Mapping[str, Any], max_steps: int | None, group: str = "experts") -> ExpertSpec:
    """What is read of an entry; steps are always padded to the same number, since NetVLAD sees the padding.

    Raises:
        UserError: that number is not known.
    """
    spec = ExpertSpec(name, **{key: value for key, value in entry.items() if key != "path"})
    if not spec.temporal:
        return spec
    spec = replace(spec, max_steps=max_steps or spec.max_steps, pad="max")
    if spec.max_steps is None:
        key = TEXT if group == TEXT else name
        raise UserError(
            f"the number of steps of {name!r} is not known, but all are padded to it; give +model.max_tokens.{key}=32"
        )
    return spec


def noise_like(x: Tensor, ids: Tensor, place: int, training: bool) -> Tensor:
    """Standard normal numbers: new ones in training, in evaluation a function of each item's id and of `place`."""
    if training:
        return torch.randn_like(x)
    rows = []
    for item in ids.tolist():
        generator = torch.Generator().manual_seed(1 + item * 1009 + place)
        rows.append(torch.randn(x.shape[1:], generator=generator))
    return torch.stack(rows).to(x) if rows else x
