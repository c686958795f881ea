"""Collaborative Experts and Mixture of Embedding Experts: captions against precomputed features of videos.

Shape suffixes: T captions, V videos, M experts, D dimensions of all experts side by side, I dimension of a pooled
caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from src.batch import InputSpec, TextBatch, TextEmbedding, VideoBatch, VideoEmbedding
from src.errors import UserError
from src.losses.distillation import Distillation
from src.losses.max_margin import MaxMarginLoss
from src.models.base import RetrievalModule, Similarity
from src.models.collaborative_gating import CollaborativeGating, GatingOrder, Wiring
from src.models.expert_pooling import TEXT, CaptionPooling, ExpertPooling, TextPooling
from src.models.gating import GatedEmbedding, GatedReasoning, GatedUnit, ReduceDim

Gating = Wiring | Literal["none"]


class CollaborativeExperts(RetrievalModule):
    """CE (arXiv 1907.13487) and MoEE (arXiv 1804.02516).

    Every expert of a video is pooled, brought to its dimension and gated; a caption has an embedding for each expert
    and, from a softmax, a weight. Their products are averaged with these weights over the experts that the video has.

    In training, batch normalisation takes the statistics of this process's rows, padding and missing experts included.

    Args:
        experts: entries of conf/experts; their order is that of their stores' names. Temporal ones are pooled.
        text: the entry of conf/text.
        vlad_clusters: of each temporal expert, and of `text`; names that are not used are ignored.
        max_tokens: steps of each temporal expert and of `text`, instead of their entries' max_steps; likewise.
        text_ghost_clusters: clusters of the text pooling that are thrown away; experts have none.
        gating: how experts look at each other; none = each on its own; auto = pairwise, or none where there is nothing
            to look at: a single expert, or experts of different dimensions (`project` false).
        project: bring all experts to `shared_dim` first (CE; without gating CE−CG); false: each keeps the dimension of
            its features (MoEE).
        shared_dim: that dimension.
        include_self: experts are paired with themselves as well.
        g_layers: linear layers that look at a pair.
        h_layers: linear layers after the mean over pairs.
        mish: activation between these; false: ReLU.
        reason_norm: batch normalisation between them.
        gating_order: see `CollaborativeGating`.
        mixture_weights: weights of the experts depend on the caption; false: all equal.
        keep_missing: plain sum over all experts, missing ones too, without weights.
        text_pooling: of token vectors.
        test_caption_mode: "indep"; "avg": in evaluation, captions of a video share the mean of their scores.
        margin: of the loss.
        fix_norm: see `MaxMarginLoss`.
        gather: see `RetrievalModule`.
        randomise: experts (or `text`) whose features are replaced by noise.
        teachers: stores of scores that training imitates (TeachText), by name, or as folders.
        distil_weight: of the distance to them in the loss.

    Source: albanie/collaborative-experts model/model.py @ 7eb3b9d.
    Deviates: more than ten experts are allowed; gating_order=batched.
    """

    def __init__(
        self,
        *,
        experts: dict[str, dict[str, Any]],
        text: dict[str, Any],
        vlad_clusters: dict[str, int],
        max_tokens: dict[str, int],
        text_ghost_clusters: int = 0,
        gating: Literal[
            "auto", "pairwise", "pairwise-star", "pairwise-star-specific", "pairwise-star-tensor", "triplet", "none"
        ] = "auto",
        project: bool = True,
        shared_dim: int = 768,
        include_self: bool = True,
        g_layers: int = 3,
        h_layers: int = 0,
        mish: bool = True,
        reason_norm: bool = True,
        gating_order: GatingOrder = "regrouped",
        mixture_weights: bool = True,
        keep_missing: bool = False,
        text_pooling: TextPooling = "vlad",
        test_caption_mode: Literal["indep", "avg"] = "indep",
        margin: float = 0.2,
        fix_norm: bool = True,
        gather: Literal["exact", "upstream"] = "exact",
        randomise: Sequence[str] = (),
        teachers: Sequence[str] = (),
        distil_weight: float = 1.0,
    ) -> None:
        super().__init__(gather=gather)
        self.teachers, self.distillation = tuple(teachers), Distillation(distil_weight)
        if gating == "auto":
            gating = "pairwise" if project and len(experts) > 1 else "none"
        _check_options(experts, gating, project, randomise)
        self.mixture_weights, self.keep_missing = mixture_weights, keep_missing
        self.test_caption_mode = test_caption_mode
        self.pooling = ExpertPooling(experts, vlad_clusters, max_tokens, randomise)
        self.text_pooling = CaptionPooling(
            text,
            text_pooling,
            clusters=vlad_clusters.get(TEXT, 0),
            ghost_clusters=text_ghost_clusters,
            max_tokens=max_tokens.get(TEXT),
            randomise=TEXT in randomise,
        )
        inputs, num_experts = self.pooling.output_dims, len(self.pooling.specs)
        dims = [shared_dim] * num_experts if project else [spec.dim for spec in self.pooling.specs]
        self.mixture = nn.Linear(self.text_pooling.output_dim, num_experts)
        if not mixture_weights or keep_missing:  # then unused, but counted, as published; DDP must not wait for it
            self._ddp_params_and_buffers_to_ignore = ["mixture.weight", "mixture.bias"]
        self.reduce = nn.ModuleList(ReduceDim(i, shared_dim) for i in inputs) if project else None
        self.gating: CollaborativeGating | None = None
        if gating != "none":
            self.gating = CollaborativeGating(
                num_experts,
                shared_dim,
                wiring=gating,
                include_self=include_self,
                g_layers=g_layers,
                h_layers=h_layers,
                mish=mish,
                norm=reason_norm,
                order=gating_order,
            )
        self.video_gates = nn.ModuleList(_video_gate(i, o, project, gating) for i, o in zip(inputs, dims, strict=True))
        self.text_gates = nn.ModuleList(GatedEmbedding(self.text_pooling.output_dim, dim) for dim in dims)
        self.max_margin = MaxMarginLoss(margin, fix_norm, gather)

    @property
    def input_spec(self) -> InputSpec:
        texts = (self.text_pooling.spec,)
        return InputSpec(None, experts=self.pooling.specs, text_features=texts, teachers=self.teachers)

    def encode_text(self, batch: TextBatch) -> TextEmbedding:
        """Parts: "experts" (T, D), an embedding for each expert, as long as its weight, side by side; "weights" (T, M).

        With `keep_missing` the embeddings are of unit length.
        """
        pooled_TI = self.text_pooling(batch)
        _check_statistics(self, len(batch))
        experts, weights_TM = [gate(pooled_TI) for gate in self.text_gates], self._weights(pooled_TI)
        parts = {"experts": self._side_by_side(experts, weights_TM), "weights": weights_TM}
        return TextEmbedding(ids=batch.ids, parts=parts, video_ids=batch.video_ids)

    def _weights(self, pooled_TI: Tensor) -> Tensor:
        if not self.mixture_weights:
            num_experts = self.mixture.out_features
            return pooled_TI.new_full((len(pooled_TI), num_experts), 1 / num_experts)
        return self.mixture(pooled_TI).softmax(1)

    def encode_video(self, batch: VideoBatch) -> VideoEmbedding:
        """Parts: "experts" (V, D), of unit length, or zeros where missing, side by side; "present" (V, M).

        With `keep_missing` missing ones are what the network makes of zeros.
        """
        _check_statistics(self, len(batch))
        pooled, present_VM = self.pooling(batch)
        experts = self.gate_experts(pooled, present_VM)
        parts = {"experts": self._side_by_side(experts, present_VM), "present": present_VM}
        return VideoEmbedding(ids=batch.ids, parts=parts)

    def gate_experts(self, experts: Sequence[Tensor], present_VM: Tensor) -> list[Tensor]:
        """Pooled experts, M times (V, input dim), to their embeddings, M times (V, own dim)."""
        if self.reduce is not None:
            experts = [reduce(x) for reduce, x in zip(self.reduce, experts, strict=True)]
        if self.gating is not None:
            return self.gating(experts, present_VM, self.video_gates)
        return [gate(x) for gate, x in zip(self.video_gates, experts, strict=True)]

    def _side_by_side(self, experts: Sequence[Tensor], weights_NM: Tensor) -> Tensor:
        return torch.cat(list(experts), 1) if self.keep_missing else side_by_side(experts, weights_NM)

    def similarity(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        text_TD, video_VD = text.parts["experts"], video.parts["experts"]
        if self.keep_missing:
            return text_TD @ video_VD.T
        return mean_similarity(text_TD, text.parts["weights"], video_VD, video.parts["present"])

    def scorer(self, text: TextEmbedding, video: VideoEmbedding) -> Similarity:
        if self.test_caption_mode == "indep":
            return self.similarity
        return lambda rows, columns: self._average_captions(text, rows, columns)

    def bank_scorer(self, text: TextEmbedding, video: VideoEmbedding) -> Similarity:
        """Captions of the bank are scored one by one: they come in batches that part those of a video."""
        return self.similarity

    def _average_captions(self, everything: TextEmbedding, rows: TextEmbedding, video: VideoEmbedding) -> Tensor:
        """Scores of the rows, each the mean over all captions of the same video."""
        videos, owner_T = rows.video_ids.unique(return_inverse=True)
        own = everything[torch.isin(everything.video_ids, videos)]
        s_NV = self.similarity(own, video)
        place_N = torch.searchsorted(videos, own.video_ids)
        sums_UV = s_NV.new_zeros(len(videos), s_NV.shape[1]).index_add(0, place_N, s_NV)
        return (sums_UV / place_N.bincount(minlength=len(videos))[:, None])[owner_T]

    def loss(self, text: TextEmbedding, video: VideoEmbedding) -> dict[str, Tensor]:
        return {"loss": self.max_margin(self.similarity, text, video)}


def side_by_side(experts: Sequence[Tensor], weights_NM: Tensor) -> Tensor:
    """M times (N, own dim), each times its column of the weights: (N, D)."""
    return torch.cat([x * weight_N1 for x, weight_N1 in zip(experts, weights_NM.split(1, 1), strict=True)], 1)


def mean_similarity(text_TD: Tensor, weights_TM: Tensor, video_VD: Tensor, present_VM: Tensor) -> Tensor:
    """Mean of the experts' inner products, weighted by the captions, over the experts that each video has: s_TV.

    Args:
        text_TD: embeddings of the captions for all experts, times their weights, side by side.
        weights_TM: these weights, positive.
        video_VD: embeddings of the videos, likewise; zeros for missing experts.
        present_VM: 1 where the video has the expert, 0 elsewhere; at least one each.

    Source: section 3.1 of arXiv 1804.02516.
    """
    return (text_TD @ video_VD.T) / (weights_TM @ present_VM.T)


def _video_gate(input_dim: int, dim: int, project: bool, gating: Gating) -> nn.Module:
    if gating != "none":
        return GatedReasoning(dim)
    return GatedUnit(dim) if project else GatedEmbedding(input_dim, dim)


def _check_statistics(model: nn.Module, items: int) -> None:
    if model.training and items < 2:
        raise UserError(
            f"a training batch holds {items} item, expected at least 2 for batch normalisation; "
            "choose dataset.batch_size so that the last batch of an epoch has more"
        )


def _check_options(experts: dict[str, dict[str, Any]], gating: Gating, project: bool, randomise: Sequence[str]) -> None:
    if gating != "none" and not project:
        raise UserError(
            f"found model.gating={gating} with model.project=false, expected experts of one dimension to gate each "
            "other; give model.project=true, or model.gating=none"
        )
    unknown = [name for name in randomise if name not in (*experts, TEXT)]
    if unknown:
        raise UserError(
            f"model.randomise: found {unknown[0]!r}, expected some of {', '.join((*experts, TEXT))}; correct the name"
        )
