"""Recomputed and compiled blocks: the same numbers under the same names, with less kept or less computed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import UserError
from src.models.clip_tower import ClipTower
from src.models.tower_speed import repeated_blocks, speed_up
from tests.tiny_clip import tiny_arch

LAYERS = 2  # of each tower
# Torch's own tracing looks at `grad` of the activations that enter a block.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture
def tower() -> ClipTower:
    torch.manual_seed(0)
    return ClipTower(tiny_arch()).double()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Compiles with autograd's tracing, without generating code; holds what was compiled."""
    from torch._dynamo.backends.debugging import aot_eager

    found: list[Any] = []

    def backend(graph: Any, inputs: Any, **options: Any) -> Callable[..., Any]:
        found.append(graph)
        return aot_eager(graph, inputs, **options)

    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: original(self, backend=backend, **options))
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


def inputs(batch: int = 3, words: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(batch, 2, 3, 16, 16, generator=generator, dtype=torch.float64)
    return frames, torch.randint(1, 62, (batch, words), generator=generator)


def outcome(tower: ClipTower, frames: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Embeddings and all gradients."""
    tower.zero_grad()
    video = tower.encode_frames(frames, torch.ones(frames.shape[:2], dtype=torch.bool))
    text = tower.encode_text(tokens)
    (video.square().sum() + text.square().sum()).backward()
    gradients = {name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None}
    return {"video": video.detach(), "text": text.detach(), **gradients}


def kept_bytes(tower: ClipTower) -> int:
    """Size of the distinct tensors that wait for the backward pass, parameters aside."""
    sizes: dict[int, int] = {p.data_ptr(): 0 for p in tower.parameters()}

    def note(tensor: Tensor) -> Tensor:
        sizes.setdefault(tensor.data_ptr(), tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        held = [tower.encode_frames(inputs()[0], torch.ones(3, 2, dtype=torch.bool)), tower.encode_text(inputs()[1])]
    assert held[0].requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_numbers_and_names_stay(tower: ClipTower, graphs: list[Any], checkpointing: bool, compiled: bool) -> None:
    expected = {size: outcome(tower, *inputs(*size)) for size in ((3, 7), (5, 9), (2, 4))}
    names = list(tower.state_dict())
    tower.speed_up(checkpointing, compiled)
    assert list(tower.state_dict()) == names
    for size, wanted in expected.items():
        found = outcome(tower, *inputs(*size))
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=name)
        if size == (3, 7):  # one program for the blocks of each tower, and later sizes add none
            first = len(graphs)
    assert len(graphs) == first
    assert (0 < first <= 2 * LAYERS - 1) == compiled


def test_evaluation_is_the_same(tower: ClipTower, graphs: list[Any]) -> None:
    frames, tokens = inputs()
    mask = torch.ones(frames.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        expected = tower.eval().encode_frames(frames, mask), tower.encode_text(tokens)
        tower.speed_up(activation_checkpointing=True, compile=True)
        torch.testing.assert_close(tower.encode_frames(frames, mask), expected[0])
        torch.testing.assert_close(tower.encode_text(tokens), expected[1])
    assert graphs


def test_only_the_inputs_of_blocks_are_kept(tower: ClipTower) -> None:
    before = kept_bytes(tower)
    tower.speed_up(activation_checkpointing=True, compile=False)
    assert kept_bytes(tower) < before / 4


def test_frozen_blocks_run(tower: ClipTower) -> None:
    """Nothing before the last block asks for gradients: its input does not either."""
    tower.requires_grad_(False)
    tower.clip.visual.transformer.resblocks[-1].requires_grad_(True)
    frames, mask = inputs()[0], torch.ones(3, 2, dtype=torch.bool)
    for checkpointing in (False, True):
        tower.speed_up(checkpointing, compile=False)
        tower.zero_grad()
        tower.encode_frames(frames, mask).square().sum().backward()
        gradient = tower.clip.visual.transformer.resblocks[-1].mlp.c_fc.weight.grad.clone()
        if not checkpointing:
            expected = gradient
    torch.testing.assert_close(gradient, expected)


def test_a_copy_runs_its_own_blocks(tower: ClipTower) -> None:
    tower.speed_up(activation_checkpointing=True, compile=False)
    frames, tokens = inputs()
    expected, twin = outcome(tower, frames, tokens), copy.deepcopy(tower)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.zero_()
    torch.testing.assert_close(outcome(twin, frames, tokens), expected)


def test_nothing_changes_unless_asked(tower: ClipTower) -> None:
    tower.speed_up(activation_checkpointing=False, compile=False)
    assert all("forward" not in vars(block) for block in repeated_blocks(tower))
    assert len(list(repeated_blocks(tower))) == 2 * LAYERS


def test_attention_is_fused_in_training(tower: ClipTower) -> None:
    """open_clip's blocks reach scaled_dot_product_attention, with the mask of captions too."""
    with patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as attention:
        outcome(tower.train(), *inputs())
    assert attention.call_count == 2 * LAYERS


def test_towers_that_it_cannot_help_are_named() -> None:
    with pytest.raises(UserError, match="found none in Linear; set both to false"):
        speed_up(nn.Linear(2, 2), activation_checkpointing=True, compile=False)
    stages = nn.Sequential(*(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)) for _ in range(2)))
    with pytest.raises(UserError, match=r"has batch normalisation.*such as a ViT"):
        speed_up(nn.ModuleDict({"layer1": stages}), activation_checkpointing=True, compile=False)


@pytest.mark.slow
def test_compiled_code_agrees(tower: ClipTower) -> None:
    """With generated code, in the precision of training."""
    tower.float()
    frames, tokens = inputs()
    expected = outcome(tower, frames.float(), tokens)
    tower.speed_up(activation_checkpointing=True, compile=True)
    for name, value in outcome(tower, frames.float(), tokens).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4, msg=name)
