"""Max-item: an item scores as the best match among the user's last items (a baseline of You et al., 2019)."""

from __future__ import annotations

__all__ = ["MaxItem", "MaxItemConfig"]

from typing import ClassVar

import torch
from torch import Tensor

from hiertcn.config import Config, Count
from hiertcn.models.items import GivenItems
from hiertcn.models.protocol import Model
from hiertcn.ragged import SessionBatch


class MaxItemConfig(Config):
    """`window` last items, by the vectors that items came with; there is nothing to learn."""

    name: ClassVar[str] = "max_item"

    window: Count = 10


class MaxItem(Model):
    """The state is the rows of the last items; so is a query, and its score the greatest inner product with them."""

    trainable = False
    state_dtype = torch.int64

    def __init__(self, items: int, config: MaxItemConfig, given: Tensor) -> None:
        super().__init__(items, config.window)
        self.config = config
        self.items = GivenItems(items, 0, "fixed", given, reads=False)

    def fold(self, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor]:
        windows = batch.by_user.windows(batch, initial)
        return windows[batch.by_user.begun], windows[batch.by_user.after]

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        return batch.by_session.windows(batch, long_term)[batch.by_session.before]

    def score(self, queries: Tensor) -> Tensor:
        # A window that is not full yet begins with row 0, which matches nothing.
        vectors = self.items.whole()[1:].T
        best = queries.new_full((len(queries), self.items_in_catalog), -torch.inf, dtype=vectors.dtype)
        for rows in queries.unbind(1):
            match = self.items.compared(rows) @ vectors
            best = torch.maximum(best, match.masked_fill((rows == 0).unsqueeze(1), -torch.inf))
        return best.masked_fill((queries == 0).all(1, keepdim=True), 0.0)
