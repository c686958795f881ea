"""An LSTM over the frames, then their mean against the sentence.

Shape suffixes: B items, T frames, D joint dimension.
"""

from __future__ import annotations

from torch import Tensor, nn

from src.models.heads.base import HeadHost, VideoTokens
from src.models.heads.mean import MeanHead


class LstmOrder(nn.Module):
    """LSTM over frames, plus the frames themselves.

    Args:
        host: the model.

    Source: CLIP4Clip modules/modeling.py _loose_similarity @ 508ffa3 (seqLSTM).
    Deviates: the output does not depend on the longest video of the batch (padded steps are masked in the mean).
    """

    def __init__(self, host: HeadHost) -> None:
        super().__init__()
        # The table is part of upstream's checkpoints although nothing reads it.
        self.position = host.position_table(host.num_frames).requires_grad_(False)
        self.lstm = nn.LSTM(host.width, host.width, batch_first=True)
        host.start_from_text_tower([self.position], [])

    def forward(self, frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Frame vectors (B, T, D) that know of the frames before them."""
        # Unidirectional: a valid step never sees the padding behind it, so no packing is needed.
        return self.lstm(frames_BTD)[0] * mask_BT[..., None] + frames_BTD


class SeqLstmHead(MeanHead):
    """Cosine of the sentence and the mean of frames after an LSTM.

    Args:
        host: the model.
        normalise_frames: see `MeanHead`.

    Source: CLIP4Clip @ 508ffa3 (flag `sim_header` seqLSTM).
    """

    reads_frames = True

    def __init__(self, host: HeadHost, normalise_frames: bool = True) -> None:
        super().__init__(host, normalise_frames)
        self.order = LstmOrder(host)

    def in_order(self, video: VideoTokens) -> Tensor:
        return self.order(video.ordered_BTD, video.mask_BT)
