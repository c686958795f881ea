"""Every variant of Dual Encoding is built, trained, saved, loaded and evaluated; senseless ones are refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from src.batch import TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.metrics.retrieval import evaluate
from src.models.dual_encoding import DualEncoding
from src.optim.factories import AdamFactory, RMSpropFactory
from src.tasks.checkpoint import load_weights
from tests.tiny_dual import WORDS, make, texts, videos

MEASURES = ("cosine", "order", "euclidean", "l1", "l2", "l1_norm", "l2_norm", "jaccard")
CAPTIONS = ["two dogs", "a red car runs", "dog", "two red cars"]
LENGTHS = [2, 5, 1, 3]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads wait for each other longer than these sizes take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.json"
    path.write_text(json.dumps({"words": WORDS}))
    return str(path)


def train(model: DualEncoding, factory: Any, steps: int = 1) -> list[float]:
    """Losses of steps on one batch."""
    model.train()
    optimizer = factory.build(list(model.named_parameters()), steps)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.loss(model.encode_text(texts(model, CAPTIONS)), model.encode_video(videos(LENGTHS)))["loss"]
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def embed(model: DualEncoding) -> tuple[TextEmbedding, VideoEmbedding]:
    model.eval()
    return model.encode_text(texts(model, CAPTIONS)), model.encode_video(videos(LENGTHS))


@pytest.mark.parametrize("padding", ["upstream", "masked"])
@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("concate", ["full", "reduced"])
@pytest.mark.parametrize("space", ["hybrid", "latent", "concept"])
def test_train_save_load(vocabulary: str, tmp_path: Path, space: str, concate: str, pool: str, padding: str) -> None:
    options: dict[str, Any] = {"space": space, "concate": concate, "gru_pool": pool, "padding": padding}
    # With few channels all of a convolution may be rectified to zero.
    options |= {"text_kernel_num": 16, "visual_kernel_num": 16}
    model = make(vocabulary, **options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, RMSpropFactory(lr=1e-3) if pool == "max" else AdamFactory(lr=1e-3))
    same = [name for name, value in model.state_dict().items() if torch.equal(value, before[name])]
    assert same == [], "every tensor learns"
    content: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(content)
    torch.save(content, tmp_path / "best.ckpt")
    again = make(vocabulary, **options)
    load_weights(again, tmp_path / "best.ckpt")
    (text, video), (text_2, video_2) = embed(model), embed(again)
    for one, other in ((text, text_2), (video, video_2)):
        assert one.parts.keys() == other.parts.keys()
        assert all(torch.equal(one.parts[part], other.parts[part]) for part in one.parts)
    result = evaluate(text_2, video_2, again.scorer(text_2, video_2))
    assert torch.equal(result.t2v_ranks, evaluate(text, video, model.scorer(text, video)).t2v_ranks)


@pytest.mark.parametrize("space", ["latent", "concept", "hybrid"])
@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_trains_and_evaluates(vocabulary: str, space: str, measure: str) -> None:
    options = {"latent": {"measure": measure}, "concept": {"measure_2": measure}}
    chosen = options.get(space) or {"measure": "l1" if measure == "jaccard" else measure, "measure_2": measure}
    if space == "latent" and measure == "jaccard":
        with pytest.raises(UserError, match=r"model\.measure=jaccard is for vectors without negative numbers"):
            make(vocabulary, space=space, **chosen)
        return
    model = make(vocabulary, space=space, dropout=0.0, max_violation=False, **chosen)
    losses = train(model, AdamFactory(lr=1e-2), steps=8)
    assert losses[-1] < losses[0]
    text, video = embed(model)
    scores = model.scorer(text, video)(text, video)
    assert scores.isfinite().all()
    assert scores.unique().numel() == scores.numel()
    evaluate(text, video, model.scorer(text, video))


@pytest.mark.parametrize(
    ("style", "hardest", "direction"), [*itertools.product(["sum", "mean"], [True, False], ["all", "t2v", "v2t"])]
)
def test_every_loss_trains(vocabulary: str, style: str, hardest: bool, direction: str) -> None:
    model = make(vocabulary, dropout=0.0, cost_style=style, max_violation=hardest, direction=direction)
    losses = train(model, AdamFactory(lr=1e-2), steps=5)
    assert losses[-1] < losses[0]


def test_the_cosine_of_concepts_is_one(vocabulary: str) -> None:
    """Training compares as evaluation does, not by the inner product, which more concepts make larger."""
    model = make(vocabulary, space="concept", measure_2="cosine", margin_2=0.0, max_violation=False)
    text, video = embed(model)
    video = VideoEmbedding(video.ids, {**video.parts, "targets": torch.zeros(4, 5)})
    scores = model.scorer(text, video)(text, video)
    own = scores.diag()
    expected = (scores - own[:, None]).clamp_min(0).sum() + (scores - own[None]).clamp_min(0).sum()
    torch.testing.assert_close(model.loss(text, video)["concepts"], expected)


def test_jaccard_beside_an_unused_latent_space(vocabulary: str) -> None:
    make(vocabulary, space="concept", measure="jaccard")
    with pytest.raises(UserError, match=r"jaccard is for model\.measure_2"):
        make(vocabulary, measure="jaccard")
    make(vocabulary, space="latent", measure_2="cosine")


@pytest.mark.parametrize("wrong", [{"alpha": 1.1}, {"alpha": -0.1}, {"topic_alpha": 2.0}])
def test_weights_are_shares(vocabulary: str, wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="expected the latent space's share"):
        make(vocabulary, **wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"text_kernel_sizes": ()}, {"visual_kernel_sizes": (2, 0)}, {"text_rnn_size": 0}, {"visual_kernel_num": 0}],
)
def test_impossible_sizes_are_named(vocabulary: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"model.{next(iter(wrong))}=.*expected"):
        make(vocabulary, **wrong)


def test_topics_have_weights_of_their_own(vocabulary: str) -> None:
    model = make(vocabulary, topic_alpha=0.8, topic_measure_2="cosine")
    text, video = embed(model)
    both = make(vocabulary, alpha=0.8, measure_2="cosine")
    assert torch.equal(model.topic_scorer(text, video)(text, video), both.scorer(text, video)(text, video))
    assert torch.equal(model.scorer(text, video)(text, video), make(vocabulary).topic_scorer(text, video)(text, video))
