"""task=bench task.parts=[ce_step] measures the three orders of gating on one model and one batch."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from src.tasks import bench_ce as bench

SMALL = {
    "audio": bench.Expert(4, 3, 2, flaky=True),
    "face": bench.Expert(5, flaky=True),
    "scene": bench.Expert(6),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"EXPERTS": SMALL, "TEXT": bench.Expert(7, 4, 2), "SHARED_DIM": 8}.items():
        monkeypatch.setattr(bench, name, value)


def test_every_way_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    step = bench._step
    monkeypatch.setattr(bench, "_step", lambda model, *rest: (seen.append(model.gating), step(model, *rest))[1])
    found = bench.bench_ce_step(OmegaConf.create({"seed": 0, "task": {"ce_batch": 6, "ce_steps": 3}}))
    kinds = [gating.order for gating in seen[1:]]
    ways = ["sequential", "regrouped", "batched"]
    assert kinds == [*ways, *ways[1:], *ways[:1], *ways[2:], *ways[:2], *ways]
    assert found["batch"] == 6
    for mode in bench.MODES:
        assert found[f"{mode}: samples/s"] == pytest.approx(6 / found[f"{mode}: step s"])
        assert found[f"{mode}: step s"] > found["optimiser s"] > 0
    assert found["batched / sequential"] == pytest.approx(found["sequential: step s"] / found["batched: step s"])


def test_published_order_and_its_regrouping_agree() -> None:
    text, video = bench._batch(6, torch.Generator().manual_seed(0))
    model = bench._model().eval()
    gatings = bench._gatings(model)
    found = []
    for mode in bench.MODES:
        model.gating = gatings[mode]
        found.append(model.similarity(model.encode_text(text), model.encode_video(video)))
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-5)
    assert 0 < int((~video.present_BE[:, :2]).sum()) < 12
    assert video.present_BE[:, 2].all()
