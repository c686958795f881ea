"""task=bench, part cached_loss: memory of a training step, a small batch at once and a large one in chunks."""

from __future__ import annotations

import ctypes
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import torch
from omegaconf import DictConfig

from src.batch import PairBatch
from src.models.clip2video import Clip2Video
from src.models.gradient_cache import encode_in_chunks
from src.tasks.bench import PeakMemory, seconds_of
from src.tasks.bench_clip import WORDS, made_up_pairs


@dataclass(frozen=True)
class Case:
    """One training step."""

    arch: str
    frames: int
    batch: int
    chunks: int
    seed: int
    threads: int


def bench_cached_loss(cfg: DictConfig) -> dict[str, float]:
    """Most memory of forward, loss and backward above what is there before, each size in a process of its own.

    Before the step there are the parameters, their gradients (zero) and the batch, and one step of three pairs has
    loaded the libraries: what is counted are activations, embeddings, logits and their gradients. Freed memory goes
    back to the system at once, so that gaps between what is held do not count.
    """
    task = cfg.task
    small = Case(task.cached_arch, task.cached_frames, task.cached_small, 1, cfg.seed, torch.get_num_threads())
    large = replace(small, batch=task.cached_batch, chunks=task.cached_chunks)
    found: dict[str, float] = {"frames": small.frames}
    for name, case in (("small", small), ("large", large)):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            measured = process.submit(measure, case).result()
        found |= {f"{name}: {quantity}": value for quantity, value in measured.items()}
    found["large / small, step MB"] = found["large: step MB"] / found["small: step MB"]
    found["large / small, CPU-s per pair"] = (found["large: CPU-s"] / large.batch) / (
        found["small: CPU-s"] / small.batch
    )
    return found


def measure(case: Case) -> dict[str, float]:
    """Memory and time of the step, in this process."""
    _return_freed_memory()
    torch.set_num_threads(case.threads)
    torch.manual_seed(case.seed)
    model = Clip2Video(arch=case.arch, num_frames=case.frames, max_words=WORDS).train()
    parameters = sum(p.nbytes for p in model.parameters())
    generator = torch.Generator().manual_seed(case.seed)
    _forward_backward(model, made_up_pairs(model, 3, generator), chunks=1)
    model.zero_grad(set_to_none=False)
    batch = made_up_pairs(model, case.batch, generator)
    assert batch.video.frames_BTCHW is not None
    with PeakMemory() as memory:
        spent = seconds_of(lambda: _forward_backward(model, batch, case.chunks))
    return {
        "batch": case.batch,
        "chunks": case.chunks,
        "step MB": memory.megabytes,
        "parameters MB": parameters / 1e6,
        "frames MB": batch.video.frames_BTCHW.nbytes / 1e6,
        "s": spent[0],
        "CPU-s": spent[1],
    }


def _return_freed_memory() -> None:
    """Let glibc give freed tensors back at once, so that resident memory is what the step holds; elsewhere nothing.

    Small models' tensors would otherwise come from a heap whose gaps stay. The number is mallopt's M_MMAP_THRESHOLD.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 65536)


def _forward_backward(model: Clip2Video, batch: PairBatch, chunks: int) -> None:
    text = encode_in_chunks(model.encode_text, batch.text, chunks)
    video = encode_in_chunks(model.encode_video, batch.video, chunks)
    model.loss(text, video)["loss"].backward()
