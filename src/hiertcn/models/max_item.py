"""Max-item: an item scores as the best match among the user's last items (a baseline of You et al., 2019)."""

from __future__ import annotations

__all__ = ["MaxItem", "MaxItemConfig"]

from typing import ClassVar

import torch
from torch import Tensor

from hiertcn.config import Config, Count
from hiertcn.models.items import GivenItems
from hiertcn.models.windowed import Windowed
from hiertcn.ragged import SessionBatch


class MaxItemConfig(Config):
    """`window` last items, by the vectors that items came with; there is nothing to learn."""

    name: ClassVar[str] = "max_item"

    window: Count = 10


class MaxItem(Windowed):
    """The state is the rows of the last items; so is a query, and its score the greatest inner product with them."""

    trainable = False

    def __init__(self, items: int, config: MaxItemConfig, given: Tensor) -> None:
        super().__init__(items, config.window)
        self.config = config
        self.items = GivenItems(items, 0, "fixed", given, reads=False)

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        return self.last_items(batch, long_term)

    def score(self, queries: Tensor) -> Tensor:
        # A window that is not full yet begins with row 0, which matches nothing.
        vectors = self.items.whole()[1:].T
        best = queries.new_full((len(queries), self.items_in_catalog), -torch.inf, dtype=vectors.dtype)
        for rows in queries.unbind(1):
            match = self.items.compared(rows) @ vectors
            best = torch.maximum(best, match.masked_fill((rows == 0).unsqueeze(1), -torch.inf))
        return best.masked_fill((queries == 0).all(1, keepdim=True), 0.0)
