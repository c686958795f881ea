"""task=bench, part dual_step: training steps of Dual Encoding at the published size, both kinds of padding in turn."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from src.batch import TextBatch, VideoBatch
from src.models.base import RetrievalModule
from src.models.dual_encoding import MEAN, DualEncoding
from src.models.recurrent import Padding
from src.optim.factories import AdamFactory

FRAMES = (10, 64)  # per video, uniform, as the reference was timed
# Per caption, uniform, start and end included: 9.5 words on average. The 200,000 captions of MSR-VTT have 9.3, nine of
# ten 4 to 17, and the longest of 128 has 26 in the median: the upstream mode pads less here than it would there.
TOKENS = (3, 20)
MSRVTT_TOKENS = 9.3 + 2
DIM, WORDS, CONCEPTS = 4096, 7807, 512
MODES: tuple[Padding, ...] = ("upstream", "masked")
MATMUL = 2048  # side of the square product that says what the machine can do


def bench_dual_step(cfg: DictConfig) -> dict[str, float]:
    """Samples per second of whole steps (forward, loss, backward, clipping, Adam) on one made-up batch.

    Every repetition does one step of each mode; the median of each is reported. "most samples/s" is the matrix
    products of the upstream mode alone at the speed of a large product on this machine: what no implementation of
    that mode can exceed.
    """
    generator = torch.Generator().manual_seed(cfg.seed)
    text, video = _batch(cfg.task.dual_batch, generator)
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    cpu: dict[str, list[float]] = {mode: [] for mode in MODES}
    models = {mode: _model(mode) for mode in MODES}
    optimizers = {mode: AdamFactory(lr=1e-4).build(model.named_parameters(), 0) for mode, model in models.items()}
    speed = _products_per_second()
    for repetition in range(1 + cfg.task.dual_steps):  # the first one allocates
        for mode in MODES:
            started, cpu_started = time.perf_counter(), time.process_time()
            _step(models[mode], optimizers[mode], text, video)
            if repetition:
                seconds[mode].append(time.perf_counter() - started)
                cpu[mode].append(time.process_time() - cpu_started)
    speed = max(speed, _products_per_second())
    batch, lengths_B = len(text), video.feature_masks["frames"].sum(1)
    upstream, masked = (batch / statistics.median(seconds[mode]) for mode in MODES)
    return {
        "batch": batch,
        "frame dim": DIM,
        **_lengths("frames", lengths_B),
        **_lengths("tokens", text.mask_BL.sum(1)),
        "tokens of MSR-VTT, mean": MSRVTT_TOKENS,
        "upstream step s": batch / upstream,
        "masked step s": batch / masked,
        "upstream CPU-s": statistics.median(cpu["upstream"]),
        "masked CPU-s": statistics.median(cpu["masked"]),
        "upstream samples/s": upstream,
        "masked samples/s": masked,
        "masked / upstream": masked / upstream,
        "matmul GFLOP/s": 2 * speed / 1e9,
        "upstream: most samples/s": batch * speed / _products(models["upstream"], text, video),
    }


def _lengths(name: str, lengths_B: Tensor) -> dict[str, float]:
    """Least, mean and greatest length; everything is padded to the last."""
    found = {"least": lengths_B.min(), "mean": lengths_B.double().mean(), "most": lengths_B.max()}
    return {f"{name}, {what}": float(value) for what, value in found.items()}


def _batch(size: int, generator: torch.Generator) -> tuple[TextBatch, VideoBatch]:
    """Made-up captions and frame features; one video has the greatest length, so that padding is as published."""
    ids = torch.arange(size)
    mask_BL = _mask(size, TOKENS, generator)
    tokens_BL = torch.randint(4, WORDS + 4, mask_BL.shape, generator=generator) * mask_BL
    mask_BT = _mask(size, FRAMES, generator)
    frames_BTD = torch.randn(*mask_BT.shape, DIM, generator=generator).relu_() * mask_BT[..., None]
    mean_BD = frames_BTD.sum(1) / mask_BT.sum(1, keepdim=True)
    targets_BK = torch.rand(size, CONCEPTS, generator=generator)
    targets_BK *= targets_BK > 0.98  # few concepts per video
    features = {"frames": frames_BTD, "frames" + MEAN: mean_BD, "concepts": targets_BK}
    video = VideoBatch(
        ids, features=features, feature_masks={"frames": mask_BT}, present_BE=torch.ones(size, 3, dtype=torch.bool)
    )
    return TextBatch(tokens_BL, mask_BL, ids, ids), video


def _mask(size: int, lengths: tuple[int, int], generator: torch.Generator) -> Tensor:
    lengths_B = torch.randint(lengths[0], lengths[1] + 1, (size,), generator=generator)
    lengths_B[0] = lengths[1]
    return torch.arange(lengths[1]) < lengths_B[:, None]


def _model(padding: Padding) -> DualEncoding:
    torch.manual_seed(0)
    experts = {
        "frames": {"dim": DIM, "temporal": True, "max_steps": FRAMES[1]},
        "concepts": {"dim": CONCEPTS, "temporal": False},
    }
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocabulary.json"
        vocabulary.write_text(json.dumps({"words": [f"w{i}" for i in range(WORDS)]}), encoding="utf-8")
        model = DualEncoding(
            vocabulary=str(vocabulary), experts=experts, num_concepts=CONCEPTS, padding=padding, max_violation=True
        )
    return model.train()


def _step(model: RetrievalModule, optimizer: torch.optim.Optimizer, text: TextBatch, video: VideoBatch) -> None:
    model.loss(model.encode_text(text), model.encode_video(video))["loss"].backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
    optimizer.step()
    optimizer.zero_grad()


def _products_per_second() -> float:
    """Multiplications with addition per second of a large float32 product: the best of three."""
    a, b = torch.randn(MATMUL, MATMUL), torch.randn(MATMUL, MATMUL)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - started)
    return MATMUL**3 / min(times[1:])


def _products(model: DualEncoding, text: TextBatch, video: VideoBatch) -> float:
    """Multiplications with addition of one step of the upstream mode: forward, and twice as many backward.

    Every weight of a matrix is used once for each row that it sees: each padded frame or real token for recurrent
    layers and convolutions, each item for the others. The gradient of the frames is not needed.
    """
    batch, frames = len(text), video.feature_masks["frames"].numel()
    tokens = int(text.mask_BL.sum())
    total = 0.0
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or weight is model.words.weight:
            continue
        side, _, inner = name.partition(".")
        rows = {"text_encoder": tokens, "video_encoder": frames}.get(side, batch)
        is_first = side == "video_encoder" and inner.startswith("gru.weight_ih")
        total += weight.numel() * rows * (2 if is_first else 3)
    return total
