"""Run a function in several processes that form a gloo group."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


def _entry(rank: int, function: Callable[..., Any], world: int, folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    # A file as meeting point: tests may run side by side, so no port is reserved.
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    try:
        result = function(rank, *args)
    finally:
        dist.destroy_process_group()
    Path(folder, f"{rank}.pkl").write_bytes(pickle.dumps(result))


def run_processes(function: Callable[..., Any], world: int, *args: Any) -> list[Any]:
    """Return `function(rank, *args)` of every rank; `function` lives at module level."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_entry, (function, world, folder, args), nprocs=world)
        return [pickle.loads(Path(folder, f"{rank}.pkl").read_bytes()) for rank in range(world)]  # noqa: S301 own file
