"""Moving average: the mean of the user's last item vectors is the query (a baseline of You et al., 2019)."""

from __future__ import annotations

__all__ = ["MovingAverage", "MovingAverageConfig"]

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hiertcn.config import Count, Positive
from hiertcn.models.protocol import VectorConfig, VectorModel
from hiertcn.models.windowed import Windowed
from hiertcn.ragged import SessionBatch

HOUR = 3_600_000_000


class MovingAverageConfig(VectorConfig):
    """The vectors of items are all that is learned, and where those are fixed, nothing is.

    window:    last items
    decay:     "exponential": the latest weighs 1, each one before it `rate` of the one after it; "gap": each weighs
               exp(−gap / bandwidth), the gap being from it to the latest (counted from now, as You et al. have it, all
               weights would be multiplied alike, and the mean is the same)
    rate:      up to 1     bandwidth: hours
    """

    name: ClassVar[str] = "moving_average"

    window: Count = 10
    decay: Literal["none", "exponential", "gap"] = "none"
    rate: Annotated[float, Field(gt=0, le=1)] = 0.8
    bandwidth: Positive = 24.0


class MovingAverage(Windowed, VectorModel):
    """The state is the rows of the last items, whatever sessions they were in; with "gap" each with its time.

    The time of an item, int64 microseconds, is what was known of it when it was asked for, `batch.seen`: within a
    session that of the item before it.
    """

    reads = False

    def __init__(self, items: int, config: MovingAverageConfig, given: Tensor | None = None) -> None:
        columns = 2 if config.decay == "gap" else 1
        super().__init__(items, config.window * columns, config, given)
        self.config = config

    def kept(self, batch: SessionBatch) -> Tensor:
        rows = super().kept(batch)
        if self.config.decay != "gap":
            return rows
        return torch.cat([rows, (batch.seen * 1e6).round().long().unsqueeze(1)], dim=1)

    def _weights(self, last: Tensor) -> Tensor:
        """float64 [N, W] of `last` [N, W, C], what is kept of the last items."""
        known = last[..., 0] > 0
        if self.config.decay == "gap":
            times = last[..., 1]
            return known * torch.exp((times - times[:, -1:]).double() / (self.config.bandwidth * HOUR))
        back = torch.arange(last.shape[1] - 1, -1, -1, device=last.device)
        return known * (self.config.rate if self.config.decay == "exponential" else 1.0) ** back.double()

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        last = self.last_items(batch, long_term).view(-1, self.config.window, self.state_size // self.config.window)
        rows = last[..., 0]
        vectors = self.items.compared(rows.flatten()).view(*rows.shape, -1)
        weights = self._weights(last)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1)
        return self.finished(torch.einsum("nwq,nw->nq", vectors, weights.to(vectors.dtype)))
