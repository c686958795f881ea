"""What every worker process of ours does first; imports little, so that it starts fast."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

import torch


def begin(worker: int = 0) -> None:
    """One thread, and an end with the main process.

    Workers share the cores by being many, not by each using all of them. And one whose main process was killed would
    wait for work for ever: its parent in the system's eyes is the fork server, which lives as long as its children.

    Args:
        worker: its number, which loaders pass.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    main = multiprocessing.parent_process()
    if main is None:  # called in the main process itself, with num_workers=0
        return
    sentinel = main.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
