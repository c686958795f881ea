"""TextVR and Frozen in Time: ranks with tied scores, videos with fewer captions than others, labels as queries."""

from __future__ import annotations

from typing import Literal

from src.metrics.classification import classify
from src.metrics.retrieval import RetrievalResult, evaluate_matrix
from tests.parity.cases import Case
from tests.parity.checkers.ce_metrics import ranked, same_metrics


def optimistic(case: Case, name: str) -> RetrievalResult:
    """Frozen in Time lets a caption keep the best of tied positions."""
    scores, mask = case.tensors[f"in/{name}"], case.tensors.get(f"in/{name}_mask")
    videos = scores.shape[1]
    owner = ranked(scores, None).caption_videos
    kept = None if mask is None else mask.flatten() > 0
    return evaluate_matrix(scores, owner, videos, mask=kept, ties="optimistic", block=7)


def check_metrics(case: Case) -> None:
    sides: dict[str, tuple[Literal["t2v", "v2t"], bool]] = {
        "t2v_optimistic_frozen": ("t2v", True),
        "t2v_averaging_textvr": ("t2v", False),
        "v2t_averaging": ("v2t", False),
    }
    for name, expected in case.meta["results"].items():
        if "retrieval_as_classification" in expected:
            scores, positive = case.tensors[f"in/{name}"].numpy(), case.tensors[f"in/{name}_labels"].numpy() > 0
            found = classify(scores, positive, upstream_order=True)
            same_metrics(found.metrics, expected["retrieval_as_classification"], name)
            continue
        averaged = ranked(case.tensors[f"in/{name}"], case.tensors.get(f"in/{name}_mask"))
        assert set(expected) == set(sides), f"{name}: {sorted(expected)}"
        for key, (side, is_optimistic) in sides.items():
            result = optimistic(case, name) if is_optimistic else averaged
            same_metrics(getattr(result, side), expected[key], f"{name} {key}")


CHECKERS = {"textvr": {"metrics": check_metrics}}
