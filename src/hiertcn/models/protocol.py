"""The one protocol of models: `fold` finished sessions into the long-term state, `encode` into queries, `score`.

Training, evaluation and a single user online all call these. State is facts that can be stored for a user; the running
session is always given whole, so there is no second, incremental implementation to drift.

Legend: N positions, M sessions, U users, T targets, S size of the state, Q size of a query, D size of item vectors,
J boosted items of a query.
"""

from __future__ import annotations

__all__ = ["Model", "VectorConfig", "VectorModel"]

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiertcn.config import Config, Count
from hiertcn.crowd import Horizons
from hiertcn.models.boosts import of_rows, spread
from hiertcn.models.items import GivenItems, How, Items, LearnedItems, fixed_scores
from hiertcn.ragged import SessionBatch

BLOCK = 1 << 16


class Model(nn.Module, ABC):
    """A next-item model over a catalog of `items` items (rows 1…items)."""

    trainable: ClassVar[bool] = True
    state_dtype: ClassVar[torch.dtype] = torch.float32
    reads_impressions: bool = False
    """Whether what was shown beside earlier events changes its queries."""
    horizons: Horizons = Horizons()
    """Of what everybody picked lately, as far as it changes its queries."""

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

        The query of a position sees the items before it in its session (and, if it reads impressions, what was shown
        beside them), `batch.seen`, `batch.gaps`, `batch.crowd_weights` and the state.
        """

    def forward(self, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor]:
        """(queries [N, Q], states after [U, S]); the same as `fold` then `encode`, in one pass where a model can."""
        before, after = self.fold(batch, initial)
        return self.encode(batch, before), after

    @abstractmethod
    def score(self, queries: Tensor) -> Tensor:
        """Scores [T, items] of the whole catalog for queries [T, Q]; column j is item row j + 1."""

    def score_rows(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Scores [T, C] of item rows [T, C] ≥ 1 for queries [T, Q], each with its own."""
        return self.score(queries).gather(1, rows - 1)


class VectorConfig(Config):
    """What every model that compares queries with item vectors can be told.

    dim:     size of what is read of an item; where vectors are learned, their size
    vectors: "learned" with the model; or those of the catalog: "fixed", "tuned" (learned on), or "both" (fixed, and
             learned ones beside them). None: fixed where the catalog has some, else learned
    ranking: "inner" scores by the inner product, "l2" by the negative squared distance
    unit:    queries have length 1; the ranking losses say so (You et al., 2019)
    """

    dim: Count = 128
    vectors: How | None = None
    ranking: Literal["inner", "l2"] = "inner"
    unit: bool = False


class VectorModel(Model):
    """A model whose queries live in the space of item vectors: score = query · vector (+ bias) (+ boosts).

    A query is a vector, and behind it, of a model that reads the crowd, boosts of single items (see boosts.py).
    """

    reads: ClassVar[bool] = True
    """Whether it reads items through `items`, or only compares with them."""

    def __init__(self, items: int, state_size: int, config: VectorConfig, given: Tensor | None) -> None:
        super().__init__(items, state_size)
        self.items: Items = (
            LearnedItems(items, config.dim)
            if given is None
            else GivenItems(items, config.dim, config.vectors or "fixed", given, self.reads)
        )
        self._ranking, self._unit = config.ranking, config.unit

    @property
    def query_size(self) -> int:
        """Of a query's vector."""
        return self.items.query_size

    def finished(self, queries: Tensor) -> Tensor:
        """[N, Q]: of length 1 where the config says so."""
        return F.normalize(queries, dim=-1) if self._unit else queries

    @property
    def vectors(self) -> Tensor:
        """[items + 1, Q]: what queries are compared with; row 0 is no item."""
        return self.items.whole()

    @property
    def bias(self) -> Tensor | None:
        """[items + 1] or None: what is added to the scores."""
        return None if self._ranking == "inner" else self._offsets(self.vectors)

    def _offsets(self, vectors: Tensor) -> Tensor | None:
        # −|q − v|² = 2 (q·v − |v|²/2) − |q|², and the last term is the same for all items.
        return None if self._ranking == "inner" else -vectors.square().sum(-1) / 2

    def lookup(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """([R, Q], [R] or None): `vectors` and `bias` of item rows int64 [R] alone."""
        vectors = self.items.compared(rows)
        return vectors, self._offsets(vectors)

    def parted(self, queries: Tensor) -> tuple[Tensor, Tensor | None]:
        """([T, Q], [T, 2J] or None): the vectors of queries, and their boosts."""
        boosts = queries[:, self.query_size :]
        return queries[:, : self.query_size], boosts if boosts.shape[1] else None

    def score(self, queries: Tensor) -> Tensor:
        queries, boosts = self.parted(queries)
        scores = self._score(queries)
        return scores if boosts is None else scores + spread(boosts, self.items_in_catalog)

    def _score(self, queries: Tensor) -> Tensor:
        if isinstance(self.items, GivenItems):
            return self._score_blocks(queries)
        bias = self.bias
        if bias is None:
            return queries @ self.vectors[1:].T
        return torch.addmm(bias[1:], queries, self.vectors[1:].T)

    def score_rows(self, queries: Tensor, rows: Tensor) -> Tensor:
        queries, boosts = self.parted(queries)
        scores = self._score_rows(queries, rows)
        return scores if boosts is None else scores + of_rows(boosts, rows)

    def _score_rows(self, queries: Tensor, rows: Tensor) -> Tensor:
        if isinstance(self.items, GivenItems) and self._ranking == "inner" and self.items.fixed(queries.dtype):
            return fixed_scores(queries, self.items.given, rows)
        vectors, offsets = self.lookup(rows.flatten())
        scores = torch.bmm(vectors.view(*rows.shape, -1), queries.unsqueeze(2)).squeeze(2)
        return scores if offsets is None else scores + offsets.view_as(scores)

    def _score_blocks(self, queries: Tensor) -> Tensor:
        """The table is on disk: no more of it than a block is copied at a time."""
        scores = queries.new_empty(len(queries), self.items_in_catalog)
        for begin in range(0, self.items_in_catalog, BLOCK):
            end = min(begin + BLOCK, self.items_in_catalog)
            vectors, offsets = self.lookup(torch.arange(begin + 1, end + 1, device=queries.device))
            block = queries @ vectors.T
            scores[:, begin:end] = block if offsets is None else block + offsets
        return scores
