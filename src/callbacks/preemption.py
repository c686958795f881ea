"""Leave in good order when the scheduler asks for it."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.exceptions import SIGTERMException


class SaveOnSigterm(Callback):
    """Saves `last.ckpt` when Lightning stops for SIGTERM; the fit task then exits with 143.

    Lightning raises between two batches, so the saved state is a consistent one, from which
    `ckpt_path=last` goes on with the next batch.

    Args:
        path: where to save.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and trainer.state.fn == "fit":
            trainer.save_checkpoint(self.path)
