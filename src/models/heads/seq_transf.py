"""A transformer over the frames, then their mean against the sentence.

Shape suffixes: B items, T frames, D joint dimension.
"""

from __future__ import annotations

from torch import Tensor, nn

from src.errors import UserError
from src.models.heads.base import HeadHost, VideoTokens
from src.models.heads.mean import MeanHead


class TransformerOrder(nn.Module):
    """Transformer over frames and their positions, plus the frames themselves.

    Args:
        host: the model.
        layers: blocks; they start as the lowest ones of CLIP's text tower.

    Source: CLIP4Clip modules/modeling.py _loose_similarity and from_pretrained @ 508ffa3 (seqTransf).
    """

    def __init__(self, host: HeadHost, layers: int) -> None:
        super().__init__()
        if layers < 1:
            raise UserError(f"model.head.temporal_layers={layers}, expected at least 1; model.head=meanP has none")
        self.position = host.position_table(host.num_frames)
        self.transformer = host.temporal_transformer(layers)
        host.start_from_text_tower([self.position], [self.transformer])

    def forward(self, frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Frame vectors (B, T, D) that know of each other."""
        positions_TD = self.position.weight[: frames_BTD.shape[1]]
        return self.transformer(frames_BTD + positions_TD, mask_BT) + frames_BTD


class SeqTransfHead(MeanHead):
    """Cosine of the sentence and the mean of frames that a transformer has put in relation.

    Args:
        host: the model.
        temporal_layers: blocks of the transformer (upstream `cross_num_hidden_layers`).
        normalise_frames: see `MeanHead`.

    Source: CLIP4Clip @ 508ffa3 (flag `sim_header` seqTransf).
    """

    reads_frames = True

    def __init__(self, host: HeadHost, temporal_layers: int = 4, normalise_frames: bool = True) -> None:
        super().__init__(host, normalise_frames)
        self.order = TransformerOrder(host, temporal_layers)

    def in_order(self, video: VideoTokens) -> Tensor:
        return self.order(video.ordered_BTD, video.mask_BT)
