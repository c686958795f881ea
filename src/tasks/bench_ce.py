"""task=bench, part ce_step: training steps of Collaborative Experts at the published size, by order of gating."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise
from typing import NamedTuple, get_args

import torch
from omegaconf import DictConfig

from src.batch import TextBatch, VideoBatch
from src.models.collaborative_experts import CollaborativeExperts
from src.models.collaborative_gating import CollaborativeGating, GatingOrder
from src.optim.factories import RangerFactory


class Expert(NamedTuple):
    """Features of MSR-VTT: length of a vector, steps and clusters of temporal ones, whether some videos lack them."""

    dim: int
    steps: int = 0
    clusters: int = 0
    flaky: bool = False


EXPERTS = {
    "audio": Expert(128, 29, 8, flaky=True),
    "face": Expert(512, flaky=True),
    "flow": Expert(1024),
    "inst": Expert(2048),
    "ocr": Expert(300, 49, 43, flaky=True),
    "r2p1d": Expert(512),
    "rgb": Expert(2048),
    "scene": Expert(2208),
    "speech": Expert(300, 32, 19, flaky=True),
}
TEXT = Expert(768, 37, 28)
SHARED_DIM = 768
MISSING = 0.3  # of the flaky experts
MODES = get_args(GatingOrder)
PARTS = ("text", "video", "backward")


def bench_ce_step(cfg: DictConfig) -> dict[str, float]:
    """Seconds and samples per second of whole steps (forward, loss, backward, Ranger) on one made-up batch.

    Every repetition does one step of each order on the same model. An order's step is the median of its own parts and
    the mean of the optimiser, which has the same work in all of them.
    """
    generator = torch.Generator().manual_seed(cfg.seed)
    text, video = _batch(cfg.task.ce_batch, generator)
    model = _model()
    gatings = _gatings(model)
    optimizer = RangerFactory(lr=1e-4).build(model.named_parameters(), 0)
    _step(model, text, video)
    for _ in range(6):  # from then on steps are rectified
        optimizer.step()
    seconds: dict[str, list[list[float]]] = {mode: [] for mode in MODES}
    optimizing: list[list[float]] = []
    for repetition in range(1 + cfg.task.ce_steps):  # the first one allocates
        turn = repetition % len(MODES)  # some steps of Ranger do more than others
        for mode in MODES[turn:] + MODES[:turn]:
            model.gating = gatings[mode]
            optimizer.zero_grad()
            parts = _step(model, text, video)
            started, cpu_started = time.perf_counter(), time.process_time()
            optimizer.step()
            if repetition:
                seconds[mode].append(parts)
                optimizing.append([time.perf_counter() - started, time.process_time() - cpu_started])
    return _summary(len(text), sum(p.numel() for p in model.parameters()), seconds, optimizing)


def _summary(
    batch: int, parameters: int, seconds: dict[str, list[list[float]]], optimizing: list[list[float]]
) -> dict[str, float]:
    optimizer_s, optimizer_cpu = (statistics.mean(column) for column in zip(*optimizing, strict=True))
    found: dict[str, float] = {"batch": batch, "parameters": parameters, "optimiser s": optimizer_s}
    for mode in MODES:
        columns = [statistics.median(column) for column in zip(*seconds[mode], strict=True)]
        found |= {f"{mode}: {part} s": value for part, value in zip(PARTS, columns, strict=False)}
        found[f"{mode}: step s"] = statistics.median(sum(row[: len(PARTS)]) for row in seconds[mode]) + optimizer_s
        found[f"{mode}: CPU-s"] = columns[-1] + optimizer_cpu
        found[f"{mode}: samples/s"] = batch / found[f"{mode}: step s"]
    for mode in MODES[:-1]:
        found[f"batched / {mode}"] = found["batched: samples/s"] / found[f"{mode}: samples/s"]
    return found


def _step(model: CollaborativeExperts, text: TextBatch, video: VideoBatch) -> list[float]:
    """Seconds of each part (loss counts as backward), and CPU seconds of all."""
    cpu_started, times = time.process_time(), [time.perf_counter()]
    encoded_text = model.encode_text(text)
    times.append(time.perf_counter())
    encoded_video = model.encode_video(video)
    times.append(time.perf_counter())
    model.loss(encoded_text, encoded_video)["loss"].backward()
    times.append(time.perf_counter())
    return [b - a for a, b in pairwise(times)] + [time.process_time() - cpu_started]


def _batch(size: int, generator: torch.Generator) -> tuple[TextBatch, VideoBatch]:
    """Random features; all padded to their full length, as in training."""
    ids = torch.arange(size)
    tokens = torch.zeros(size, 0, dtype=torch.int64)
    masks = {"text": torch.ones(size, TEXT.steps, dtype=torch.bool)}
    features = {"text": torch.randn(size, TEXT.steps, TEXT.dim, generator=generator)}
    text = TextBatch(tokens, tokens.bool(), ids, ids, features=features, feature_masks=masks)
    experts = {
        name: torch.randn(size, *([one.steps] if one.steps else []), one.dim, generator=generator)
        for name, one in EXPERTS.items()
    }
    lacking_BE = torch.rand(size, len(EXPERTS), generator=generator) < MISSING
    flaky_E = torch.tensor([one.flaky for one in EXPERTS.values()])
    return text, VideoBatch(ids, features=experts, present_BE=~(lacking_BE & flaky_E))


def _model() -> CollaborativeExperts:
    torch.manual_seed(0)
    return CollaborativeExperts(
        experts={
            name: {"dim": one.dim, "temporal": one.steps > 0, "max_steps": one.steps or None}
            for name, one in EXPERTS.items()
        },
        text={"name": "text", "dim": TEXT.dim, "temporal": True},
        vlad_clusters={name: one.clusters for name, one in EXPERTS.items()} | {"text": TEXT.clusters},
        max_tokens={"text": TEXT.steps},
        text_ghost_clusters=1,
        shared_dim=SHARED_DIM,
        margin=0.09381161988446174,
    ).train()


def _gatings(model: CollaborativeExperts) -> dict[str, CollaborativeGating]:
    """The orders, all with the layers of the model."""
    own = model.gating
    if own is None:
        raise ValueError("the model has no gating")
    gatings = {order: CollaborativeGating(own.num_experts, SHARED_DIM, order=order) for order in MODES}
    for gating in gatings.values():
        for name, layers in own.named_children():
            setattr(gating, name, layers)
        gating.train(own.training)
    return gatings
