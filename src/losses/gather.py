"""Collect embeddings of all processes, with the gradient that the whole batch in one process would give.

Shape suffixes: B items of this process, W processes, N items of all processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, replace
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from src.batch import Embedding

GatherMode = Literal["exact", "upstream"]
E = TypeVar("E", bound=Embedding)
_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


def world_size() -> int:
    """Number of processes that train together; 1 without torch.distributed, and within `one_process`."""
    alone = _ALONE.get() or not (dist.is_available() and dist.is_initialized())
    return 1 if alone else dist.get_world_size()


@contextmanager
def one_process() -> Iterator[None]:
    """Within it losses gather nothing: for items that every process has already."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


class _AllGather(torch.autograd.Function):
    """Concatenate equally shaped tensors of all processes along dimension 0.

    The backward sums every process's gradient of the same rows ("exact") or keeps only this process's
    own gradient ("upstream"). Only public collectives are used: `torch.distributed.nn.functional.all_gather`
    warns as deprecated and the functional collectives are a private module.
    """

    @staticmethod
    def forward(ctx: Any, local_BX: Tensor, exact: bool) -> Tensor:
        ctx.exact = exact
        pieces = [torch.empty_like(local_BX) for _ in range(dist.get_world_size())]
        dist.all_gather(pieces, local_BX.contiguous())
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient_NX = gradients[0].contiguous()
        if ctx.exact:
            gradient_NX = gradient_NX.clone()
            dist.all_reduce(gradient_NX)
        return gradient_NX.chunk(dist.get_world_size())[dist.get_rank()], None


def _gather_tensor(local: Tensor, sizes: list[int], exact: bool) -> Tensor:
    """Gather along dimension 0; `sizes` are the first dimensions on each process."""
    longest = max(sizes)
    payload = local.to(torch.uint8) if local.dtype is torch.bool else local
    if min(sizes) < longest:
        padding = payload.new_zeros((longest - len(payload), *payload.shape[1:]))
        payload = torch.cat([payload, padding])
    gathered = _AllGather.apply(payload, exact)
    if min(sizes) < longest:
        gathered = torch.cat([piece[:size] for piece, size in zip(gathered.split(longest), sizes, strict=True)])
    return gathered.bool() if local.dtype is torch.bool else gathered


def gather_sizes(embedding: Embedding) -> list[int]:
    """Number of items on each process, in rank order."""
    return _sizes(len(embedding), embedding.ids.device)


def _sizes(own: int, device: torch.device) -> list[int]:
    if world_size() == 1:
        return [own]
    local = torch.tensor([own], device=device)
    sizes = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(sizes, local)
    return [int(size) for size in sizes]


def gather_rows(local_BX: Tensor) -> tuple[Tensor, slice]:
    """Rows of all processes in rank order, gradients of all of them summed; and where this process's own rows stand."""
    if world_size() == 1:
        return local_BX, slice(None)
    sizes, rank = _sizes(len(local_BX), local_BX.device), dist.get_rank()
    return _gather_tensor(local_BX, sizes, exact=True), slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def gather_embedding(embedding: E, mode: GatherMode = "exact", sizes: list[int] | None = None) -> E:
    """Embeddings of all processes in rank order; the same object when there is only one process.

    Local batches may differ in size (a training sample whose video cannot be read is dropped).

    Args:
        embedding: this process's items.
        mode: "exact" sums the gradients of all processes, so that averaging parameter gradients over
            processes (DDP) gives the gradient of the mean loss of the whole batch. "upstream" keeps this
            process's own gradient only.
        sizes: number of items of each process if the caller knows them already (`gather_sizes`).

    Returns:
        The same type with N = sum of the local sizes items.

    Source:
        "upstream": CLIP4Clip modules/until_module.py AllGather @ 508ffa3; after DDP's averaging the
        encoders receive 1/W of the full gradient, which this mode reproduces.
    """
    if world_size() == 1:
        return embedding
    sizes = sizes if sizes is not None else gather_sizes(embedding)
    exact = mode == "exact"
    tensors = {
        f.name: _gather_tensor(value, sizes, exact)
        for f in fields(embedding)
        if isinstance(value := getattr(embedding, f.name), Tensor)
    }
    # Sorted: every process has to issue its collectives in the same order.
    parts = {name: _gather_tensor(embedding.parts[name], sizes, exact) for name in sorted(embedding.parts)}
    return replace(embedding, parts=parts, **tensors)
