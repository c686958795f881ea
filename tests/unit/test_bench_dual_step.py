"""task=bench task.parts=[dual_step] measures both kinds of padding on one batch."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from src.config.validate import CONF
from src.tasks import bench_dual_step as bench


def test_both_paddings_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DIM": 8, "WORDS": 20, "CONCEPTS": 4, "FRAMES": (2, 6), "MATMUL": 64}.items():
        monkeypatch.setattr(bench, name, value)
    seen = []
    step = bench._step
    monkeypatch.setattr(bench, "_step", lambda model, *rest: (seen.append(model), step(model, *rest)))
    found = bench.bench_dual_step(OmegaConf.create({"seed": 0, "task": {"dual_batch": 3, "dual_steps": 2}}))
    assert [model.video_encoder.masked for model in seen] == [False, True] * 3
    assert (found["batch"], found["frame dim"], found["frames, most"], found["tokens, most"]) == (3, 8, 6, 20)
    assert 2 <= found["frames, least"] < found["frames, mean"] < 6
    assert 3 <= found["tokens, least"] < found["tokens, mean"] < 20
    assert found["masked / upstream"] == pytest.approx(found["masked samples/s"] / found["upstream samples/s"])


def test_the_batch_is_the_published_one() -> None:
    assert OmegaConf.load(CONF / "task" / "bench.yaml").dual_batch == 128
    assert (bench.DIM, bench.WORDS, bench.CONCEPTS, bench.FRAMES) == (4096, 7807, 512, (10, 64))
    lengths_N = bench._mask(5000, bench.FRAMES, torch.Generator().manual_seed(0)).sum(1)
    assert (int(lengths_N.min()), int(lengths_N.max())) == bench.FRAMES
    assert float(lengths_N.double().mean()) == pytest.approx(37, abs=1)
    tokens_N = bench._mask(5000, bench.TOKENS, torch.Generator().manual_seed(0)).sum(1)
    assert float(tokens_N.double().mean()) == pytest.approx(bench.MSRVTT_TOKENS, abs=0.5)


def test_the_bench_says_which_lengths_it_used() -> None:
    lengths_B = torch.tensor([3, 5, 10])
    assert bench._lengths("tokens", lengths_B) == {"tokens, least": 3, "tokens, mean": 6, "tokens, most": 10}


def test_products_are_counted_as_the_layers_do_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DIM": 8, "WORDS": 20, "CONCEPTS": 4, "FRAMES": (6, 6), "TOKENS": (5, 5)}.items():
        monkeypatch.setattr(bench, name, value)
    text, video = bench._batch(3, torch.Generator().manual_seed(0))
    with torch.device("meta"):
        models = {padding: bench._model(padding) for padding in bench.MODES}
    hidden, kernels, word = 512, 512, 500
    gru = 2 * 3 * hidden * (8 * 2 + hidden * 3)  # the gradient of the frames is not needed
    video_side = 3 * 6 * (gru + 3 * (2 + 3 + 4 + 5) * kernels * 2 * hidden)
    text_side = 3 * 5 * 3 * (2 * 3 * hidden * (word + hidden) + (2 + 3 + 4) * kernels * 2 * hidden)
    joint = 3 * 3 * (1536 + 4) * (2 * hidden + 4 * kernels + 8 + 2 * hidden + 3 * kernels + 20)
    for model in models.values():
        assert bench._products(model, text, video) == video_side + text_side + joint
