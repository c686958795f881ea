"""Margin ranking loss over the batch of all processes, and the concept loss beside it.

Shape suffixes: B pairs of this process, N pairs of all processes, T text rows, V video columns, K concepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.losses.gather import gather_embedding, gather_sizes, world_size
from src.losses.infonce import SimilarityFn

Direction = Literal["all", "t2v", "v2t"]
CostStyle = Literal["sum", "mean"]


class TripletLoss:
    """max(0, margin + s(query, other) − s(query, own)), over all others or the hardest one of each query.

    Captions are the queries of t2v (rows), videos those of v2t (columns); every other item of the batch is a
    negative, other captions of the same video too. With several processes each takes its own queries against
    everybody's items; its value is multiplied so that the mean over processes, which DDP takes, is the loss of
    the whole batch in one process, even when local batches differ in size.

    Args:
        margin: least lead of the own item; or one for each name given to `each`.
        max_violation: only the hardest negative of each query counts.
        cost_style: "sum" over the costs, or "mean": over the N queries with `max_violation`, otherwise over all N².
        direction: which queries count.
        gather: "exact" as above; "upstream": every process computes the whole loss and keeps the gradient of its
            own embeddings only.

    Source: hybrid_space loss.py TripletLoss @ b934eff (VSE++, arXiv 1707.05612).
    """

    def __init__(
        self,
        margin: float | Mapping[str, float] = 0.2,
        max_violation: bool = True,
        cost_style: CostStyle = "sum",
        direction: Direction = "all",
        gather: Literal["exact", "upstream"] = "exact",
    ) -> None:
        self.margin = margin
        self.max_violation = max_violation
        self.cost_style = cost_style
        self.direction = direction
        self.gather = gather

    def __call__(self, similarity: SimilarityFn, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        """Return the scalar loss; row i of `text` describes row i of `video`."""
        return self.each({"loss": similarity}, text, video)["loss"]

    def each(
        self, similarities: Mapping[str, SimilarityFn], text: TextEmbedding, video: VideoEmbedding
    ) -> dict[str, Tensor]:
        """One loss per similarity function, all on the same gathered embeddings."""
        if len(text) != len(video):
            raise UserError(
                f"a training batch holds {len(text)} captions and {len(video)} videos, expected pairs; "
                "check the dataset's collate function"
            )
        if world_size() == 1:
            return {name: self._whole(score(text, video), name) for name, score in similarities.items()}
        sizes = gather_sizes(text)
        all_text = gather_embedding(text, self.gather, sizes)
        all_video = gather_embedding(video, self.gather, sizes)
        if self.gather == "upstream":
            return {name: self._whole(score(all_text, all_video), name) for name, score in similarities.items()}
        offset = sum(sizes[: torch.distributed.get_rank()])
        own_B = torch.arange(offset, offset + len(text), device=text.ids.device)
        losses = {}
        for name, score in similarities.items():
            costs = []
            if self.direction != "v2t":
                costs.append(self._cost(score(text, all_video), own_B, name))
            if self.direction != "t2v":
                costs.append(self._cost(score(all_text, video).T, own_B, name))
            losses[name] = self._styled(torch.stack(costs).sum(), sum(sizes)) * world_size()
        return losses

    def _whole(self, s_TV: Tensor, name: str) -> Tensor:
        own_N = torch.arange(len(s_TV), device=s_TV.device)
        sides = {"all": (s_TV, s_TV.T), "t2v": (s_TV,), "v2t": (s_TV.T,)}[self.direction]
        return self._styled(torch.stack([self._cost(side, own_N, name) for side in sides]).sum(), len(s_TV))

    def _cost(self, s_BN: Tensor, own_B: Tensor, name: str) -> Tensor:
        """Summed cost of the queries in the rows; `own_B` is the column of each query's own item."""
        if not s_BN.numel():
            return s_BN.sum()
        margin = self.margin if isinstance(self.margin, int | float) else self.margin[name]
        cost_BN = (margin + s_BN - s_BN.gather(1, own_B[:, None])).clamp(min=0)
        cost_BN = cost_BN.scatter(1, own_B[:, None], 0.0)
        # `max`, not `amax`: among equals one item takes the whole gradient, as published.
        return cost_BN.max(dim=1).values.sum() if self.max_violation else cost_BN.sum()

    def _styled(self, total: Tensor, num_pairs: int) -> Tensor:
        if self.cost_style == "sum":
            return total
        return total / max(num_pairs if self.max_violation else num_pairs**2, 1)


def concept_loss(p_BK: Tensor, y_BK: Tensor) -> Tensor:
    """Binary cross-entropy of concept probabilities with soft targets: mean over concepts, sum over the batch.

    This is the published factor B times the mean over B·K. With several processes the value is multiplied by their
    number, so that the mean that DDP takes is the sum over the whole batch.

    Args:
        p_BK: predicted probabilities; logarithms are cut at −100.
        y_BK: targets in [0, 1].

    Source: hybrid_space loss.py and model.py (`BCELoss` on both sides) @ b934eff.
    """
    return F.binary_cross_entropy(p_BK, y_BK, reduction="sum") / p_BK.shape[1] * world_size()
