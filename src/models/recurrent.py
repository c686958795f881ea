"""Sequences of vectors to one vector: a bidirectional GRU, pooled, and convolutions over its steps, max-pooled.

Shape suffixes: B items, T steps of the longest item, N steps of all items one after another, D input dimension,
H hidden units of one direction, K channels of a convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Padding = Literal["upstream", "masked"]
Pooling = Literal["mean", "max"]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the steps of a batch stand when all first steps come first, then all second steps, and so on.

    Items are sorted by length, longest first, so that the items that have a step t are the first `sizes[t]`, and
    no padding is held or computed.

    Attributes:
        lengths_B: int64 on the CPU, steps of each item, at least 1.
    """

    lengths_B: Tensor

    @cached_property
    def order_B(self) -> Tensor:
        """Items, longest first."""
        return torch.argsort(self.lengths_B, descending=True, stable=True)

    @cached_property
    def sizes(self) -> list[int]:
        """How many items have step t, for every t."""
        return (torch.arange(self.steps)[:, None] < self.lengths_B).sum(1).tolist()

    @cached_property
    def starts(self) -> list[int]:
        """Row of the first item at step t, for every t."""
        return [0, *torch.tensor(self.sizes).cumsum(0)[:-1].tolist()]

    @property
    def steps(self) -> int:
        return int(self.lengths_B.max())

    @cached_property
    def rows_N(self) -> Tensor:
        """Row b·T + t of a padded batch that stands at each row here."""
        valid_TB = torch.arange(self.steps)[:, None] < self.lengths_B[self.order_B]
        rows_TB = self.order_B * self.steps + torch.arange(self.steps)[:, None]
        return rows_TB[valid_TB]

    def pack(self, x_BTX: Tensor) -> Tensor:
        """(N, …) rows of a padded batch."""
        return x_BTX[:, : self.steps].flatten(0, 1)[self.rows_N.to(x_BTX.device)]

    def unpack(self, x_NX: Tensor) -> Tensor:
        """(B, T, …) with zeros after the last step of each item."""
        padded = x_NX.new_zeros(len(self.lengths_B) * self.steps, *x_NX.shape[1:])
        rows_N = self.rows_N.to(x_NX.device)
        return padded.index_put((rows_N,), x_NX).unflatten(0, (len(self.lengths_B), self.steps))


class _Recurrence(torch.autograd.Function):
    """One direction of a GRU over packed steps, whose input products are given.

    torch's own packed GRU does the same steps on the CPU, but its backward pass makes a tensor of the size of the
    whole batch at every step: three times as slow as the padded one, although it computes less.

    Source: equations of torch.nn.GRU (gates r, z, n).
    """

    @staticmethod
    def forward(ctx: Any, inputs_N3H: Tensor, weight: Tensor, bias: Tensor, layout: Layout, reverse: bool) -> Tensor:
        """Hidden states (N, H); `weight` (3H, H) and `bias` (3H) of the recurrent products."""
        hidden = weight.shape[1]
        state_BH = inputs_N3H.new_zeros(len(layout.lengths_B), hidden)
        out_NH, before_NH, product_NH = (inputs_N3H.new_empty(len(inputs_N3H), hidden) for _ in range(3))
        gates_N3H = torch.empty_like(inputs_N3H)
        for start, size in _in_order(layout, reverse):
            rows = slice(start, start + size)
            before_nH = state_BH[:size]
            before_NH[rows] = before_nH
            recurrent_n3H = torch.addmm(bias, before_nH, weight.T)
            product_NH[rows] = recurrent_n3H[:, 2 * hidden :]
            gates_n3H = gates_N3H[rows]
            switch = torch.add(
                inputs_N3H[rows, : 2 * hidden], recurrent_n3H[:, : 2 * hidden], out=gates_n3H[:, : 2 * hidden]
            ).sigmoid_()
            reset, update = switch.chunk(2, 1)
            new = gates_n3H[:, 2 * hidden :]
            torch.addcmul(inputs_N3H[rows, 2 * hidden :], reset, product_NH[rows], out=new).tanh_()
            torch.lerp(new, before_nH, update, out=out_NH[rows])
            state_BH[:size] = out_NH[rows]
        ctx.save_for_backward(weight, before_NH, product_NH, gates_N3H)
        ctx.layout, ctx.reverse = layout, reverse
        return out_NH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NH: Tensor) -> tuple[Tensor | None, ...]:
        weight, before_NH, product_NH, gates_N3H = ctx.saved_tensors
        hidden = weight.shape[1]
        inputs_N3H, recurrent_N3H = torch.empty_like(gates_N3H), torch.empty_like(gates_N3H)
        state_BH = grad_NH.new_zeros(len(ctx.layout.lengths_B), hidden)
        for start, size in _in_order(ctx.layout, not ctx.reverse):
            rows = slice(start, start + size)
            total_nH = state_BH[:size] + grad_NH[rows]
            reset, update, new = gates_N3H[rows].chunk(3, 1)
            d_new = total_nH * (1 - update) * (1 - new * new)
            d_update = total_nH * (before_NH[rows] - new) * update * (1 - update)
            d_reset = d_new * product_NH[rows] * reset * (1 - reset)
            torch.cat([d_reset, d_update, d_new], 1, out=inputs_N3H[rows])
            torch.cat([d_reset, d_update, d_new * reset], 1, out=recurrent_N3H[rows])
            state_BH[:size] = torch.addmm(total_nH * update, recurrent_N3H[rows], weight)
        return inputs_N3H, recurrent_N3H.T @ before_NH, recurrent_N3H.sum(0), None, None


