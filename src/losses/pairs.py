"""What losses over the pairs of a batch have in common: whose queries meet whose items, and how processes add up.

Shape suffixes: B pairs of this process, N pairs of all processes, T text rows, V video columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.losses.gather import GatherMode, gather_embedding, gather_rows, gather_sizes, world_size

SimilarityFn = Callable[[TextEmbedding, VideoEmbedding], Tensor]
Direction = Literal["all", "t2v", "v2t"]
Pairs = tuple[TextEmbedding, VideoEmbedding]


class PairLoss(ABC):
    """A sum of costs of queries: captions among all videos (rows, t2v) and videos among all captions (columns, v2t).

    With several processes each takes its own queries against everybody's items. Its value is multiplied by the number
    of processes, so that the mean over processes, which DDP takes, is the loss of the whole batch in one process, even
    when local batches differ in size.

    Args:
        gather: "exact" as above; "upstream": every process computes the whole loss and keeps the gradient of its own
            embeddings only.
        direction: which queries count.
    """

    needs_all_queries = False
    """True when the cost of a query depends on the scores of the other queries."""

    def __init__(self, gather: GatherMode = "exact", direction: Direction = "all") -> None:
        self.gather = gather
        self.direction = direction

    def __call__(self, similarity: SimilarityFn, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        """Return the scalar loss; row i of `text` describes row i of `video`."""
        return self.each({"loss": similarity}, text, video)["loss"]

    def each(
        self, similarities: Mapping[str, SimilarityFn], text: TextEmbedding, video: VideoEmbedding
    ) -> dict[str, Tensor]:
        """One loss per similarity function, all on the same gathered embeddings.

        Raises:
            UserError: the batch does not consist of pairs.
        """
        if len(text) != len(video):
            raise UserError(
                f"a training batch holds {len(text)} captions and {len(video)} videos, expected pairs; "
                "check the dataset's collate function"
            )
        if world_size() == 1:
            return {name: self.local(score, text, video, name) for name, score in similarities.items()}
        sizes = gather_sizes(text)
        all_text = gather_embedding(text, self.gather, sizes)
        all_video = gather_embedding(video, self.gather, sizes)
        if self.gather == "upstream":
            return {name: self.local(score, all_text, all_video, name) for name, score in similarities.items()}
        offset = sum(sizes[: torch.distributed.get_rank()])
        own, everybody = (text, video), (all_text, all_video)
        return {name: self._shared(score, own, everybody, offset, name) for name, score in similarities.items()}

    def _shared(self, score: SimilarityFn, own: Pairs, everybody: Pairs, offset: int, name: str) -> Tensor:
        """This process's part of the loss; its pairs are those of `everybody` from row `offset` on."""
        (text, video), (all_text, all_video) = own, everybody
        own_B = torch.arange(len(text), device=text.ids.device)
        if self.needs_all_queries:
            s_BV = self._scores(score, text, all_video, (own_B, own_B + offset))
            return self._whole(gather_rows(s_BV)[0], name)
        costs = []
        if self.direction != "v2t":
            s_BV = self._scores(score, text, all_video, (own_B, own_B + offset))
            costs.append(self._cost(s_BV, own_B + offset, name))
        if self.direction != "t2v":
            s_TB = self._scores(score, all_text, video, (own_B + offset, own_B))
            costs.append(self._cost(s_TB.T, own_B + offset, name))
        return self._mean(torch.stack(costs).sum(), len(all_text)) * world_size()

    def local(self, score: SimilarityFn, text: TextEmbedding, video: VideoEmbedding, name: str = "loss") -> Tensor:
        """The loss of these pairs alone, without items of other processes."""
        own_N = torch.arange(len(text), device=text.ids.device)
        return self._whole(self._scores(score, text, video, (own_N, own_N)), name)

    def _whole(self, s_NN: Tensor, name: str) -> Tensor:
        """The loss from the scores of all N pairs."""
        own_N = torch.arange(len(s_NN), device=s_NN.device)
        sides = {"all": (s_NN, s_NN.T), "t2v": (s_NN,), "v2t": (s_NN.T,)}[self.direction]
        return self._mean(torch.stack([self._cost(side, own_N, name) for side in sides]).sum(), len(s_NN))

    def _scores(
        self, score: SimilarityFn, text: TextEmbedding, video: VideoEmbedding, pairs: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Similarities s_TV; `pairs` are the row and the column of each query's own item."""
        return score(text, video)

    @abstractmethod
    def _cost(self, s_BN: Tensor, own_B: Tensor, name: str) -> Tensor:
        """Summed cost of the queries in the rows; `own_B` is the column of each query's own item."""

    @abstractmethod
    def _mean(self, total: Tensor, num_pairs: int) -> Tensor:
        """The loss, from the summed cost of the queries of all N pairs."""
