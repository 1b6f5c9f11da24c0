"""From queries to the best items of the catalog: by all scores, or by an index of item vectors.

An index finds the best items by their vectors; what a query boosts is scored beside them, so both ways give the same
where the index is exact.

Legend: T queries, Q size of a query's vector, J boosted items of a query, n items, C items to score.
"""

from __future__ import annotations

__all__ = ["Best", "Limits", "Scorer", "Scores", "Searchable", "best_of", "compared"]

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hiertcn.retrieval import Index
from hiertcn.streams import Ints

Array = npt.NDArray[Any]
# More than is asked for, since some of what is found is boosted or hidden.
_BESIDE = 64


class Scores(Protocol):
    """Of a trained model, the part that scores."""

    def score(self, queries: Array) -> Array:
        """[T, n]: the scores of the whole catalog for queries [T, Q]; column j is item row j + 1."""

    def parted(self, queries: Array) -> tuple[Array, Array, Array]:
        """([T, Q], int64 [T, J], [T, J]): the vectors of queries, the rows that they boost, 0 for none, and by how
        much."""


class Searchable(Scores, Protocol):
    """One whose scores are inner products with vectors [n + 1, Q], and `bias` [n + 1] if there is one, and boosts."""

    vectors: Array
    bias: Array | None

    def score_rows(self, queries: Array, rows: Ints) -> Array:
        """[T, C]: the scores of item rows [T, C] ≥ 1, each query with its own."""


class Best(NamedTuple):
    """Item rows, the best first, of equals the first in the catalog; and their scores."""

    rows: Ints
    scores: Array


class Limits(NamedTuple):
    """So many items at most, none of the rows `hidden`, and of the rows `among` alone, if they are given."""

    k: int
    hidden: Ints
    among: Ints | None = None


def compared(model: Searchable) -> Array:
    """[n + 1, Q] or [n + 1, Q + 1]: what an index holds: the vectors, and the bias behind them."""
    if model.bias is None:
        return model.vectors
    return np.concatenate([model.vectors, model.bias[:, None]], axis=1, dtype=np.float32)


class Scorer:
    """Of the model whose `scores` they are. index: over what `compared` gives, for a model that is Searchable."""

    def __init__(self, scores: Scores, index: Index | None = None) -> None:
        self._scores, self._index = scores, index

    def best(self, queries: Array, limits: Sequence[Limits]) -> list[Best]:
        """The best items for each of `queries` [T, Q + 2J] within its `limits` [T]."""
        if self._index is None:
            return [best_of(scores, limit) for scores, limit in zip(self._scores.score(queries), limits, strict=True)]
        return self._searched(self._scores, self._index, queries, limits)  # type: ignore[arg-type]

    def _searched(self, model: Searchable, index: Index, queries: Array, limits: Sequence[Limits]) -> list[Best]:
        vectors, boosted, _ = model.parted(queries)
        vectors = vectors if model.bias is None else np.insert(vectors, vectors.shape[1], 1.0, axis=1)
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        boosting = model.score_rows(queries, np.maximum(boosted, 1))
        width = min(max(limit.k for limit in limits) + _BESIDE, len(index))
        rows, scores = index.search(vectors, max(width, 1))
        out = []
        for at, limit in enumerate(limits):
            if limit.among is not None:
                among = np.setdiff1d(limit.among, limit.hidden)
                out.append(_first(among, model.score_rows(queries[at : at + 1], among[None])[0], limit.k))
                continue
            left, wide = _others(rows[at], scores[at], boosted[at], limit.hidden), width
            while len(left.rows) < limit.k and wide < len(index):
                wide = min(4 * wide, len(index))
                more = index.search(vectors[at : at + 1], wide)
                left = _others(more[0][0], more[1][0], boosted[at], limit.hidden)
            mine, first = np.unique(boosted[at], return_index=True)
            shown = (mine > 0) & np.isin(mine, limit.hidden, invert=True)
            mine, own = mine[shown], boosting[at][first[shown]]
            out.append(_first(np.append(left.rows, mine), np.append(left.scores, own), limit.k))
        return out


def best_of(scores: Array, limits: Limits) -> Best:
    """The best within `limits` by `scores` [n], column j of which is item row j + 1."""
    rows = np.arange(1, len(scores) + 1) if limits.among is None else limits.among
    rows = rows[np.isin(rows, limits.hidden, invert=True)] if len(limits.hidden) else rows
    return _first(rows, scores[rows - 1], limits.k)


def _others(rows: Ints, scores: Array, boosted: Ints, hidden: Ints) -> Best:
    """Of what an index found, what is neither boosted nor hidden."""
    kept = (rows > 0) & np.isin(rows, boosted, invert=True) & np.isin(rows, hidden, invert=True)
    return Best(rows[kept], scores[kept])


def _first(rows: Ints, scores: Array, k: int) -> Best:
    """The k best of `rows`, each there once."""
    if len(scores) > k:
        # All that tie with the last one, so that of equals the first are given.
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        rows, scores = rows[scores >= least], scores[scores >= least]
    order = np.lexsort((rows, -scores))[:k]
    return Best(rows[order], scores[order])
