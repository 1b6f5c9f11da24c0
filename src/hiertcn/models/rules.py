"""What follows what in sessions: item-kNN and sequential rules, an item's score given the person's last item.

Legend: N positions, T targets, n items, W items of a window, E pairs.
"""

from __future__ import annotations

__all__ = ["ItemKNN", "ItemKNNConfig", "SequentialRules", "SequentialRulesConfig"]

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from hiertcn.config import Config, Count, Positive
from hiertcn.models.memory import MemoryModel
from hiertcn.models.windowed import Windowed
from hiertcn.ragged import SessionBatch
from hiertcn.ranges import ranges

Ints = npt.NDArray[np.int64]


class ItemKNNConfig(Config):
    """decay: of the person's last items that are looked at, each weighs so much of the one after it (0: the last only)
    window: how many                      shrink: added to the lengths, so that what is rare is not near by chance
    """

    name: ClassVar[str] = "item_knn"

    window: Count = 10
    decay: float = 0.5
    shrink: Positive = 20.0


class SequentialRulesConfig(Config):
    """steps: how far behind an item another may follow; its weight is 1 / steps (Ludewig & Jannach, 2018)
    decay, window: as of item-kNN
    """

    name: ClassVar[str] = "sequential_rules"

    window: Count = 10
    decay: float = 0.0
    steps: Count = 10


class _Rules(Windowed, MemoryModel):
    """The state is the rows of the last items, whatever session they were in; a query too."""

    def __init__(self, items: int, config: Any) -> None:
        super().__init__(items, config.window)
        self.config = config

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        return self.last_items(batch, long_term)

    def score(self, queries: Tensor) -> Tensor:
        rows = queries.cpu().numpy()
        back = np.arange(rows.shape[1] - 1, -1, -1)
        weights = np.where(rows > 0, float(self.config.decay) ** back, 0.0)
        at, column = np.nonzero(weights)
        asked = sp.csr_matrix((weights[at, column], (at, rows[at, column])), (len(rows), self.items_in_catalog + 1))
        scores = (asked @ self.follows).toarray()[:, 1:]
        return torch.from_numpy(scores).to(queries.device)

    @cached_property
    def follows(self) -> Any:
        """Sparse [n + 1, n + 1]: the score of the column's item given the row's."""
        raise NotImplementedError


class ItemKNN(_Rules):
    """Cosine of the sessions that two items are in."""

    @cached_property
    def follows(self) -> Any:
        memory, size = self.memory, self.items_in_catalog + 1
        sessions, item = memory.sessions, np.repeat(np.arange(size), np.diff(memory.of_item))
        holds = sp.csr_matrix((np.ones(len(item)), (sessions, item)), (len(memory.ends), size))
        both = (holds.T @ holds).tocoo()
        held = np.diff(memory.of_item).astype(np.float64)
        apart = both.row != both.col
        lengths = np.sqrt(held[both.row] * held[both.col]) + self.config.shrink
        return sp.csr_matrix((both.data[apart] / lengths[apart], (both.row[apart], both.col[apart])), (size, size))


class SequentialRules(_Rules):
    """How often an item came after another in a session, the more the sooner."""

    @cached_property
    def follows(self) -> Any:
        memory, size = self.memory, self.items_in_catalog + 1
        ends = np.repeat(memory.offsets[1:], np.diff(memory.offsets))
        place = np.arange(len(memory.items))
        upto = np.minimum(place + self.config.steps + 1, ends)
        later, first = ranges(place + 1, upto), np.repeat(place, upto - place - 1)
        apart = memory.items[first] != memory.items[later]
        first, later = first[apart], later[apart]
        pairs = (memory.items[first], memory.items[later])
        return sp.coo_matrix((1.0 / (later - first), pairs), (size, size)).tocsr()
