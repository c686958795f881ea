"""Lightning callbacks and plugins that every run uses."""

from src.callbacks.checkpoint_io import AtomicCheckpointIO, MovableCheckpoint
from src.callbacks.history import History
from src.callbacks.preemption import SaveOnSigterm

__all__ = ["AtomicCheckpointIO", "History", "MovableCheckpoint", "SaveOnSigterm"]
