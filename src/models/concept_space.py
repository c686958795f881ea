"""Scores of a model with a latent and a concept space, and the concepts that it predicts.

Embeddings name the spaces: `parts["latent"]` (N, D) unit vectors, `parts["concepts"]` (N, K) probabilities.

Shape suffixes: T captions, V videos, R and C those of a block, N items, K concepts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.batch import Embedding, TextEmbedding, VideoEmbedding
from src.models.measures import Measure, evaluation_measure

_Index = slice | Tensor
log = logging.getLogger(__name__)

LATENT, CONCEPTS = "latent", "concepts"
ROWS, COLUMNS = 1024, 4096  # captions and videos scored at once
KEPT_BYTES = 1 << 30
"""Score matrices up to this size, together, are kept between the search for the extremes and the ranking."""


@dataclass(frozen=True)
class Space:
    """One space of a model.

    Attributes:
        part: name of the embedding's part.
        measure: how it compares.
        weight: its share of the score.
    """

    part: str
    measure: Measure
    weight: float = 1.0

    def score(self, text: TextEmbedding, video: VideoEmbedding) -> Tensor:
        """s_TV before any normalisation."""
        return evaluation_measure(self.measure)(text.parts[self.part], video.parts[self.part])


def hybrid_spaces(alpha: float, measure: Measure = "cosine", measure_2: Measure = "jaccard") -> tuple[Space, Space]:
    """The latent space with weight `alpha` and the concept space with the rest."""
    return Space(LATENT, measure, alpha), Space(CONCEPTS, measure_2, 1 - alpha)


def space_scorer(
    spaces: Sequence[Space], text: TextEmbedding, video: VideoEmbedding, kept_bytes: int = KEPT_BYTES
) -> Callable[[TextEmbedding, VideoEmbedding], Tensor]:
    """The score function of an evaluation of all of `text` against all of `video`.

    One space alone scores as it is. Several are brought to [0, 1] by their least and greatest score over the whole
    matrix and added with their weights; hence the score of a pair depends on the gallery. A space whose scores are
    all equal says nothing about any pair: it counts as 0 everywhere.

    Args:
        spaces: the spaces, each with its weight.
        text: all captions of the evaluation.
        video: its whole gallery.
        kept_bytes: score matrices are kept up to this size, the last space first (Jaccard is the dear one), and
            otherwise computed a second time.

    Returns:
        Function of any of these captions and videos, found by their ids; rows captions, columns videos. With
        `kept_bytes` 0 it takes others as well, whose ids mean something else, on the scale of these.

    Source: hybrid_space util/metrics.py and tester.py @ b934eff: the error there is minus this score.
    """
    if len(spaces) == 1:
        return spaces[0].score
    scores: list[_Normalised] = []
    for space in reversed(spaces):
        wanted = len(text) * len(video) * text.parts[space.part].element_size()
        scores.append(_Normalised(space, text, video, keep=wanted <= kept_bytes))
        kept_bytes -= wanted if wanted <= kept_bytes else 0
    if all(space.matrix_TV is None for space in scores):
        return lambda some_text, some_video: _total(scores, some_text, some_video, (slice(None), slice(None)))
    find_text, find_video = _Positions(text.ids), _Positions(video.ids)

    def score(some_text: TextEmbedding, some_video: VideoEmbedding) -> Tensor:
        return _total(scores, some_text, some_video, (find_text(some_text.ids), find_video(some_video.ids)))

    return score


def _total(
    scores: Sequence[_Normalised], text: TextEmbedding, video: VideoEmbedding, at: tuple[_Index, _Index]
) -> Tensor:
    total_RC = scores[-1](text, video, *at)
    for other in scores[-2::-1]:
        total_RC += other(text, video, *at)
    return total_RC


class _Normalised:
    """weight · (s − least) / (greatest − least) of one space, its matrix kept or not."""

    @torch.no_grad()
    def __init__(self, space: Space, text: TextEmbedding, video: VideoEmbedding, keep: bool) -> None:
        self.space = space
        part = text.parts[space.part]
        self.matrix_TV = part.new_empty(len(text), len(video)) if keep else None
        least, greatest = [], []
        for rows, columns in _tiles(len(text), len(video)):
            s_RC = space.score(text[rows], video[columns])
            finite = s_RC if s_RC.isfinite().all() else s_RC[s_RC.isfinite()]  # NaN is reported by the ranking
            if finite.numel():
                least.append(finite.min())
                greatest.append(finite.max())
            if self.matrix_TV is not None:
                self.matrix_TV[rows, columns] = s_RC
        self.least = float(torch.stack(least).min()) if least else 0.0
        span = float(torch.stack(greatest).max()) - self.least if greatest else 0.0
        self.factor = space.weight / span if span > 0 else 0.0
        if not span > 0 and len(text) * len(video) > 1:
            log.warning("the %s space gives all pairs the same score: it does not count", space.part)

    def __call__(self, text: TextEmbedding, video: VideoEmbedding, rows: _Index, columns: _Index) -> Tensor:
        s_RC = self.space.score(text, video) if self.matrix_TV is None else self.matrix_TV[rows][:, columns]
        return (s_RC - self.least) * self.factor


def _tiles(num_texts: int, num_videos: int) -> Iterator[tuple[slice, slice]]:
    for left in range(0, num_videos, COLUMNS):
        for top in range(0, num_texts, ROWS):
            yield slice(top, top + ROWS), slice(left, left + COLUMNS)


class _Positions:
    """Where items stand in the evaluated whole, by their ids."""

    def __init__(self, ids: Tensor) -> None:
        self.device = ids.device
        self.sorted_ids, self.order = ids.cpu().sort(stable=True)  # stable: the first of several equal ids is meant

    def __call__(self, ids: Tensor) -> _Index:
        """Positions of the ids, as a slice where they are neighbours."""
        at = self.order[torch.searchsorted(self.sorted_ids, ids.cpu())]
        if len(at) and bool((at.diff() == 1).all()):
            return slice(int(at[0]), int(at[-1]) + 1)
        return at.to(self.device)


def top_concepts(items: Embedding, count: int = 10) -> tuple[Tensor, Tensor]:
    """The most probable concepts of each item.

    Returns:
        int64 (N, count) concept numbers, best first, the lower number first among equals; and their probabilities.
    """
    p_NK = items.parts[CONCEPTS]
    chosen = p_NK.argsort(dim=1, descending=True, stable=True)[:, :count]
    return chosen, p_NK.gather(1, chosen)
