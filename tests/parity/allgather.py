"""One process of the gathering case, apart from the checkers: the processes that start here import little."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from src.batch import TextEmbedding, VideoEmbedding
from src.losses.infonce import SymmetricInfoNCE
from src.models.temporal import pool_frames


def gathered_loss(rank: int, tensors: Mapping[str, Tensor], local_batch: int) -> dict[str, Tensor]:
    rows = slice(rank * local_batch, (rank + 1) * local_batch)
    text = tensors["in/text"][rows].clone().requires_grad_()
    visual = tensors["in/visual"][rows].clone().requires_grad_()
    scale = tensors["in/logit_scale"].clone().requires_grad_()
    mask = tensors["in/video_mask"][rows].bool()
    ids = torch.arange(rows.start, rows.stop)
    seen: dict[str, Tensor] = {}

    def similarity(texts: TextEmbedding, videos: VideoEmbedding) -> Tensor:
        text_ND = F.normalize(texts.parts["text"], dim=-1)
        seen["sim"] = scale.exp() * text_ND @ pool_frames(videos.parts["frames"], videos.parts["mask"]).T
        return seen["sim"]

    loss = SymmetricInfoNCE(gather="upstream")(
        similarity,
        TextEmbedding(ids=ids, parts={"text": text.squeeze(1)}, video_ids=ids),
        VideoEmbedding(ids=ids, parts={"frames": visual, "mask": mask}),
    )
    loss.backward()
    return {
        "sim": seen["sim"].detach(),
        "loss": loss.detach(),
        "text": text.grad,
        "visual": visual.grad,
        "logit_scale": scale.grad,
    }
