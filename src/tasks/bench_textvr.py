"""task=bench, part fusion_step: forward and backward pass of TextVR, with fused attention and without."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from src.batch import PairBatch, TextBatch, VideoBatch, WordBatch
from src.errors import UserError
from src.models.bert_text import TINY
from src.models.ocr_fusion import POSITION_SIZE
from src.models.textvr import TextVR
from src.run import keep_freed_memory
from src.tasks.bench import PeakMemory, resident_bytes, seconds_of

R = TypeVar("R")
TEXTS = ("distilbert", TINY)
SDPA, OFF = WAYS = ("SDPA", "SDPA off")
CAPTION, WORD = 16, 6  # tokens, special ones included
LEAST_ID = 1000  # below are special and unused ids of DistilBERT


@dataclass(frozen=True)
class Case:
    """A model and a batch, both made up.

    Attributes:
        text: of captions and of words, see `text_model`.
        vit: of the video tower.
        batch: clips.
        words: in the picture, of each clip.
        seed: of weights, batch and dropout.
        threads: of torch.
    """

    text: str
    vit: str
    batch: int
    words: int
    seed: int
    threads: int


def bench_fusion_step(cfg: DictConfig) -> dict[str, float]:
    """Forward and backward pass of the fusion model with scaled_dot_product_attention, and without its fused kernels.

    The same model and batch in turn. Memory is that of a process of its own for each way, since the one that comes
    second would find what the first one left.

    Raises:
        UserError: unknown `task.fusion_text`, or a single clip, whose loss is 0 whatever the model does.
    """
    task = cfg.task
    if task.fusion_batch < 2:
        raise UserError(f"task.fusion_batch: found {task.fusion_batch}, expected at least 2 clips; set 2")
    check_text(task.fusion_text)
    case = Case(
        task.fusion_text, task.fusion_vit, task.fusion_batch, task.fusion_words, cfg.seed, torch.get_num_threads()
    )
    memory = {way: in_own_process(peak_memory, case, way) for way in WAYS}
    model = fusion_model(case)
    batch = made_up_clips(model, case)
    seconds, losses = in_turn(model, batch, case.seed, task.fusion_steps)
    found: dict[str, float] = {
        "clips": case.batch,
        "frames": batch.video.mask_BT.shape[1] if batch.video.mask_BT is not None else 0,
        "words of a clip": case.words,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    for kind, column in (("s", 0), ("CPU-s", 1)):
        median = {way: statistics.median(spent[column] for spent in rows) for way, rows in seconds.items()}
        found |= {f"{way} {kind}": value for way, value in median.items()}
        found[f"{OFF} / {SDPA}, {kind}"] = median[OFF] / median[SDPA]
    for way in WAYS:
        found |= {f"{way} {quantity}": value for quantity, value in memory[way].items()}
    found["deviation of the loss x 1e6"] = 1e6 * abs(losses[SDPA] - losses[OFF]) / abs(losses[SDPA])
    return found


def in_turn(
    model: TextVR, batch: PairBatch, seed: int, steps: int
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, float]]:
    """Seconds and CPU seconds of `steps` steps of each way, the first way changing, and the loss of each way."""
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    losses: dict[str, float] = {}
    for repetition in range(1 + steps):  # the first one allocates
        turn = repetition % 2
        for way in WAYS[turn:] + WAYS[:turn]:
            model.zero_grad()
            torch.manual_seed(seed)  # the same dropout

            def step(way: str = way) -> None:
                losses[way] = forward_backward(model, batch, way)

            spent = seconds_of(step)
            if repetition:
                seconds[way].append(spent)
    return seconds, losses


def in_own_process(work: Callable[..., R], *arguments: object) -> R:
    """What `work` returns in a fresh process, which keeps freed memory as a training run does."""
    spawn = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=keep_freed_memory) as process:
        return process.submit(work, *arguments).result()


def peak_memory(case: Case, way: str) -> dict[str, float]:
    """Most memory of the first step, in this process: of all there is, and above parameters and batch."""
    torch.set_num_threads(case.threads)
    model = fusion_model(case)
    batch = made_up_clips(model, case)
    before = resident_bytes()
    with PeakMemory() as memory:
        forward_backward(model, batch, way)
    return {"process MB": before / 1e6 + memory.megabytes, "step MB": memory.megabytes}


def check_text(name: str) -> None:
    """Nothing happens for a text model that `text_model` knows.

    Raises:
        UserError: another one.
    """
    if name not in TEXTS:
        raise UserError(f"task.fusion_text: found {name!r}, expected {' or '.join(TEXTS)}")


@contextmanager
def text_model(name: str) -> Iterator[str]:
    """What `TextVR` is to load: a folder without weights, for the published size, or videotext-tiny."""
    if name == TINY:
        yield TINY
        return
    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps({"model_type": name}), encoding="utf-8")
        yield folder


def fusion_model(case: Case) -> TextVR:
    """TextVR from random weights, ready to train."""
    torch.manual_seed(case.seed)
    with text_model(case.text) as text:
        return TextVR(
            text_model=text,
            vit=case.vit,
            time_init="rand",  # with zeros, the attention over time has no gradient to pass on in the first step
            mode="fusion",
        ).train()


def made_up_clips(model: TextVR, case: Case) -> PairBatch:
    """Random pixels, captions and words, without padding."""
    tower = model.video_model
    assert tower is not None
    generator, size = torch.Generator().manual_seed(case.seed), case.batch
    ids, shape_TCHW = torch.arange(size), (tower.num_frames, 3, tower.image_size, tower.image_size)
    text_BL, words = _tokens(generator, size, CAPTION), made_up_words(generator, size, case.words)
    frames = torch.randint(0, 256, (size, *shape_TCHW), dtype=torch.uint8, generator=generator)
    video = VideoBatch(ids, frames, torch.ones(size, tower.num_frames, dtype=torch.bool), words=words)
    return PairBatch(TextBatch(text_BL, torch.ones_like(text_BL, dtype=torch.bool), ids, ids), video)


def made_up_words(generator: torch.Generator, videos: int, count: int) -> WordBatch:
    """Random words at random positions, all of one length; practically all differ."""
    tokens_BWL = _tokens(generator, videos, count, WORD)
    return WordBatch(
        tokens_BWL,
        torch.ones_like(tokens_BWL, dtype=torch.bool),
        torch.ones(videos, count, dtype=torch.bool),
        torch.rand(videos, count, POSITION_SIZE, generator=generator),
    )


def _tokens(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(LEAST_ID, 4 * LEAST_ID, shape, generator=generator)


def forward_backward(model: TextVR, batch: PairBatch, way: str) -> float:
    """The loss, whose gradients are there afterwards."""
    with sdpa_kernel(SDPBackend.MATH) if way == OFF else nullcontext():
        loss: Tensor = model.loss(model.encode_text(batch.text), model.encode_video(batch.video))["loss"]
        loss.backward()
    return float(loss.detach())
