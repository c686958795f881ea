"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

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
