"""Collaborative gating: every expert of a video is weighted by what it and the other experts say together.

Shape suffixes: V videos, M experts, G experts gated at a time, P groups (pairs, triplets) that an expert is part of,
R pairs that the videos have, D shared dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import UserError
from src.models.gating import OwnReasoning

Wiring = Literal["pairwise", "pairwise-star", "pairwise-star-specific", "pairwise-star-tensor", "triplet"]
GatingOrder = Literal["sequential", "regrouped", "batched"]
TENSOR_DIM = 64
"""Dimension to which pairwise-star-tensor reduces both vectors before their outer product."""


class CollaborativeGating(nn.Module):
    """What the experts say of each other, q (section 3.2 of the paper), and the gates that it goes to.

    `pairwise`: q_m is the mean of g(x_m, x_j) over the experts j that the video has, followed by h. `triplet`: the same
    with two others. `pairwise-star…`: g(x_m, mean of all experts); `-specific`: g begins with layers of each expert's
    own; `-tensor`: with the outer product of both in 64 dimensions. q is zero where the expert itself is missing.

    g begins with one linear layer of its inputs side by side. Except with order="sequential" it is computed as the sum
    of a product with each: that of an expert serves all of its pairs; and the last linear layer of g follows the mean
    instead of preceding it, which is the same. Batch normalisation takes its statistics from each pair on its own, and
    updates its running ones pair after pair; only not with order="batched".

    Args:
        num_experts: M.
        dim: D.
        wiring: as above.
        include_self: j is also m itself (pairwise, triplet).
        g_layers: linear layers of g.
        h_layers: linear layers of h.
        mish: Mish between the layers, otherwise ReLU.
        norm: batch normalisation before each activation.
        order: "sequential": in modality order, experts after the first see the already gated ones before them, and
            every pair goes through all layers by itself, as published. "regrouped": the same numbers up to rounding,
            with fewer and larger products. "batched": all see the ungated ones, at once. With `pairwise`, only pairs
            that a video has go through g then, and one batch normalisation takes its statistics from all of these
            together. Those of pairwise-star… are the same in every order.

    Source: collaborative-experts model/model.py CEModule @ 7eb3b9d (arXiv 1907.13487).
    Deviates: order="batched", in what experts see and, in training, in the statistics of g's batch normalisation.
    """

    places_KMP: Tensor

    def __init__(
        self,
        num_experts: int,
        dim: int,
        *,
        wiring: Wiring = "pairwise",
        include_self: bool = True,
        g_layers: int = 3,
        h_layers: int = 0,
        mish: bool = True,
        norm: bool = True,
        order: GatingOrder = "regrouped",
    ) -> None:
        super().__init__()
        if wiring not in get_args(Wiring):
            raise UserError(f"found model.gating={wiring!r}, expected one of {', '.join(get_args(Wiring))}, none")
        if num_experts < 2:
            raise UserError(
                f"found model.gating={wiring} with {num_experts} expert, expected at least 2 to gate each other; "
                "choose more experts, or model.gating=none"
            )
        if g_layers < 1 or h_layers < 0:
            raise UserError(f"found g_layers={g_layers}, h_layers={h_layers}, expected at least 1 and 0; raise them")
        self.num_experts, self.wiring, self.order = num_experts, wiring, order
        self.groups = _groups(num_experts, wiring, include_self)
        self.meets_all = wiring == "pairwise" and include_self
        # Of each place in a group (K) the expert that stands there, in every group of every expert.
        self.register_buffer("places_KMP", torch.tensor(self.groups).permute(2, 0, 1), persistent=False)
        activation = nn.Mish if mish else nn.ReLU
        if wiring == "pairwise-star-tensor":
            self.reduce = nn.Linear(dim, TENSOR_DIM)
        if wiring == "pairwise-star-specific":
            self.specific = nn.ModuleList(OwnReasoning(dim, activation()) for _ in range(num_experts))
        else:
            inputs = {"triplet": 3 * dim, "pairwise-star-tensor": TENSOR_DIM**2}.get(wiring, 2 * dim)
            self.first = nn.Linear(inputs, dim)
        self.shared = _layers(g_layers - 1, dim, activation, norm)
        self.last = _layers(h_layers, dim, activation, norm)

    def forward(self, experts: Sequence[Tensor], present_VM: Tensor, gates: nn.ModuleList) -> list[Tensor]:
        """Gate the experts.

        Args:
            experts: M times (V, D), those that a video lacks being any finite numbers.
            present_VM: float, 1 where the video has the expert.
            gates: M times a `GatedReasoning`.

        Returns:
            M times (V, D), of unit length.
        """
        if self.wiring.startswith("pairwise-star"):
            return self._star(experts, present_VM, gates)
        if self.order == "sequential":
            return self._group_by_group(experts, present_VM, gates)
        x_VMD = torch.stack(list(experts), 1)
        own_VMD, *others = self._first(x_VMD)
        if self.order == "batched" and self.wiring == "pairwise":
            q_VMD = self._ask_available(own_VMD, others[0], present_VM)
            return [gate(x_VD, q_VMD[:, m]) for m, (gate, x_VD) in enumerate(zip(gates, experts, strict=True))]
        gated: list[Tensor] = []
        for m, (gate, x_VD) in enumerate(zip(gates, experts, strict=True)):
            q_VGD = self._ask(own_VMD[:, m : m + 1], others, present_VM, slice(m, m + 1))
            gated.append(gate(x_VD, q_VGD[:, 0]))
            if self.order == "regrouped" and m + 1 < self.num_experts:  # the experts after it see it gated
                _, *renewed = self._first(gated[-1][:, None])
                others = [torch.cat([y[:, :m], new, y[:, m + 1 :]], 1) for y, new in zip(others, renewed, strict=True)]
        return gated

    def _group_by_group(self, experts: Sequence[Tensor], present_VM: Tensor, gates: nn.ModuleList) -> list[Tensor]:
        """The published arithmetic, in its order."""
        current = list(experts)
        for m, gate in enumerate(gates):
            sum_VD, count_V = torch.zeros_like(current[m]), torch.zeros_like(present_VM[:, 0])
            for others in self.groups[m]:
                weight_V = present_VM[:, [m, *others]].prod(1)
                group_VX = torch.cat([current[m], *(current[j] for j in others)], 1)
                sum_VD = sum_VD + weight_V[:, None] * self.shared(self.first(group_VX))
                count_V = count_V + weight_V
            current[m] = gate(current[m], self.last(sum_VD / (count_V[:, None] + 1e-11)))
        return current

    def _first(self, x_VMD: Tensor) -> list[Tensor]:
        """The first linear layer of g, one product for each place that an expert can have in a group."""
        own_DD, *others = self.first.weight.split(x_VMD.shape[-1], 1)
        return [F.linear(x_VMD, own_DD, self.first.bias), *(F.linear(x_VMD, other) for other in others)]

    def _ask(self, own_VGD: Tensor, others: Sequence[Tensor], present_VM: Tensor, chosen: slice) -> Tensor:
        """q (V, G, D) of the chosen experts, from the products of the first layer."""
        u_VGPD, weights_VGP = own_VGD[:, :, None], present_VM[:, chosen, None]
        for y_VMD, place_GP in zip(others, self.places_KMP[:, chosen], strict=True):
            # All of them in their order need no copy.
            u_VGPD = u_VGPD + (y_VMD[:, None] if self.meets_all else y_VMD[:, place_GP])
            weights_VGP = weights_VGP * present_VM[:, place_GP]
        return self._mean(u_VGPD, weights_VGP)

    def _ask_available(self, own_VMD: Tensor, other_VMD: Tensor, present_VM: Tensor) -> Tensor:
        """q (V, M, D) of all experts at once, without the pairs that a video does not have."""
        videos, experts, dim = own_VMD.shape
        available_VMM = (present_VM[:, :, None] * present_VM[:, None]) > 0
        if not self.meets_all:
            available_VMM &= ~torch.eye(experts, dtype=torch.bool, device=present_VM.device)
        video_R, m_R, j_R = available_VMM.nonzero(as_tuple=True)
        asks_R, asked_R = video_R * experts + m_R, video_R * experts + j_R
        u_RD = own_VMD.flatten(0, 1).index_select(0, asks_R) + other_VMD.flatten(0, 1).index_select(0, asked_R)
        for layer in self.shared[:-1]:
            u_RD = _norm_rows(layer, u_RD) if isinstance(layer, nn.BatchNorm1d) else layer(u_RD)
        sums_XD = u_RD.new_zeros(videos * experts, dim).index_add(0, asks_R, u_RD)
        return self._conclude(sums_XD.view(videos, experts, dim), available_VMM.sum(2)[..., None].to(u_RD))

    def _mean(self, u_VGPD: Tensor, weights_VGP: Tensor) -> Tensor:
        """The rest of g, its mean over the groups that the video has, and h."""
        videos, chosen, groups, dim = u_VGPD.shape
        u_VGPD = _each(self.shared[:-1], u_VGPD.reshape(videos, chosen * groups, dim)).view(videos, chosen, groups, dim)
        return self._conclude((weights_VGP[:, :, None] @ u_VGPD)[:, :, 0], weights_VGP.sum(2)[..., None])

    def _conclude(self, sums_VGD: Tensor, counts_VG1: Tensor) -> Tensor:
        """q from the sums over groups before the last layer of g, and from how many these are."""
        q_VGD = sums_VGD / (counts_VG1 + 1e-11)
        if len(self.shared):
            last = self.shared[-1]
            assert isinstance(last, nn.Linear)
            q_VGD = F.linear(q_VGD, last.weight) + last.bias * (counts_VG1 / (counts_VG1 + 1e-11))
        return _each(self.last, q_VGD)

    def _star(self, experts: Sequence[Tensor], present_VM: Tensor, gates: nn.ModuleList) -> list[Tensor]:
        """Every expert meets the mean of all, taken before any is gated, so that their order does not matter."""
        x_VMD = torch.stack(list(experts), 1)
        mean_VD = (present_VM[:, None] @ x_VMD)[:, 0] / present_VM.sum(1, keepdim=True)
        if self.wiring == "pairwise-star":
            own_VMD, other_V1D = self._first(x_VMD)[0], self._first(mean_VD[:, None])[1]
            u_VMD = own_VMD + other_V1D
        elif self.wiring == "pairwise-star-specific":
            u_VMD = torch.stack([own(x_VD, mean_VD) for own, x_VD in zip(self.specific, experts, strict=True)], 1)
        else:
            outer = self.reduce(x_VMD)[..., None] * self.reduce(mean_VD)[:, None, None]
            u_VMD = self.first(outer.flatten(2))
        q_VMD = self._mean(u_VMD[:, :, None], present_VM[..., None])
        return [gate(x_VD, q_VMD[:, m]) for m, (gate, x_VD) in enumerate(zip(gates, experts, strict=True))]


def _groups(num_experts: int, wiring: Wiring, include_self: bool) -> list[list[tuple[int, ...]]]:
    """The others that each expert meets, in the order in which they update the running statistics."""
    others = 2 if wiring == "triplet" else 1
    groups: list[list[tuple[int, ...]]] = []
    for m in range(num_experts):
        if include_self:
            groups.append(list(product(range(num_experts), repeat=others)))
        else:
            groups.append(list(permutations([j for j in range(num_experts) if j != m], others)))
    if not groups[0]:
        raise UserError(
            f"found model.gating={wiring} without include_self and {num_experts} experts, expected at least 3; "
            "choose more experts, or model.include_self=true"
        )
    return groups


def _layers(number: int, dim: int, activation: type[nn.Module], norm: bool) -> nn.Sequential:
    """So many times normalisation, activation, linear layer."""
    layers: list[nn.Module] = []
    for _ in range(number):
        layers += [nn.BatchNorm1d(dim)] if norm else []
        layers += [activation(), nn.Linear(dim, dim)]
    return nn.Sequential(*layers)


def _each(layers: nn.Sequential, x_VPD: Tensor) -> Tensor:
    """Apply the layers to each of P, with batch statistics of its own."""
    for layer in layers:
        x_VPD = _norm_each(layer, x_VPD) if isinstance(layer, nn.BatchNorm1d) else layer(x_VPD)
    return x_VPD


def _norm_rows(norm: nn.BatchNorm1d, x_RD: Tensor) -> Tensor:
    """No rows have no statistics, and leave the running ones alone; the parameters still get their (zero) gradient."""
    if len(x_RD):
        return norm(x_RD)
    return F.batch_norm(x_RD, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def _norm_each(norm: nn.BatchNorm1d, x_VPD: Tensor) -> Tensor:
    """What P calls one after another give, including the running statistics."""
    if not norm.training:
        return norm(x_VPD.flatten(0, 1)).view_as(x_VPD)
    _, places, dim = x_VPD.shape
    # As the weights: under mixed precision x has fewer digits than statistics need.
    mean_PD, variance_PD = norm.weight.new_zeros(places * dim), norm.weight.new_ones(places * dim)
    weight_PD, bias_PD = norm.weight.repeat(places), norm.bias.repeat(places)
    # Momentum 1 hands over the statistics of the batch as they are.
    y_VPD = F.batch_norm(
        x_VPD.flatten(1), mean_PD, variance_PD, weight_PD, bias_PD, training=True, momentum=1.0, eps=norm.eps
    )
    with torch.no_grad():
        momentum = norm.momentum if norm.momentum is not None else 0.1
        ages = torch.arange(places - 1, -1, -1, device=x_VPD.device, dtype=mean_PD.dtype)
        shares_P = momentum * (1 - momentum) ** ages
        kept = (1 - momentum) ** places
        for name, found in (("running_mean", mean_PD), ("running_var", variance_PD)):
            running = norm.get_buffer(name)
            running.mul_(kept).add_((shares_P @ found.view(places, dim)).to(running))
        norm.get_buffer("num_batches_tracked").add_(places)
    return y_VPD.view_as(x_VPD)
