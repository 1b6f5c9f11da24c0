"""Moving average: the mean of the user's last item vectors is the query (a baseline of You et al., 2019)."""

from __future__ import annotations

__all__ = ["MovingAverage", "MovingAverageConfig"]

from typing import ClassVar

from torch import Tensor

from hiertcn.config import Count
from hiertcn.models.protocol import VectorConfig, VectorModel
from hiertcn.models.windowed import Windowed
from hiertcn.ragged import SessionBatch


class MovingAverageConfig(VectorConfig):
    """`window` last items; their vectors are all that is learned, and where those are fixed, nothing is."""

    name: ClassVar[str] = "moving_average"

    window: Count = 10


class MovingAverage(Windowed, VectorModel):
    """The state is the rows of the last items, whatever sessions they were in."""

    reads = False

    def __init__(self, items: int, config: MovingAverageConfig, given: Tensor | None = None) -> None:
        super().__init__(items, config.window, config, given)
        self.config = config

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        rows = self.last_items(batch, long_term)
        count = (rows > 0).sum(1, keepdim=True).clamp_min(1)
        vectors = self.items.compared(rows.flatten()).view(*rows.shape, -1)
        return self.finished(vectors.sum(1) / count)
