"""task=bench, part ocr_memory: a training step of TextVR's words alone, with `model.ocr_checkpointing` and without."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from omegaconf import DictConfig

from src.models.bert_text import BertText
from src.models.ocr_fusion import OcrFusion
from src.tasks.bench import PeakMemory, seconds_of
from src.tasks.bench_textvr import check_text, in_own_process, made_up_words, text_model

JOINT = 256  # dimensions, as published


@dataclass(frozen=True)
class WordCase:
    """A batch of words, made up.

    Attributes:
        text: of words, see `text_model`.
        videos: in the batch.
        words: of each.
        seed: of weights, batch and dropout.
        threads: of torch.
    """

    text: str
    videos: int
    words: int
    seed: int
    threads: int


def bench_ocr_memory(cfg: DictConfig) -> dict[str, float]:
    """Most memory, and time, of forward and backward pass of the words' text model and the attention over them.

    No picture, no captions: vectors of pictures are random. Each way in a process of its own, one step of it, with
    six tokens per word and dropout on, so that no word is shared.

    Raises:
        UserError: unknown `task.fusion_text`.
    """
    task = cfg.task
    check_text(task.fusion_text)
    case = WordCase(task.fusion_text, task.ocr_memory_videos, task.ocr_memory_words, cfg.seed, torch.get_num_threads())
    found: dict[str, float] = {"videos": case.videos, "words of a video": case.words}
    for checkpointing in task.ocr_memory_checkpointing:
        measured = in_own_process(measure, case, checkpointing)
        name = "recomputed" if checkpointing else "kept"
        found |= {f"{name}: {quantity}": value for quantity, value in measured.items()}
    return found


def measure(case: WordCase, checkpointing: bool) -> dict[str, float]:
    """Memory above parameters and batch, gradients included, and time of one step, in this process."""
    torch.set_num_threads(case.threads)
    torch.manual_seed(case.seed)
    with text_model(case.text) as name:
        text = BertText(name, weights=False)
    fusion = OcrFusion(text, text.width, JOINT, activation_checkpointing=checkpointing).train()
    generator = torch.Generator().manual_seed(case.seed)
    words = made_up_words(generator, case.videos, case.words)
    pictures_BD = torch.randn(case.videos, text.width, generator=generator)
    with PeakMemory() as memory:
        spent = seconds_of(lambda: fusion(words, pictures_BD).square().mean().backward())
    gradients = sum(p.grad.nbytes for p in fusion.parameters() if p.grad is not None)
    return {"step MB": memory.megabytes, "gradients MB": gradients / 1e6, "s": spent[0], "CPU-s": spent[1]}
