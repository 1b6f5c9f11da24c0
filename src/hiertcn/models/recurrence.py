"""GRUs over step-major sequences. Every step of every layer is kept: the long-term state is all layers together."""

from __future__ import annotations

__all__ = ["StackedGRU", "place_of"]

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hiertcn.packing import Packing


class StackedGRU(nn.Module):
    """`layers` GRUs of `units` each (Cho et al., 2014); a sequence's state is the layers' hidden units side by side.

    Legend: E packed elements of G sequences, S = layers · units.
    """

    def __init__(self, inputs: int, units: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.GRUCell(inputs if k == 0 else units, units) for k in range(layers))

    def forward(self, values: Tensor, packing: Packing, initial: Tensor, decay: Tensor | None = None) -> Tensor:
        """States [E, S] after each element of `values` [E, C], from `initial` [G, S].

        With `decay` [E] the state is multiplied by it before the element is read.
        """
        if not len(values):
            return initial.new_zeros(0, initial.shape[1])
        dtype = next(self.parameters()).dtype
        start = initial.index_select(0, packing.active.to(initial.device)).to(dtype)
        states, sizes = [], packing.sizes.tolist()
        with torch.autocast(values.device.type, enabled=False):
            values = values.to(dtype)
            for cell, h0 in zip(self.layers, start.chunk(len(self.layers), dim=1), strict=True):
                values = _Scan.apply(  # type: ignore[no-untyped-call]
                    values, h0, decay, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh, sizes
                )
                states.append(values)
        return torch.cat(states, dim=1)


class _Scan(torch.autograd.Function):
    """One GRU over all sequences. What a step waits for is one small product; the rest is done for all steps at once.

    r = σ(x_r + h_r), z = σ(x_z + h_z), n = tanh(x_n + r h_n), h' = n + z (h − n), in the gate order of torch.nn.GRU.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        initial: Tensor,
        decay: Tensor | None,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor,
        bias_hh: Tensor,
        sizes: list[int],
    ) -> Tensor:
        units = weight_hh.shape[1]
        gates = torch.addmm(bias_ih, values, weight_ih.T)
        recurrent, states = torch.empty_like(gates), values.new_empty(len(values), units)
        transposed, state = weight_hh.T.contiguous(), initial
        # Every view a step needs, cut beforehand: one by one the cuts cost as much as the arithmetic.
        views = (gates[:, : 2 * units], gates[:, :units], gates[:, units : 2 * units], gates[:, 2 * units :])
        products = (recurrent, recurrent[:, : 2 * units], recurrent[:, 2 * units :])
        for size, factor, both, reset, update, new, product, of_both, of_new, out in zip(
            sizes, *(_cut(view, sizes) for view in (decay, *views, *products, states)), strict=True
        ):
            hidden = state if len(state) == size else state[:size]
            if factor is not None:
                hidden = hidden * factor.unsqueeze(1)
            torch.addmm(bias_hh, hidden, transposed, out=product)
            both.add_(of_both).sigmoid_()
            new.addcmul_(reset, of_new).tanh_()
            state = torch.lerp(new, hidden, update, out=out)
        ctx.save_for_backward(values, initial, decay, weight_ih, weight_hh, gates, recurrent, states)
        ctx.sizes = sizes
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, initial, decay, weight_ih, weight_hh, gates, recurrent, states = ctx.saved_tensors
        units, sizes = weight_hh.shape[1], ctx.sizes
        earlier = [part[:size] for part, size in zip(_cut(states, sizes), sizes[1:], strict=False)]
        previous = torch.cat([initial, *earlier])
        before = previous if decay is None else previous * decay.unsqueeze(1)
        reset, update, new = gates.view(-1, 3, units).unbind(1)
        # What the gradient of a state is multiplied by to give that of its gates.
        of_new = (1 - update) * (1 - new * new)
        factors = torch.stack(
            [
                of_new * recurrent[:, 2 * units :] * reset * (1 - reset),
                (before - new) * update * (1 - update),
                of_new * reset,
            ],
            dim=1,
        )
        of_state, of_recurrent = grads[0].clone(), torch.empty_like(factors)
        of_before = torch.empty_like(before)
        products = of_recurrent.flatten(1)
        cut = [_cut(values, sizes) for values in (of_state, factors, of_recurrent, products, update, of_before)]
        targets = [None, *(part[:size] for part, size in zip(cut[0], sizes[1:], strict=False))]
        decays = _cut(decay, sizes)
        for target, factor, now, weights, product_wide, product, kept, out in reversed(
            list(zip(targets, decays, *cut, strict=True))
        ):
            torch.mul(weights, now.unsqueeze(1), out=product_wide)
            carried = torch.addmm(now * kept, product, weight_hh, out=out)
            if target is not None:
                target.add_(carried if factor is None else carried * factor.unsqueeze(1))
        factors[:, 2] = of_new
        of_gates = (factors * of_state.unsqueeze(1)).flatten(1)
        first = of_before[: len(initial)]
        return (
            of_gates @ weight_ih,
            first if decay is None else first * decay[: len(initial)].unsqueeze(1),
            None if decay is None else (of_before * previous).sum(1),
            of_gates.T @ values,
            products.T @ before,
            of_gates.sum(0),
            products.sum(0),
            None,
        )


def _cut(values: Tensor | None, sizes: list[int]) -> Sequence[Any]:
    """The rows of each step, as views."""
    return [None] * len(sizes) if values is None else values.split_with_sizes(sizes)


def place_of(initial: Tensor, packed: Tensor, places: Tensor) -> Tensor:
    """Rows of [initial; packed] at `places`: a state before a session, before a position or after a user."""
    return torch.cat([initial, packed]).index_select(0, places)
