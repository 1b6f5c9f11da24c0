"""Popularity and a person's own items: what any model has to beat. Nothing is trained; counts are of the train part."""

from __future__ import annotations

__all__ = ["LastItems", "LastItemsConfig", "MostFrequent", "MostFrequentConfig", "Popularity", "PopularityConfig"]

from typing import ClassVar

import torch
from torch import Tensor

from hiertcn.config import Config, Count
from hiertcn.models.protocol import Model
from hiertcn.models.windowed import Windowed
from hiertcn.ragged import SessionBatch


class Counting(Model):
    """A model that knows the items' events of the train part, set by `count`."""

    trainable = False
    train_events: Tensor

    def __init__(self, items: int, state_size: int) -> None:
        super().__init__(items, state_size)
        self.register_buffer("train_events", torch.zeros(items + 1))

    def count(self, train_events: Tensor) -> None:
        """Take the counts [items + 1] of the train part."""
        self.train_events.copy_(train_events)

    def fold(self, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor]:
        """Without a state there is nothing to fold."""
        return initial.new_zeros(batch.sessions, 0), initial


class PopularityConfig(Config):
    """There is nothing to choose."""

    name: ClassVar[str] = "popularity"


class Popularity(Counting):
    """Every person gets the items of most train events."""

    def __init__(self, items: int, config: PopularityConfig) -> None:
        super().__init__(items, 0)
        self.config = config

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        return long_term.new_zeros(len(batch.items), 0)

    def score(self, queries: Tensor) -> Tensor:
        return self.train_events[1:].expand(len(queries), -1)


class LastItemsConfig(Config):
    """`window` last items are kept."""

    name: ClassVar[str] = "last_items"

    window: Count = 50


class LastItems(Windowed, Counting):
    """The person's own last items, the latest first, then popularity."""

    def __init__(self, items: int, config: LastItemsConfig) -> None:
        super().__init__(items, config.window)
        self.config = config

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        return self.last_items(batch, long_term)

    def score(self, queries: Tensor) -> Tensor:
        popularity = self.train_events / (self.train_events.max() + 1)
        recency = torch.arange(1, queries.shape[1] + 1, dtype=popularity.dtype, device=queries.device)
        scores = popularity.repeat(len(queries), 1)
        return scores.scatter_reduce(1, queries, recency.expand(len(queries), -1), "amax")[:, 1:]


class MostFrequentConfig(LastItemsConfig):
    """`window` last items are counted."""

    name: ClassVar[str] = "most_frequent"


class MostFrequent(LastItems):
    """The person's own items by how often they are among the last (You et al., 2019), then popularity.

    An item's score is its count + p / (window + 1) < count + 1, p = 1 … window being where it stands last: so of equal
    counts the latest is first. Items that are not there score below 1.
    """

    def score(self, queries: Tensor) -> Tensor:
        latest = super().score(queries)
        counts = latest.new_zeros(len(queries), self.items_in_catalog + 1)
        counts = counts.scatter_add(1, queries, latest.new_ones(1, 1).expand_as(queries))[:, 1:]
        return torch.where(counts > 0, counts + latest / (queries.shape[1] + 1), latest)
