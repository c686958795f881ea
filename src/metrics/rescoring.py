"""Re-scoring: scores that are corrected by what other queries score, for any model, in both directions.

A method looks at all scores in blocks of whole rows, keeps a few numbers per caption and video, and then changes a tile
of scores at a time; so the ranking of the new scores costs what the ranking of the plain ones does, and the matrix of
the new ones never exists. What it looks at are the test queries themselves ("transductive": the rank of a query depends
on the queries that come with it) or a bank of other queries, which makes it a method for a search engine.

The plain result always stays beside the re-scored one, see `Rescored`.

Shapes: Q captions, V videos, R rows of a tile (captions), C columns (videos), N queries of a bank's block, G items of a
gallery.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.metrics.ranks import Index
from src.metrics.result import RetrievalResult
from src.metrics.retrieval import evaluate_matrix
from src.metrics.score_blocks import Scores

TileFn = Callable[[Tensor, Index, Index], Tensor]
"""New scores from a tile s_RC in float64, its rows and its columns."""


@dataclass(frozen=True)
class Banks:
    """Scores of other queries with the same galleries; each iterable is read once.

    Attributes:
        source: where they come from, for the protocol: "captions of train".
        captions: blocks s_NV of other captions with the test's videos.
        videos: blocks s_NK of other videos with the K captions that the test's mask leaves; None = video to text stays
            plain.
        everyone: the objects of all processes, each of which reads its share of the blocks.
    """

    source: str
    captions: Iterable[Tensor]
    videos: Iterable[Tensor] | None = None
    everyone: Callable[[Any], list[Any]] = lambda own: [own]


@dataclass(frozen=True)
class NewScores:
    """What a method found.

    Attributes:
        t2v, v2t: new scores of a tile; v2t None = this direction stays plain.
        settings: what was used, for metrics.json.
    """

    t2v: TileFn
    v2t: TileFn | None
    settings: dict[str, object] = field(default_factory=dict)


class Rescoring(ABC):
    """A method; its fields are its settings, as conf/rescoring has them."""

    name = ""
    title = ""
    fixed_bank = False  # True: only the test's own queries can be the bank
    default_bank = "test"  # where `bank` is None
    bank: str | None = "test"
    video_bank = False

    @abstractmethod
    def new_scores(self, scores: Scores, banks: Banks | None) -> NewScores:
        """Look at all scores; without banks the test's own queries are the bank."""

    @abstractmethod
    def check(self, num_videos: int) -> None:
        """Raise a UserError for settings that mean nothing, before anything is encoded."""


@dataclass(frozen=True)
class Rescored:
    """A result after re-scoring.

    Attributes:
        name: of the method: "dsl".
        title: as tables write it: "DSL".
        transductive: the test's own queries were used.
        settings: what was used.
        result: the new metrics and ranks of the directions in `sides`, the plain ones of the other; own scores and tie
            rule are the plain ones.
        new: the new scores.
        sides: the directions that were re-scored.
    """

    name: str
    title: str
    transductive: bool
    settings: dict[str, object]
    result: RetrievalResult
    new: NewScores

    @property
    def sides(self) -> tuple[str, ...]:
        return ("t2v", "v2t") if self.new.v2t is not None else ("t2v",)

    @property
    def label(self) -> str:
        """`DSL (transductive)`, or `QB-Norm t2v only`."""
        only = "" if len(self.sides) == 2 else f" {self.sides[0]} only"
        return f"{self.title}{only}" + (" (transductive)" if self.transductive else "")

    @property
    def words(self) -> str:
        """For the line of the protocol, with all settings."""
        settings = ", ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in self.settings.items())
        return f"{self.label}: {settings}"

    def metrics(self, side: str) -> dict[str, float] | None:
        """The new numbers of a direction."""
        return dict(getattr(self.result, side)) if side in self.sides else None

    def to_json(self) -> dict[str, object]:
        """The entry "rescored" of metrics.json."""
        about: dict[str, object] = {"name": self.name, "label": self.label, "transductive": self.transductive}
        found = {"settings": self.settings, "t2v": self.metrics("t2v"), "v2t": self.metrics("v2t")}
        return about | found | ({"SumR": self.result.sum_r} if len(self.sides) == 2 else {})

    def scalars(self, prefix: str) -> dict[str, float]:
        """Flat names for loggers: `<prefix>/rescored/t2v/R1`, …"""
        named = {side: self.metrics(side) or {} for side in self.sides}
        return {f"{prefix}/rescored/{side}/{key}": value for side, row in named.items() for key, value in row.items()}


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def rescore(
    method: Rescoring, scores: Scores, plain: RetrievalResult, banks: Banks | None = None, block: int = 1024
) -> Rescored:
    """Rank by the new scores, under the rules and with the ids of the plain result of the same scores.

    Args:
        method: see `conf/rescoring`.
        scores: of the test; the rows that its mask leaves are the captions of `plain`, in their order.
        plain: the result without re-scoring.
        banks: other queries; None = the test's own.
        block: see `evaluate_matrix`.

    Raises:
        UserError: scores are not finite, or a bank is empty.
    """
    new = method.new_scores(scores, banks)
    result = plain
    for side, change in (("t2v", new.t2v), ("v2t", new.v2t)):
        if change is not None:
            result = _with_side(result, side, _ranked(scores, change, plain, block), scores.rows_Q)
    return Rescored(
        name=method.name,
        title=method.title,
        transductive=banks is None,
        settings=new.settings,
        result=result,
        new=new,
    )


def _ranked(scores: Scores, change: TileFn, plain: RetrievalResult, block: int) -> RetrievalResult:
    return evaluate_matrix(
        lambda rows, columns: change(scores.score(rows, columns).double(), rows, columns),
        scores.video_of_caption,
        scores.num_videos,
        mask=scores.mask,
        ties=plain.ties,
        v2t=plain.v2t_protocol,
        block=block,
        topk=plain.t2v_topk[0].shape[1],
    )


def _with_side(result: RetrievalResult, side: str, new: RetrievalResult, rows_Q: Tensor) -> RetrievalResult:
    """`result` with the numbers of one direction of `new`, whose ids are positions."""
    items, top = getattr(new, f"{side}_topk")
    ids = result.video_ids if side == "t2v" else result.caption_ids
    places = items if side == "t2v" else torch.from_numpy(np.searchsorted(rows_Q.numpy(), items.numpy()))
    named = torch.where(items < 0, -1, ids[places.clamp(0, len(ids) - 1)])
    if side == "t2v":
        return replace(result, t2v=new.t2v, t2v_ranks=new.t2v_ranks, t2v_tied=new.t2v_tied, t2v_topk=(named, top))
    return replace(result, v2t=new.v2t, v2t_ranks=new.v2t_ranks, v2t_tied=new.v2t_tied, v2t_topk=(named, top))
