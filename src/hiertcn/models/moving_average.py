"""Moving average: the mean of the user's last item vectors is the query (a baseline of You et al., 2019)."""

from __future__ import annotations

__all__ = ["MovingAverage", "MovingAverageConfig"]

from typing import ClassVar

import torch
from torch import Tensor

from hiertcn.config import Config, Count
from hiertcn.models.protocol import VectorModel
from hiertcn.ragged import SessionBatch


class MovingAverageConfig(Config):
    """`window` last items; their vectors are all that is learned."""

    name: ClassVar[str] = "moving_average"

    dim: Count = 128
    window: Count = 10


class MovingAverage(VectorModel):
    """The state is the rows of the last items, whatever sessions they were in."""

    state_dtype = torch.int64

    def __init__(self, items: int, config: MovingAverageConfig) -> None:
        super().__init__(items, config.window, config.dim)
        self.config = config

    def fold(self, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor]:
        windows = batch.by_user.windows(batch, initial)
        return windows[batch.by_user.begun], windows[batch.by_user.after]

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        rows = batch.by_session.windows(batch, long_term)[batch.by_session.before]
        count = (rows > 0).sum(1, keepdim=True).clamp_min(1)
        out: Tensor = self.items(rows).sum(1) / count
        return out
