"""One embedding per video from those of its windows (`src.batch.WindowSpec`).

Shapes: B windows, V videos.
"""

from __future__ import annotations

import torch

from src.batch import VideoEmbedding
from src.errors import UserError

ROWS = 16  # windows encoded at a time


def mean_of_windows(video: VideoEmbedding) -> VideoEmbedding:
    """Average neighbouring rows of one id: the mean of what `encode_video` gives, which is not normalised.

    Args:
        video: one row per window (B), those of a video side by side.

    Returns:
        One row per video (V).

    Raises:
        UserError: the embedding has a part that is no number to average, such as a mask of frames.

    Source: m-bain/frozen-in-time@e1f13e1, test.py.
    """
    ids_V, counts_V = torch.unique_consecutive(video.ids, return_counts=True)
    whole = [name for name, part in video.parts.items() if not part.is_floating_point()]
    if whole:
        raise UserError(
            f"the model's embedding of a video has the part {whole[0]!r} ({video.parts[whole[0]].dtype}), which cannot "
            "be averaged over windows; drop task.window_stride, or choose a model with one vector per video (frozen)"
        )
    sizes = counts_V.tolist()
    parts = {name: torch.stack([rows.mean(dim=0) for rows in part.split(sizes)]) for name, part in video.parts.items()}
    return VideoEmbedding(ids=ids_V, parts=parts)