def _in_order(layout: Layout, reverse: bool) -> list[tuple[int, int]]:
    """(first row, number of items) of each step, from the last step to the first when `reverse`."""
    steps = list(zip(layout.starts, layout.sizes, strict=True))
    return steps[::-1] if reverse else steps


class _WindowMax(torch.autograd.Function):
    """Maximum over all windows of k steps of the sum of their products, windows over the ends included.

    Equals a convolution with k − 1 zeros on both sides, followed by the maximum over its outputs, without computing
    or holding anything for padded steps.
    """

    @staticmethod
    def forward(ctx: Any, products_NkK: Tensor, layout: Layout) -> Tensor:
        """(B, K), items longest first; `products_NkK`: each step times the kernel's column of each place in it."""
        width = products_NkK.shape[1]
        best_BK = products_NkK.new_full((len(layout.lengths_B), products_NkK.shape[2]), float("-inf"))
        where_BK = torch.zeros(best_BK.shape, dtype=torch.int32, device=best_BK.device)
        for window, size, rows in _windows(layout, width):
            # The first place in a window has the most items: later ones are the first rows of it.
            place, start, count = rows[0]
            total_nK = products_NkK[start : start + count, place].clone()
            for place, start, count in rows[1:]:
                total_nK[:count] += products_NkK[start : start + count, place]
            better_nK = total_nK > best_BK[:size]
            torch.maximum(best_BK[:size], total_nK, out=best_BK[:size])
            where_BK[:size].masked_fill_(better_nK, window)
        ctx.save_for_backward(where_BK)
        ctx.layout, ctx.shape = layout, products_NkK.shape
        return best_BK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BK: Tensor) -> tuple[Tensor | None, ...]:
        (where_BK,) = ctx.saved_tensors
        products_NkK = grad_BK.new_empty(ctx.shape)
        for window, size, rows in _windows(ctx.layout, ctx.shape[1]):
            hit_nK = grad_BK[:size] * (where_BK[:size] == window)
            for place, start, count in rows:
                products_NkK[start : start + count, place] = hit_nK[:count]
        return products_NkK, None


def _windows(layout: Layout, width: int) -> list[tuple[int, int, list[tuple[int, int, int]]]]:
    """(window, number of items that have it, its (place, first row, number of items) by step) of all windows."""
    found = []
    for window in range(layout.steps + width - 1):
        steps = range(max(0, window - width + 1), min(window, layout.steps - 1) + 1)
        rows = [(t - window + width - 1, layout.starts[t], layout.sizes[t]) for t in steps]
        found.append((window, rows[0][2], rows))
    return found


