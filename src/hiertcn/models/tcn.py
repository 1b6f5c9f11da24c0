"""Causal dilated convolutions with residuals, on sessions or other sequences, unpadded (You et al., 2019)."""

from __future__ import annotations

__all__ = ["TCN", "receptive_field"]

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from hiertcn.packing import Lagged
from hiertcn.ragged import causal_conv


def receptive_field(kernel: int, layers: int) -> int:
    """Positions a query sees, itself included: 1 + (kernel − 1)(2^layers − 1)."""
    return 1 + (kernel - 1) * ((1 << layers) - 1)


class Block(nn.Module):
    """h ← relu(relu(conv(h)) + residual(h)); the residual is a 1×1 map where channels change."""

    def __init__(self, inputs: int, channels: int, kernel: int, dilation: int, norm: bool) -> None:
        super().__init__()
        self.dilation = dilation
        bound = 1 / math.sqrt(inputs * kernel)
        self.weight = nn.Parameter(torch.empty(kernel, inputs, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))
        self.residual = nn.Linear(inputs, channels) if inputs != channels else nn.Identity()
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()

    def forward(self, hidden: Tensor, batch: Lagged) -> Tensor:
        convolved = torch.relu(causal_conv(hidden, self.weight, self.bias, self.dilation, batch))
        out: Tensor = self.norm(torch.relu(convolved + self.residual(hidden)))
        return out


class TCN(nn.Module):
    """Blocks with dilation 1, 2, 4, …; [N, inputs] → [N, channels[-1]]."""

    def __init__(
        self, inputs: int, channels: Sequence[int], kernel: int, dropout: float = 0.0, norm: bool = False
    ) -> None:
        super().__init__()
        widths = [inputs, *channels]
        self.blocks = nn.ModuleList(
            Block(a, b, kernel, 2**level, norm) for level, (a, b) in enumerate(pairwise(widths))
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, batch: Lagged) -> Tensor:
        for block in self.blocks:
            hidden = self.dropout(block(hidden, batch))
        return hidden
