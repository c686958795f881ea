"""A trained model of ours as a teacher: what `task=extract extractor=teacher` is told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Teacher:
    """Scores of all pairs of a training caption and a training video, by the model of `ckpt_path`.

    Unlike other extractors it needs the whole training part at once, so `src.tasks.teacher` does the work.

    Attributes:
        name: of the store; None = `teacher.` and the name of the model's text features, or else of its class.
        factor: on the scores. Models on CLIP multiply cosines by 100 or so, others do not.
    """

    name: str | None = None
    factor: float = 1.0