class RecurrentEncoder(nn.Module):
    """Levels 2 and 3 of Dual Encoding: pooled biGRU states, and convolutions over them, max-pooled over the steps.

    Args:
        input_dim: length of one step's vector.
        hidden: units of each direction of the GRU.
        kernels: channels of each convolution.
        kernel_sizes: steps that each convolution covers.
        pool: how the GRU's states are pooled.
        dropout: on each of the two results.
        packed: run the GRU over the real steps of each item only. False runs it over the padding as well, which the
            backward direction then reads first.
        masked: windows over the real steps only, and maxima over real steps only. False lets windows that lie wholly
            in the padding take part, so that results depend on the longest item of the batch.

    Source: danieljf24/hybrid_space @ b934eff, its encoders of videos (packed and masked off) and texts (masked off).
    """

    def __init__(
        self,
        input_dim: int,
        hidden: int,
        kernels: int,
        kernel_sizes: Sequence[int],
        *,
        pool: Pooling,
        dropout: float,
        packed: bool,
        masked: bool,
    ) -> None:
        super().__init__()
        self.gru = nn.GRU(input_dim, hidden, batch_first=True, bidirectional=True)
        # Weights (kernels, 1, k, 2·hidden), as published; initialised as torch's convolutions are.
        self.windows = nn.ModuleList(nn.Conv2d(1, kernels, (k, 2 * hidden)) for k in kernel_sizes)
        self.pool = pool
        self.packed = packed
        self.masked = masked
        self.dropout = nn.Dropout(dropout)
        self.output_dim = 2 * hidden + kernels * len(kernel_sizes)

    def forward(self, x_BTX: Tensor, lengths_B: Tensor, embed: nn.Module | None = None) -> Tensor:
        """(B, output_dim): pooled states, then the convolutions in the order of their sizes.

        Args:
            x_BTX: steps; vectors (B, T, D), or whatever `embed` turns into vectors. Zero after an item's last step.
            lengths_B: int64, real steps of each item; an item without any counts as one zero step.
            embed: applied to each step.
        """
        if x_BTX.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):  # the functions above compute in the precision of the weights
                return self._encode(x_BTX, lengths_B, embed)
        return self._encode(x_BTX, lengths_B, embed)

    def _encode(self, x_BTX: Tensor, lengths_B: Tensor, embed: nn.Module | None) -> Tensor:
        real = Layout(lengths_B.cpu().clamp_min(1))
        whole = Layout(torch.full_like(real.lengths_B, real.steps))
        states_BTH = self._states(x_BTX, real if self.packed else whole, embed)
        valid_BT = torch.arange(real.steps, device=x_BTX.device) < real.lengths_B.to(x_BTX.device)[:, None]
        if not self.packed:
            states_BTH = states_BTH * valid_BT[..., None]
        level2_BH = self._pooled(states_BTH, valid_BT)
        level3_BK = self._convolved(states_BTH, real if self.masked else whole)
        return torch.cat([self.dropout(level2_BH), self.dropout(level3_BK)], dim=1)

    def _states(self, x_BTX: Tensor, layout: Layout, embed: nn.Module | None) -> Tensor:
        """(B, T, 2·hidden), zero after the steps of the layout."""
        if x_BTX.device.type != "cpu":
            x_BTX = x_BTX[:, : layout.steps]
            return self._library_states(x_BTX if embed is None else embed(x_BTX), layout)
        x_NX = layout.pack(x_BTX)
        x_ND = x_NX.to(next(self.gru.parameters()).dtype) if embed is None else embed(x_NX)
        directions = []
        for suffix in ("", "_reverse"):
            weights = (getattr(self.gru, f"{name}_l0{suffix}") for name in ("weight_ih", "bias_ih"))
            recurrent = (getattr(self.gru, f"{name}_l0{suffix}") for name in ("weight_hh", "bias_hh"))
            directions.append(_Recurrence.apply(F.linear(x_ND, *weights), *recurrent, layout, bool(suffix)))
        return layout.unpack(torch.cat(directions, 1))

    def _library_states(self, x_BTD: Tensor, layout: Layout) -> Tensor:
        """The same as one library call, for accelerators."""
        packed = pack_padded_sequence(x_BTD, layout.lengths_B, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.gru(packed)[0], batch_first=True)[0]

    def _pooled(self, states_BTH: Tensor, valid_BT: Tensor) -> Tensor:
        if self.pool == "mean":
            return states_BTH.sum(1) / valid_BT.sum(1, keepdim=True)
        if self.masked:
            states_BTH = states_BTH.masked_fill(~valid_BT[..., None], float("-inf"))
        return states_BTH.amax(1)

    def _convolved(self, states_BTH: Tensor, layout: Layout) -> Tensor:
        """(B, kernels · sizes): maxima of the rectified convolutions over the steps of the layout."""
        if states_BTH.device.type != "cpu":
            return torch.cat([self._convolved_padded(states_BTH, layout, conv) for conv in self._convolutions()], 1)
        states_NH = layout.pack(states_BTH)
        maxima = []
        for conv in self._convolutions():
            width = conv.weight.shape[2]
            columns = conv.weight[:, 0].transpose(0, 1).flatten(0, 1)  # (k · kernels, 2 · hidden)
            products_NkK = F.linear(states_NH, columns).unflatten(1, (width, -1))
            maxima.append(F.relu(_WindowMax.apply(products_NkK, layout) + conv.bias))
        back_B = torch.empty_like(layout.order_B)
        back_B[layout.order_B] = torch.arange(len(back_B))
        return torch.cat(maxima, 1)[back_B]

    def _convolutions(self) -> list[nn.Conv2d]:
        return [conv for conv in self.windows if isinstance(conv, nn.Conv2d)]

    @staticmethod
    def _convolved_padded(states_BTH: Tensor, layout: Layout, conv: nn.Conv2d) -> Tensor:
        """The same of one convolution."""
        width = conv.weight.shape[2]
        out_BKW = F.conv1d(states_BTH.transpose(1, 2), conv.weight[:, 0].transpose(1, 2), conv.bias, padding=width - 1)
        ends_B = layout.lengths_B.to(states_BTH.device) + width - 1
        inside_BW = torch.arange(out_BKW.shape[2], device=out_BKW.device) < ends_B[:, None]
        return F.relu(out_BKW.masked_fill(~inside_BW[:, None], float("-inf")).amax(2))
