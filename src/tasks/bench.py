"""task=bench: throughput and memory, part by part; `task.parts=[evaluation]` runs one of them."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from omegaconf import DictConfig
from torch.nn.functional import normalize

from src.batch import PairBatch, TextEmbedding, VideoEmbedding
from src.errors import UserError
from src.metrics.retrieval import evaluate
from src.reports.table import Table

BLOCK = 1024  # rows of one bare matmul
ENOUGH = 1.2  # a loader slower than this times the model starves it
Numbers = dict[str, float]


def run(cfg: DictConfig) -> None:
    """Measure the parts, print a table, write bench.json.

    Raises:
        UserError: an unknown part.
    """
    parts: dict[str, Callable[[DictConfig], Numbers]] = {
        "evaluation": bench_evaluation,
        "loader": bench_loader,
        "model": bench_model,
        "store": bench_store,
        "metrics": bench_metrics,
        "dual_step": bench_dual_step,
        "dual_evaluation": bench_dual_evaluation,
        "ce_step": bench_ce_step,
        "decode": bench_decode,
        "cache": bench_cache,
        "clip_step": bench_clip_step,
        "clip_scores": bench_clip_scores,
        "cached_loss": bench_cached_loss,
        "clip_throughput": bench_clip_throughput,
        "fusion_step": bench_fusion_step,
        "ocr_speed": bench_ocr_speed,
        "ocr_memory": bench_ocr_memory,
    }
    unknown = [part for part in cfg.task.parts if part not in parts]
    if unknown:
        raise UserError(f"task.parts: found {unknown[0]!r}, expected some of {', '.join(parts)}")
    results: dict[str, Any] = {part: parts[part](cfg) for part in cfg.task.parts}
    if "loader" in results and "model" in results:
        results["model"]["loader / model"] = results["loader"]["samples/s"] / results["model"]["samples/s"]
    notes = [f"{name}: {value}" for name, value in machine().items()]
    if results.get("model", {}).get("loader / model", ENOUGH) < ENOUGH:
        notes.append(
            f"warning: the loader feeds fewer than {ENOUGH} times the samples that the model takes; "
            "raise dataset.num_workers or fill the frame cache with task=prepare"
        )
    rows = tuple((part, name, _short(value)) for part, found in results.items() for name, value in found.items())
    Table("bench", ("part", "quantity", "value"), rows, tuple(notes)).print()
    path = Path(cfg.paths.run_dir) / "bench.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"{path}\n")


def bench_evaluation(cfg: DictConfig) -> Numbers:
    """Both directions on random unit vectors, one thread, beside one bare matmul of the same run."""
    generator = torch.Generator().manual_seed(cfg.seed)
    captions, videos, dim = cfg.task.num_captions, cfg.task.num_videos, cfg.task.dim
    text_QD = normalize(torch.randn(captions, dim, generator=generator), dim=1)
    video_VD = normalize(torch.randn(videos, dim, generator=generator), dim=1)
    text = TextEmbedding(torch.arange(captions), {"x": text_QD}, video_ids=torch.arange(captions) * videos // captions)
    video = VideoEmbedding(torch.arange(videos), {"x": video_VD})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        before = _cpu_seconds(lambda: _bare_matmul(text_QD, video_VD))
        with PeakMemory() as memory:
            seconds = _cpu_seconds(lambda: evaluate(text, video, lambda t, v: t.parts["x"] @ v.parts["x"].T))
        # Before and after: the machine's speed may change within a run.
        matmul = (before + _cpu_seconds(lambda: _bare_matmul(text_QD, video_VD))) / 2
    finally:
        torch.set_num_threads(threads)
    return {
        "captions": captions,
        "videos": videos,
        "dim": dim,
        "CPU-s": seconds,
        "bare matmul CPU-s": matmul,
        "ratio to matmul": seconds / matmul,
        "MB above embeddings": memory.megabytes,
        "embeddings MB": (text_QD.nbytes + video_VD.nbytes) / 1e6,
    }


def bench_loader(cfg: DictConfig) -> Numbers:
    """Samples per second of the configured data set's training loader, with nothing behind it."""
    from src.tasks.build import build_datamodule, build_model

    datamodule = build_datamodule(cfg, build_model(cfg).input_spec)
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    batches = iter(loader)
    started = time.perf_counter()
    first = next(batches)
    first_s = time.perf_counter() - started
    samples, timed, started = 0, 0, time.perf_counter()
    while timed < cfg.task.batches:
        for batch in batches:
            samples, timed = samples + len(batch), timed + 1
            if timed >= cfg.task.batches:
                break
        batches = iter(loader)
    seconds = time.perf_counter() - started
    frames = first.video.frames_BTCHW.shape[1] if first.video.frames_BTCHW is not None else 0
    return {
        "workers": datamodule.num_workers,
        "batch": len(first),
        "first batch s": first_s,
        "samples/s": samples / seconds,
        "frames/s": samples * frames / seconds,
    }


