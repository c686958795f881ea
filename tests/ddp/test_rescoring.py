"""Banks that two processes share against one process, for every method that has a bank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from src.metrics.qb_norm import InvertedSoftmax, QbNorm
from src.metrics.rescoring import Banks, Rescoring, rescore
from src.metrics.retrieval import MatrixScore, evaluate_matrix
from src.metrics.score_blocks import Scores
from src.metrics.sinkhorn import Sinkhorn
from src.tasks.rescoring import _everyone
from tests.processes import run_processes

METHODS: tuple[Rescoring, ...] = (InvertedSoftmax(3.0), QbNorm(3.0, k=2), Sinkhorn(0.2, iterations=4))
SPLITS = {"even": 0.5, "uneven": 0.1, "empty": 0.0}  # share of the first process


def outcome(method: Rescoring, rank: int, share: float | None) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    whole = torch.from_numpy((0.3 * rng.standard_normal((80, 40)) + 0.3 * rng.standard_normal(40)).astype(np.float32))
    matrix, owner = whole[:30, :15], torch.arange(30) // 2
    banks = []
    for bank in (whole[30:, :15], whole[:30, 15:].T.contiguous()):  # other captions, other videos
        cut = len(bank) if share is None else int(share * len(bank))
        banks.append((bank[:cut] if rank == 0 else bank[cut:]).split(7))
    scores = Scores(MatrixScore(matrix), owner, 15)
    found = rescore(method, scores, evaluate_matrix(matrix, owner, 15), Banks("x", *banks, everyone=_everyone))
    ranks = [found.result.t2v_ranks.tolist(), found.result.v2t_ranks.tolist()]
    tile = found.new.t2v(matrix.double(), slice(0, 30), slice(0, 15))
    return {"ranks": ranks, "json": found.to_json(), "tile": tile}


def everything(rank: int) -> dict[tuple[str, str], dict[str, Any]]:
    """All distributed results in one go: starting processes is the slow part."""
    return {(m.name, name): outcome(m, rank, share) for m in METHODS for name, share in SPLITS.items()}


@pytest.fixture(scope="module")
def found() -> list[dict[tuple[str, str], dict[str, Any]]]:
    return run_processes(everything, 2)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("split", SPLITS)
def test_two_processes_rescore_as_one(found: list[Any], method: Rescoring, split: str) -> None:
    alone = outcome(method, 0, None)
    plain = evaluate_matrix(torch.zeros(2, 2), torch.arange(2), 2)
    assert alone["json"]["t2v"] != plain.t2v
    for process in found:
        shared = process[method.name, split]
        assert shared["ranks"] == alone["ranks"]
        assert shared["json"] == alone["json"]
        assert torch.allclose(shared["tile"], alone["tile"], rtol=1e-12, atol=1e-12)
    first, second = (process[method.name, split]["tile"] for process in found)
    assert torch.equal(first, second), "the processes agree to the last bit"
