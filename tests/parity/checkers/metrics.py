"""The published evaluation (`src.metrics.legacy`), and ours wherever both define the same number."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from src.metrics.legacy import Metrics, group_scores, multi_sentence, single_sentence
from src.metrics.retrieval import RetrievalResult, evaluate_matrix
from tests.parity.cases import Case


def check_metrics(case: Case) -> None:
    for name, expected in case.meta["cases"].items():
        scores = case.tensors[f"in/{name}"].numpy()
        if name.startswith("single_"):
            compare(single_sentence(scores), expected["t2v"], f"{name} t2v")
            compare(single_sentence(scores.T), expected["v2t"], f"{name} v2t")
            owner = np.arange(len(scores))
        else:
            counts = case.tensors[f"in/{name}_counts"].numpy()
            owner = np.repeat(np.arange(len(counts)), counts)
            matrix = case.tensors[f"out/{name}_v2t_matrix"].numpy()
            assert np.array_equal(group_scores(scores, counts), matrix), f"{name}: grouped scores differ"
            to_video, to_text = multi_sentence(scores, counts)
            compare(to_text, expected["v2t"], f"{name} v2t")
            if tied(scores, owner):  # upstream leaves the order of ties undefined: only bounds can be checked
                between(scores, owner, expected["t2v"], f"{name} t2v")
            else:
                compare(to_video, expected["t2v"], f"{name} t2v")
        if not np.isnan(scores).any():
            compare_with_ours(scores, owner, expected, name)


def compare(found: Metrics, expected: dict[str, Any], name: str) -> None:
    """Ranks have to be equal; means may differ in the last bits (another order of summation)."""
    for key, value in expected.items():
        same = found[key] == value if key == "cols" else np.isclose(found[key], value, rtol=1e-9, atol=0)
        assert same, f"{name} {key}: {found[key]}, expected {value}"


def tied(scores: np.ndarray, owner: np.ndarray) -> bool:
    own = scores[np.arange(len(owner)), owner]
    return bool(((scores == own[:, None]).sum(1) > 1).any())


def ours(scores: np.ndarray, owner: np.ndarray, ties: Any) -> RetrievalResult:
    finite = np.isfinite(scores[np.arange(len(owner)), owner])
    rows = torch.from_numpy(owner[finite])
    return evaluate_matrix(scores[finite].astype(np.float64), rows, scores.shape[1], ties=ties, v2t="groups")


def between(scores: np.ndarray, owner: np.ndarray, expected: dict[str, Any], name: str) -> None:
    most, least = (ours(scores, owner, ties).t2v for ties in ("optimistic", "pessimistic"))
    for key in ("R1", "R5", "R10"):
        assert least[key] - 1e-4 <= expected[key] <= most[key] + 1e-4, f"{name} {key}"


def compare_with_ours(scores: np.ndarray, owner: np.ndarray, expected: dict[str, Any], name: str) -> None:
    """Without ties, our ranks are upstream's plus one."""
    result = ours(scores, owner, "optimistic")
    for side in ("t2v", "v2t"):
        if not getattr(result, f"{side}_tied").any():
            for key in ("R1", "R5", "R10"):
                assert np.isclose(getattr(result, side)[key], expected[side][key], rtol=1e-6), f"{name} {side} {key}"
            if "cols" in expected[side]:
                ranks = getattr(result, f"{side}_ranks") - 1
                assert ranks.tolist() == expected[side]["cols"], f"{name} {side}: ranks differ"


CHECKERS = {"clip2video": {"metrics": check_metrics}}
