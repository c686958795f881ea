"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from src.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file beside the target, syncs it to disk, then renames.

    Lightning writes in place, so a full disk or a kill during the write would destroy the only `last.ckpt`.

    Raises:
        UserError: when the file cannot be written (disk full, no permission); the older file is untouched.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except (OSError, RuntimeError) as error:
            # torch.save reports a full disk as RuntimeError from its zip writer, with the OSError as context.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            kept = f"the previous {target.name} is intact" if target.exists() else "no earlier checkpoint is there"
            raise UserError(
                f"cannot save {target}: {cause.strerror or cause} ({kept}); "
                "free space or choose another hydra.run.dir, then go on with ckpt_path=last"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)


class MovableCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` whose record survives that a run is resumed in a new folder.

    Lightning forgets the best score when the folder changes, so the best of the later epochs would be reported as
    the best of all. Here the files so far are copied into the new folder and their scores are kept.

    Args:
        later_wins: a score equal to the best one replaces it; otherwise the first of equal scores stays.
        options: those of `ModelCheckpoint`.
    """

    def __init__(self, *, later_wins: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.later_wins = later_wins

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        if super().check_monitor_top_k(trainer, current):
            return True
        # All processes decide alike: the metrics of a validation are equal on all of them.
        return self.later_wins and current is not None and bool(current == self.best_model_score)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before, now = Path(state_dict["dirpath"]), Path(str(self.dirpath))
        if before != now:
            for path in before.glob(f"{self.filename}.ckpt"):
                _copy(path, now / path.name)
            state_dict = {key: _moved(value, str(before), str(now)) for key, value in state_dict.items()}
        super().load_state_dict(state_dict)


@rank_zero_only
def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _moved(value: Any, before: str, now: str) -> Any:
    """Replace the folder in paths, also where they are keys."""
    if isinstance(value, str):
        return value.replace(before, now, 1) if value.startswith(before) else value
    if isinstance(value, dict):
        return {_moved(key, before, now): item for key, item in value.items()}
    return value
