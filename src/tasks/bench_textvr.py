"""task=bench, part fusion_step: forward and backward pass of TextVR, with fused attention and without."""

from __future__ import annotations

import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from src.batch import PairBatch, TextBatch, VideoBatch, WordBatch
from src.errors import UserError
from src.models.bert_text import TINY
from src.models.textvr import TextVR
from src.tasks.bench import PeakMemory, resident_bytes
from src.tasks.bench_clip import seconds_of

SDPA, OFF = WAYS = ("SDPA", "SDPA off")
CAPTION, WORD = 16, 6  # tokens, special ones included
POSITIONS = 12
LEAST_ID = 1000  # below are special and unused ids of DistilBERT


@dataclass(frozen=True)
class Case:
    """A model and a batch, both made up.

    Attributes:
        text: of captions and of words, see `fusion_model`.
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
    case = Case(
        task.fusion_text, task.fusion_vit, task.fusion_batch, task.fusion_words, cfg.seed, torch.get_num_threads()
    )
    memory: dict[str, dict[str, float]] = {}
    for way in WAYS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            memory[way] = process.submit(peak_memory, case, way).result()
    model = fusion_model(case)
    batch = made_up_clips(model, case)
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    losses: dict[str, float] = {}
    for repetition in range(1 + task.fusion_steps):  # the first one allocates
        turn = repetition % 2
        for way in WAYS[turn:] + WAYS[:turn]:
            model.zero_grad()
            torch.manual_seed(case.seed)  # the same dropout

            def step(way: str = way) -> None:
                losses[way] = forward_backward(model, batch, way)

            spent = seconds_of(step)
            if repetition:
                seconds[way].append(spent)
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


def peak_memory(case: Case, way: str) -> dict[str, float]:
    """Most memory of the first step, in this process: of all there is, and above parameters and batch."""
    torch.set_num_threads(case.threads)
    model = fusion_model(case)
    batch = made_up_clips(model, case)
    before = resident_bytes()
    with PeakMemory() as memory:
        forward_backward(model, batch, way)
    return {"process MB": before / 1e6 + memory.megabytes, "step MB": memory.megabytes}


def fusion_model(case: Case) -> TextVR:
    """TextVR from random weights, ready to train; `case.text`: distilbert (the published size) or videotext-tiny.

    Raises:
        UserError: another one.
    """
    if case.text not in ("distilbert", TINY):
        raise UserError(f"task.fusion_text: found {case.text!r}, expected distilbert or {TINY}")
    torch.manual_seed(case.seed)
    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps({"model_type": "distilbert"}), encoding="utf-8")
        return TextVR(
            text_model=TINY if case.text == TINY else folder,
            vit=case.vit,
            time_init="rand",  # with zeros, the attention over time has no gradient to pass on in the first step
            mode="fusion",
        ).train()


def made_up_clips(model: TextVR, case: Case) -> PairBatch:
    """Random pixels, captions and words, without padding; all words differ."""
    tower = model.video_model
    assert tower is not None
    generator, size = torch.Generator().manual_seed(case.seed), case.batch
    ids, shape_TCHW = torch.arange(size), (tower.num_frames, 3, tower.image_size, tower.image_size)

    def tokens(*shape: int) -> Tensor:
        return torch.randint(LEAST_ID, 4 * LEAST_ID, shape, generator=generator)

    text_BL, words_BWL = tokens(size, CAPTION), tokens(size, case.words, WORD)
    words = WordBatch(
        words_BWL,
        torch.ones_like(words_BWL, dtype=torch.bool),
        torch.ones(size, case.words, dtype=torch.bool),
        torch.rand(size, case.words, POSITIONS, generator=generator),
    )
    frames = torch.randint(0, 256, (size, *shape_TCHW), dtype=torch.uint8, generator=generator)
    video = VideoBatch(ids, frames, torch.ones(size, tower.num_frames, dtype=torch.bool), words=words)
    return PairBatch(TextBatch(text_BL, torch.ones_like(text_BL, dtype=torch.bool), ids, ids), video)


def forward_backward(model: TextVR, batch: PairBatch, way: str) -> float:
    """The loss, whose gradients are there afterwards."""
    with sdpa_kernel(SDPBackend.MATH) if way == OFF else nullcontext():
        loss: Tensor = model.loss(model.encode_text(batch.text), model.encode_video(batch.video))["loss"]
        loss.backward()
    return float(loss.detach())
