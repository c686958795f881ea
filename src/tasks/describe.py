"""task=describe: the assembled model, its size and its input, without data and without training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import nn

from src.batch import InputSpec
from src.tasks.build import empty_model

DEPTH = 3  # levels of the module tree


def run(cfg: DictConfig) -> None:
    """Print modules, `parameters: N` (trained ones) and what the model asks of the data."""
    model = empty_model(cfg)
    console = Console()
    table = Table(title=type(model).__name__, title_justify="left")
    for title in ("module", "type"):
        table.add_column(title)
    for title in ("parameters", "trained"):
        table.add_column(title, justify="right")
    for name, module in _modules(model, "", DEPTH):
        total, trained = _count(module)
        table.add_row(name, type(module).__name__, f"{total:,}", f"{trained:,}")
    console.print(table)
    total, trained = _count(model)
    lines = [
        f"dataset: {cfg.dataset.name}, provides {', '.join(cfg.dataset.provides)}",
        *_input_lines(model.input_spec),
        f"frozen parameters: {total - trained}",
        f"parameters: {trained}",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _modules(module: nn.Module, prefix: str, depth: int) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold parameters, as a tree; a list of equal blocks is one row."""
    for name, child in module.named_children():
        if not any(True for _ in child.parameters()):
            continue
        yield f"{prefix}{name}", child
        if depth > 1 and not isinstance(child, nn.ModuleList):
            yield from _modules(child, f"{prefix}  ", depth - 1)


def _count(module: nn.Module) -> tuple[int, int]:
    """All parameters and the trained ones."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def _input_lines(spec: InputSpec) -> Iterator[str]:
    if spec.tokenizer is not None or not spec.text_features:
        yield f"captions: {spec.tokenizer}"
    for text in spec.text_features:
        yield f"captions: {text.name}, {text.dim}-d, {'a sequence' if text.temporal else 'one vector a caption'}"
    if spec.words is not None:
        at_most = f"at most {spec.words.max_words} of {spec.words.min_length} characters and more"
        places = f"positions {spec.words.position_rule or spec.words.rule}" if spec.words.positions else "no positions"
        yield f"words in the picture: {at_most}, rule {spec.words.rule}, {places}"
    if spec.frames is not None:
        yield "frames: " + ", ".join(f"{f.name}={getattr(spec.frames, f.name)}" for f in fields(spec.frames))
    for expert in spec.experts:
        yield f"expert: {expert.name}, {expert.dim}-d, {'a sequence' if expert.temporal else 'one vector a video'}"
