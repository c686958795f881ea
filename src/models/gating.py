"""Gated units of Mixture of Embedding Experts and Collaborative Experts.

Shape suffixes: B items, D dimension of a unit's result, I dimension of its input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ContextGating(nn.Module):
    """x · sigmoid(norm(linear(x))): every dimension is weighted by what the whole vector says.

    Args:
        dim: length of the vectors.
        use_norm: False leaves the batch normalisation out, whose parameters stay, unused, as published.
    """

    def __init__(self, dim: int, use_norm: bool = True) -> None:
        super().__init__()
        self.use_norm = use_norm
        self.fc = nn.Linear(dim, dim)
        self.batch_norm = nn.BatchNorm1d(dim)

    def forward(self, x_BD: Tensor) -> Tensor:
        gate_BD = self.fc(x_BD)
        return x_BD * (self.batch_norm(gate_BD) if self.use_norm else gate_BD).sigmoid()


class GatedEmbedding(nn.Module):
    """Linear layer, context gating, unit length: an expert's embedding, on either side.

    Args:
        input_dim: length of the input (I).
        dim: length of the result (D).
        use_norm: see `ContextGating`.

    Source: arXiv 1804.02516, equations 1 to 3.
    """

    def __init__(self, input_dim: int, dim: int, use_norm: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(input_dim, dim)
        self.cg = ContextGating(dim, use_norm)

    def forward(self, x_BI: Tensor) -> Tensor:
        return F.normalize(self.cg(self.fc(x_BI)), dim=-1)


class GatedUnit(nn.Module):
    """Context gating and unit length of what already has its dimension (`MimicCEGatedEmbeddingUnit`).

    Args:
        dim: length of the vectors.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cg = ContextGating(dim)

    def forward(self, x_BD: Tensor) -> Tensor:
        return F.normalize(self.cg(x_BD), dim=-1)


class ReduceDim(nn.Module):
    """An expert in the dimension that all share, of unit length.

    Args:
        input_dim: length of the input (I).
        dim: length of the result (D).
    """

    def __init__(self, input_dim: int, dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(input_dim, dim)

    def forward(self, x_BI: Tensor) -> Tensor:
        return F.normalize(self.fc(x_BI), dim=-1)


class ContextGatingReasoning(nn.Module):
    """x · sigmoid(norm(q) + norm2(linear(x))): gated by itself and by what the other experts say of it, q.

    Args:
        dim: length of the vectors.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, dim)
        self.batch_norm = nn.BatchNorm1d(dim)  # of q
        self.batch_norm2 = nn.BatchNorm1d(dim)  # of the linear layer

    def forward(self, x_BD: Tensor, q_BD: Tensor) -> Tensor:
        return x_BD * (self.batch_norm(q_BD) + self.batch_norm2(self.fc(x_BD))).sigmoid()


class GatedReasoning(nn.Module):
    """`ContextGatingReasoning` and unit length (`GatedEmbeddingUnitReasoning`).

    Args:
        dim: length of the vectors.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cg = ContextGatingReasoning(dim)

    def forward(self, x_BD: Tensor, q_BD: Tensor) -> Tensor:
        return F.normalize(self.cg(x_BD, q_BD), dim=-1)


class OwnReasoning(nn.Module):
    """What one expert alone does with itself and the mean of all: two linear layers (`G_reason`).

    Args:
        dim: length of the vectors.
        activation: between the layers.
        inputs: how many vectors are put side by side.
    """

    def __init__(self, dim: int, activation: Callable[[Tensor], Tensor], inputs: int = 2) -> None:
        super().__init__()
        self.activation = activation
        self.first = nn.Linear(inputs * dim, dim)
        self.second = nn.Linear(dim, dim)

    def forward(self, *vectors: Tensor) -> Tensor:
        """Vectors (B, D) to (B, D)."""
        return self.second(self.activation(self.first(torch.cat(vectors, 1))))
