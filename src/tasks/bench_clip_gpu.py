"""task=bench, part clip_throughput: bf16 training steps of CLIP2Video: eager, compiled, attention not fused.

Made for a GPU; runs without one, slowly.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from omegaconf import DictConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from src.batch import PairBatch
from src.models.clip2video import Clip2Video
from src.optim.factories import AdamWFactory
from src.tasks.bench_clip import WORDS, made_up_pairs

EAGER, COMPILED, RECOMPUTED, UNFUSED = MODES = ("eager", "compiled", "recomputed", "SDPA off")
MATMUL = 8192  # side of the bf16 matrices that say what the device reaches
WARM_UP = 3


def bench_clip_throughput(cfg: DictConfig) -> dict[str, float]:
    """Frames per second of whole steps (forward, loss, backward, AdamW), all ways in turn on one batch.

    "recomputed" is model.activation_checkpointing; "SDPA off" multiplies, masks and normalises attention in separate
    operations. The share of the peak counts the arithmetic of the eager step, recomputation not, against
    `task.peak_tflops`, or against a large bf16 matmul of the same run where that is null.
    """
    on_gpu = torch.cuda.is_available() and cfg.trainer.accelerator != "cpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    models = {mode: _model(cfg, mode).to(device) for mode in MODES}
    batch = made_up_pairs(models[EAGER], cfg.task.throughput_batch, torch.Generator().manual_seed(cfg.seed)).to(device)
    assert batch.video.mask_BT is not None
    # Every model's optimiser has two more values per parameter, as in training.
    steps = {mode: _stepper(mode, model, batch) for mode, model in models.items()}
    for _ in range(WARM_UP):
        for step in steps.values():
            step()
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    memory: dict[str, int] = dict.fromkeys(MODES, 0)
    for repetition in range(cfg.task.throughput_steps):
        turn = repetition % len(MODES)
        for mode in MODES[turn:] + MODES[:turn]:
            seconds[mode].append(_timed(steps[mode], device))
            memory[mode] = torch.cuda.max_memory_allocated() if on_gpu else 0
    frames = batch.video.mask_BT.numel()
    flops = _flops(cfg, models[EAGER], device) * len(batch)
    peak = float(cfg.task.peak_tflops or _matmul_tflops(device, MATMUL if on_gpu else 512)) * 1e12
    found: dict[str, float] = {
        "batch": len(batch),
        "frames": frames,
        "TFLOP/step": flops / 1e12,
        "peak TFLOP/s": peak / 1e12,
    }
    for mode in MODES:
        median = statistics.median(seconds[mode])
        found |= {f"{mode}: step s": median, f"{mode}: frames/s": frames / median}
        found |= {f"{mode}: share of peak": flops / median / peak, f"{mode}: device MB": memory[mode] / 1e6}
    return found


def _model(cfg: DictConfig, mode: str) -> Clip2Video:
    torch.manual_seed(cfg.seed)
    return Clip2Video(
        arch=cfg.task.clip_arch,
        num_frames=cfg.task.clip_frames,
        max_words=WORDS,
        activation_checkpointing=mode == RECOMPUTED,
        compile=mode == COMPILED,
    ).train()


def _stepper(mode: str, model: Clip2Video, batch: PairBatch) -> Callable[[], None]:
    optimizer: Optimizer = AdamWFactory(lr=1e-7).build(model.named_parameters(), 0)
    device = batch.text.ids.device

    def step() -> None:
        attention: AbstractContextManager[object] = sdpa_kernel(SDPBackend.MATH) if mode == UNFUSED else nullcontext()
        with attention:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                text, video = model.encode_text(batch.text), model.encode_video(batch.video)
            model.loss(text, video)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _timed(step: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _flops(cfg: DictConfig, model: Clip2Video, device: torch.device) -> float:
    """Floating-point operations of forward and backward pass per pair."""
    pairs = made_up_pairs(model, 2, torch.Generator().manual_seed(cfg.seed)).to(device)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(model.encode_text(pairs.text), model.encode_video(pairs.video))["loss"].backward()
    model.zero_grad()
    return counter.get_total_flops() / len(pairs)


def _matmul_tflops(device: torch.device, side: int) -> float:
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    seconds = [_timed(lambda: torch.mm(a, b), device) for _ in range(12)]
    return 2 * side**3 / statistics.median(seconds[2:]) / 1e12
