"""The GRU as one writes it with the framework's cell: a call of `nn.GRUCell` a step, and autograd does the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from hiertcn.models.recurrence import StackedGRU
from hiertcn.packing import Packing


class CellGRU(StackedGRU):
    """Computes what StackedGRU does, from the same parameters."""

    def forward(self, values: Tensor, packing: Packing, initial: Tensor, decay: Tensor | None = None) -> Tensor:
        start = initial.index_select(0, packing.active)
        states = []
        for cell, state in zip(self.layers, start.chunk(len(self.layers), dim=1), strict=True):
            steps = []
            for part in values.split(packing.sizes.tolist()):
                state = cell(part, state[: len(part)])
                steps.append(state)
            values = torch.cat(steps)
            states.append(values)
        return torch.cat(states, dim=1)
