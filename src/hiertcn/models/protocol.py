"""The one protocol of models: `fold` finished sessions into the long-term state, `encode` into queries, `score`.

Training, evaluation and a single user online all call these. State is facts that can be stored for a user; the running
session is always given whole, so there is no second, incremental implementation to drift.

Legend: N positions, M sessions, U users, T targets, S size of the state, Q size of a query, D size of item vectors.
"""

from __future__ import annotations

__all__ = ["Model", "VectorModel"]

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from hiertcn.ragged import SessionBatch


class Model(nn.Module, ABC):
    """A next-item model over a catalog of `items` items (rows 1…items)."""

    trainable: ClassVar[bool] = True
    state_dtype: ClassVar[torch.dtype] = torch.float32

    def __init__(self, items: int, state_size: int) -> None:
        super().__init__()
        self.items_in_catalog = items
        self.state_size = state_size

    def zero_state(self, users: int) -> Tensor:
        """[users, S]: the state of a person before the first session."""
        device = next((p.device for p in [*self.parameters(), *self.buffers()]), torch.device("cpu"))
        return torch.zeros(users, self.state_size, dtype=self.state_dtype, device=device)

    @abstractmethod
    def fold(self, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor]:
        """From `initial` [U, S]: the states before each session [M, S], and after each user's finished ones [U, S]."""

    @abstractmethod
    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        """Queries [N, Q] from the running sessions and `long_term` [M, S], the state before each session.

        The query of a position sees the items before it in its session, `batch.seen`, `batch.gaps` and the state.
        """

    def forward(self, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor]:
        """(queries [N, Q], states after [U, S]); the same as `fold` then `encode`, in one pass where a model can."""
        before, after = self.fold(batch, initial)
        return self.encode(batch, before), after

    @abstractmethod
    def score(self, queries: Tensor) -> Tensor:
        """Scores [T, items] of the whole catalog for queries [T, Q]; column j is item row j + 1."""


class VectorModel(Model):
    """A model whose queries live in the space of item vectors: score = query · vector (+ bias)."""

    def __init__(self, items: int, state_size: int, dim: int) -> None:
        super().__init__(items, state_size)
        self.items = nn.Embedding(items + 1, dim, padding_idx=0)
        nn.init.normal_(self.items.weight, std=dim**-0.5)
        with torch.no_grad():
            self.items.weight[0] = 0

    @property
    def vectors(self) -> Tensor:
        """[items + 1, D]: what queries are compared with; row 0 is no item."""
        return self.items.weight

    @property
    def bias(self) -> Tensor | None:
        """[items + 1] or None: what is added to the scores."""
        return None

    def score(self, queries: Tensor) -> Tensor:
        bias = self.bias
        if bias is None:
            return queries @ self.vectors[1:].T
        return torch.addmm(bias[1:], queries, self.vectors[1:].T)
