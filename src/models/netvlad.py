"""NetVLAD and GhostVLAD: a sequence of vectors becomes its residuals to learned clusters.

Shape suffixes: B items, N vectors of an item, D dimension of a vector, K clusters, A clusters and ghosts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NetVLAD(nn.Module):
    """Every vector is shared out over the clusters; each cluster sums up how far its vectors are from its centre.

    Ghost clusters take their share and are then left out, without bringing the rest to one again. Padding is not
    masked: a zero vector has its share like every other, and counts in the statistics of the batch normalisation.

    Args:
        dim: length of the vectors (D).
        clusters: K.
        ghost_clusters: clusters beside them that take what belongs nowhere.
        batch_norm: of the shares before the softmax, over all vectors of the batch.

    Source: arXiv 1511.07247 (NetVLAD), arXiv 1810.09951 (GhostVLAD); collaborative-experts model/net_vlad.py @ 7eb3b9d.
    """

    def __init__(self, dim: int, clusters: int, ghost_clusters: int = 0, batch_norm: bool = True) -> None:
        super().__init__()
        self.output_dim = dim * clusters
        self.clusters = nn.Parameter(torch.randn(dim, clusters + ghost_clusters) / dim**0.5)
        self.clusters2 = nn.Parameter(torch.randn(1, dim, clusters) / dim**0.5)
        self.batch_norm = nn.BatchNorm1d(clusters + ghost_clusters) if batch_norm else None

    def forward(self, x_BND: Tensor) -> Tensor:
        """Return (B, D·K) of unit length; entry d·K + k is dimension d of the residual to cluster k."""
        shares_A = x_BND.flatten(0, 1) @ self.clusters
        if self.batch_norm is not None:
            shares_A = self.batch_norm(shares_A)
        shares_BNA = shares_A.softmax(-1).view(*x_BND.shape[:2], -1)
        shares_BNK = shares_BNA[..., : self.clusters2.shape[2]]
        residuals_BDK = x_BND.transpose(1, 2) @ shares_BNK - shares_BNK.sum(1, keepdim=True) * self.clusters2
        return F.normalize(F.normalize(residuals_BDK, dim=1).flatten(1), dim=1)
