"""The low level of HierTCN: what reads the running session. A TCN, or for comparison something else in its place."""

from __future__ import annotations

__all__ = ["Low", "low_level"]

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from hiertcn.models.recurrence import StackedGRU
from hiertcn.models.tcn import TCN
from hiertcn.ragged import SessionBatch

Low = Literal["tcn", "gru", "mean"]


def low_level(
    how: Low, inputs: int, channels: Sequence[int], kernel: int, dropout: float = 0.0, norm: bool = False
) -> nn.Module:
    """(hidden [N, inputs], batch) → [N, channels[-1]]; a position sees those before it in its session, and itself."""
    if how == "tcn":
        return TCN(inputs, channels, kernel, dropout, norm)
    read = Recurrent(inputs, channels[-1], len(channels)) if how == "gru" else SoFar(inputs, channels[-1])
    return Other(read, channels[-1], dropout, norm)


class Other(nn.Module):
    """`read`, with the dropout and the normalisation that a block of the TCN has."""

    def __init__(self, read: nn.Module, channels: int, dropout: float, norm: bool) -> None:
        super().__init__()
        self.read = read
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, batch: SessionBatch) -> Tensor:
        out: Tensor = self.dropout(self.norm(self.read(hidden, batch)))
        return out


class Recurrent(nn.Module):
    """HierGRU (You et al., 2019): a GRU of as many layers as there are channels, from zero where a session begins."""

    def __init__(self, inputs: int, units: int, layers: int) -> None:
        super().__init__()
        self.units, self.size = units, units * layers
        self.cells = StackedGRU(inputs, units, layers)

    def forward(self, hidden: Tensor, batch: SessionBatch) -> Tensor:
        states: Tensor = self.cells(hidden, batch.layout, hidden.new_zeros(batch.sessions, self.size))
        return states[:, -self.units :]


class SoFar(nn.Module):
    """Hier-MV (You et al., 2019): a linear map of the mean so far. The first position, which has no item, is not in it
    but at the first."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.map = nn.Linear(inputs, channels)

    def forward(self, hidden: Tensor, batch: SessionBatch) -> Tensor:
        begin, _ = batch.lag(1)
        # Sums of the last 1, 2, 4, … positions; the column of ones counts them.
        sums = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=1)
        sums = torch.cat([torch.zeros_like(sums[:begin]), sums[begin:]])
        for doubling in range(max(len(batch.layout.sizes) - 1, 0).bit_length()):
            later, source = batch.lag(1 << doubling)
            sums = torch.cat([sums[:later], sums[later:] + sums.index_select(0, source)])
        mean = torch.cat([hidden[:begin], sums[begin:, :-1] / sums[begin:, -1:]])
        out: Tensor = self.map(mean)
        return out
