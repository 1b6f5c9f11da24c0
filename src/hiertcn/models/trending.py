"""Trending: what everybody picked most lately, for everyone alike. Ours; the simplest that knows what is new."""

from __future__ import annotations

__all__ = ["Trending", "TrendingConfig"]

from typing import ClassVar

from torch import Tensor

from hiertcn.config import Config, Positive
from hiertcn.crowd import Horizons
from hiertcn.models.boosts import joined, spread
from hiertcn.models.popularity import Counting
from hiertcn.ragged import SessionBatch

# Of the weight of one pick: for what nobody picked lately.
_POPULARITY = 1e-6


class TrendingConfig(Config):
    """A pick weighs exp(−age / `horizon` hours)."""

    name: ClassVar[str] = "trending"

    horizon: Positive = 0.25


class Trending(Counting):
    """There is no state; a query holds the items that trend. What does not trend goes by its train events."""

    def __init__(self, items: int, config: TrendingConfig) -> None:
        super().__init__(items, 0)
        self.config = config
        self.horizons = Horizons(trends=(config.horizon,))

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        if not batch.crowd_weights.numel():
            return long_term.new_zeros(len(batch.items), 0)
        return joined([(batch.crowd_rows.flatten(1), batch.crowd_weights.flatten(1).to(long_term.dtype))])

    def score(self, queries: Tensor) -> Tensor:
        popularity = self.train_events[1:] / (self.train_events.max() + 1) * _POPULARITY
        return spread(queries, self.items_in_catalog) + popularity