def bench_model(cfg: DictConfig) -> Numbers:
    """Samples per second of whole training steps (forward, backward, update) on one batch, again and again."""
    from src.tasks.build import build_datamodule, build_model, build_optimization

    device = torch.device("cuda" if torch.cuda.is_available() and cfg.trainer.accelerator != "cpu" else "cpu")
    model = build_model(cfg).to(device).train()
    datamodule = build_datamodule(cfg, model.input_spec)
    datamodule.setup("fit")
    batch: PairBatch = next(iter(datamodule.train_dataloader())).to(device)
    optimizer = build_optimization(cfg)[0].build(
        [(name, p) for name, p in model.named_parameters() if p.requires_grad], 1 + cfg.task.steps
    )
    mixed = "bf16" in str(cfg.trainer.precision)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
            text, video = model.encode_text(batch.text), model.encode_video(batch.video)
        model.loss(text.map(_float32), video.map(_float32))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()  # warm-up: allocations, kernel choice
    with PeakMemory() as memory:
        started = time.perf_counter()
        for _ in range(cfg.task.steps):
            step()
        seconds = (time.perf_counter() - started) / cfg.task.steps
    found = {"batch": len(batch), "step s": seconds, "samples/s": len(batch) / seconds, "host MB": memory.megabytes}
    if device.type == "cuda":
        found["device MB"] = torch.cuda.max_memory_allocated() / 1e6
    return found


def bench_store(cfg: DictConfig) -> Numbers:
    """Features: our store beside BigFile, and pairs per second."""
    from src.tasks import bench_store

    return bench_store.bench_store(cfg)


def bench_metrics(cfg: DictConfig) -> Numbers:
    """Ranks from a matrix with masked rows, and QB-Norm's query bank."""
    from src.tasks import bench_metrics

    return bench_metrics.bench_metrics(cfg)


def bench_dual_step(cfg: DictConfig) -> Numbers:
    """Training steps of Dual Encoding, both kinds of padding in turn."""
    from src.tasks import bench_dual_step

    return bench_dual_step.bench_dual_step(cfg)


def bench_dual_evaluation(cfg: DictConfig) -> Numbers:
    """Scores in both spaces of Dual Encoding, and their ranks."""
    from src.tasks import bench_dual

    return bench_dual.bench_dual_evaluation(cfg)


def bench_ce_step(cfg: DictConfig) -> Numbers:
    """Training steps of Collaborative Experts: `src.tasks.bench_ce`."""
    from src.tasks import bench_ce

    return bench_ce.bench_ce_step(cfg)


def bench_decode(cfg: DictConfig) -> Numbers:
    """Our video reader beside the bare library."""
    from src.tasks import bench_video

    return bench_video.bench_decode(cfg)


def bench_cache(cfg: DictConfig) -> Numbers:
    """The frame cache beside decoding."""
    from src.tasks import bench_video

    return bench_video.bench_cache(cfg)


def bench_clip_step(cfg: DictConfig) -> Numbers:
    """A training step of CLIP2Video beside its bare towers."""
    from src.tasks import bench_clip

    return bench_clip.bench_clip_step(cfg)


def bench_clip_scores(cfg: DictConfig) -> Numbers:
    """Scores of CLIP2Video: items encoded once, or once per block."""
    from src.tasks import bench_clip

    return bench_clip.bench_clip_scores(cfg)


def bench_cached_loss(cfg: DictConfig) -> Numbers:
    """Memory of a large batch in chunks beside a small one."""
    from src.tasks import bench_clip_memory

    return bench_clip_memory.bench_cached_loss(cfg)


def bench_clip_throughput(cfg: DictConfig) -> Numbers:
    """Training steps in bf16: eager, compiled, attention not fused."""
    from src.tasks import bench_clip_gpu

    return bench_clip_gpu.bench_clip_throughput(cfg)


def bench_fusion_step(cfg: DictConfig) -> Numbers:
    """Forward and backward pass of TextVR, with fused attention and without."""
    from src.tasks import bench_textvr

    return bench_textvr.bench_fusion_step(cfg)


def bench_ocr_speed(cfg: DictConfig) -> Numbers:
    """Frames and words that are read per second."""
    from src.tasks import bench_ocr

    return bench_ocr.bench_ocr_speed(cfg)


def bench_ocr_memory(cfg: DictConfig) -> Numbers:
    """Memory and time of TextVR's words in training, with `model.ocr_checkpointing` and without."""
    from src.tasks import bench_ocr_memory

    return bench_ocr_memory.bench_ocr_memory(cfg)


class PeakMemory:
    """Most resident memory inside the block above that at its beginning, in MB (10^6 bytes), sampled every 2 ms."""

    def __enter__(self) -> PeakMemory:
        self.megabytes = 0.0
        self._start = resident_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._sample()
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._sample()

    def _sample(self) -> None:
        self.megabytes = max(self.megabytes, (resident_bytes() - self._start) / 1e6)


def resident_bytes() -> int:
    """Resident memory of this process; its highest value so far where the system tells no other (macOS)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return pages * os.sysconf("SC_PAGE_SIZE")


def machine() -> dict[str, object]:
    """What the numbers were measured on."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
    }


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _bare_matmul(text_QD: torch.Tensor, video_VD: torch.Tensor) -> None:
    for start in range(0, len(text_QD), BLOCK):
        torch.mm(text_QD[start : start + BLOCK], video_VD.T)


def seconds_of(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    started, cpu_started = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - cpu_started


def _cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
