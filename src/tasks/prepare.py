"""task=prepare: from what is published to what training reads, in the steps that `task.steps` names.

One module per step: `src.tasks.prepare_frames`, `prepare_transcode`, `prepare_captions`, `prepare_words`,
`prepare_features`, `prepare_vocabulary`, `prepare_concepts`, `prepare_denoise`; `task.prepare=STEP` is short for
`task.steps=[STEP]`.
`task.download=true` fetches the published archives (`prepare_download`) and does nothing else.
"""

from __future__ import annotations

import importlib
from typing import Literal, get_args

from omegaconf import DictConfig

from src.errors import UserError

Step = Literal["transcode", "captions", "frames", "words", "features", "vocabulary", "concepts", "denoise"]

DEFAULT = ["frames"]


def run(cfg: DictConfig) -> None:
    """Do the steps in the given order.

    Raises:
        UserError: an unknown step, or a step that failed.
    """
    # Experiments say by task.prepare what task=fit prepares; steps that are typed go before it.
    asked = next(steps for steps in (cfg.task.steps, cfg.task.prepare, DEFAULT) if steps is not None)
    asked = [asked] if isinstance(asked, str) else list(asked)
    steps = ["download"] if cfg.task.download else asked
    unknown = [str(step) for step in steps if step not in (*get_args(Step), "download")]
    if unknown or not steps:
        raise UserError(
            f"found task.steps=[{','.join(map(str, asked))}], expected some of {', '.join(get_args(Step))}; "
            "to fetch published archives give download=true"
        )
    for step in steps:
        importlib.import_module(f"src.tasks.prepare_{step}").run(cfg)
