"""VAR: a linear map of the user's last item vectors is the query (a baseline of You et al., 2019)."""

from __future__ import annotations

__all__ = ["VAR", "VARConfig"]

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from hiertcn.config import Count
from hiertcn.models.protocol import VectorConfig, VectorModel
from hiertcn.models.windowed import Windowed
from hiertcn.ragged import SessionBatch


class VARConfig(VectorConfig):
    """window: last items     weights: of each step back a "matrix", or a "scalar" """

    name: ClassVar[str] = "var"

    window: Count = 10
    weights: Literal["matrix", "scalar"] = "matrix"


class VAR(Windowed, VectorModel):
    """u = Σ_l A_l v_{t−l} + b over the last items, whatever sessions they were in; their rows are the state."""

    reads = False

    def __init__(self, items: int, config: VARConfig, given: Tensor | None = None) -> None:
        super().__init__(items, config.window, config, given)
        self.config = config
        size, steps = self.items.query_size, config.window
        self.matrices = nn.Linear(steps * size, size) if config.weights == "matrix" else None
        if self.matrices is None:
            # About a moving average.
            self.scalars = nn.Parameter(torch.empty(steps).uniform_(0, 2 / steps))
            self.constant = nn.Parameter(torch.zeros(size))

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        rows = self.last_items(batch, long_term)
        vectors = self.items.compared(rows.flatten()).view(*rows.shape, -1)
        if self.matrices is not None:
            return self.finished(self.matrices(vectors.flatten(1)))
        return self.finished(torch.einsum("nwq,w->nq", vectors, self.scalars) + self.constant)
