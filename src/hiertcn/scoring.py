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
from hiertcn.retrieval.ranks import ranked
from hiertcn.streams import Ints

Array = npt.NDArray[Any]
Marks = npt.NDArray[np.bool_]
# Of so many at most, all are scored; more are searched for among all.
_FEW = 1000
# More than is asked for, since some of what is found is hidden.
_BESIDE = 16
# Behind all rows, so that lists filled up with it stay ascending, and stretches of so many rows apart.
_NONE = np.int64(1 << 40)


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
        """float32 [T, C]: of queries [T, Q + 2J] with item rows [T, C], each query its own."""

    def scores_of(self, vectors: Array, rows: Ints) -> Array:
        """float32 [T, C]: without boosts, of vectors [T, Q] with item rows [T, C], each query its own."""


class Best(NamedTuple):
    """Item rows, the best first, of equals the first in the catalog; and their scores."""

    rows: Ints
    scores: Array


class Limits(NamedTuple):
    """So many items at most, none of the rows `hidden`, and of the rows `among` alone, if they are given."""

    k: int
    hidden: Ints
    among: Ints | None = None

    def allow(self, rows: Ints, is_open: Marks | None) -> Marks:
        """Which of `rows` ≥ 1 are open and not hidden."""
        allowed = np.ones(len(rows), dtype=bool) if is_open is None else is_open.take(rows)
        return allowed & np.isin(rows, self.hidden, invert=True) if len(self.hidden) else allowed


def compared(model: Searchable) -> Array:
    """[n + 1, Q] or [n + 1, Q + 1]: what an index holds: the vectors, and the bias behind them."""
    if model.bias is None:
        return model.vectors
    return np.concatenate([model.vectors, model.bias[:, None]], axis=1, dtype=np.float32)


class Scorer:
    """Of the model whose `scores` they are. index: over what `compared` gives, for a model that is Searchable."""

    def __init__(self, scores: Scores, index: Index | None = None) -> None:
        self._scores, self._index = scores, index

    def best(self, queries: Array, limits: Sequence[Limits], is_open: Marks | None = None) -> list[Best]:
        """The best items for each of `queries` [T, Q + 2J] within its `limits` [T], of those that `is_open`, bool
        [n + 1], marks, if it is given."""
        if self._index is None:
            scores = self._scores.score(queries)
            return [best_of(mine, limit, is_open) for mine, limit in zip(scores, limits, strict=True)]
        model: Searchable = self._scores  # type: ignore[assignment]
        out: list[Best | None] = [None] * len(limits)
        for at, limit in enumerate(limits):
            if limit.among is not None and len(limit.among) > _FEW:
                # Alone, since the longest list of hidden rows is what all of a batch are filled up to.
                (out[at],) = self._searched(model, queries[at : at + 1], [_barring(limit, len(model.vectors))], is_open)
        for whole in (False, True):
            places = [at for at, limit in enumerate(limits) if out[at] is None and (limit.among is None) is whole]
            if places:
                search = self._searched if whole else _chosen
                found = search(model, queries[places], [limits[at] for at in places], is_open)
                for at, best in zip(places, found, strict=True):
                    out[at] = best
        return out  # type: ignore[return-value]

    def _searched(
        self, model: Searchable, queries: Array, limits: Sequence[Limits], is_open: Marks | None, width: int = 0
    ) -> list[Best]:
        """Of the whole catalog. width: how many the index is to find for each query, at least."""
        assert self._index is not None
        vectors, boosted = _boosted(model, queries)
        k, held = max(limit.k for limit in limits), len(self._index)
        width = max(min(max(k + _BESIDE, width), held), 1)
        rows, scores = self._index.search(vectors, width)
        least = scores[:, -1]
        scores = np.where(_within(rows, boosted.rows) | (rows == 0), -np.inf, scores)
        rows = np.concatenate([rows, boosted.rows], axis=1)
        scores = np.concatenate([scores, boosted.scores], axis=1)
        if any(len(limit.hidden) for limit in limits):
            hidden = _padded([np.sort(limit.hidden) for limit in limits])
            scores = np.where(_within(rows, hidden), -np.inf, scores)
        if is_open is not None:
            scores = np.where(is_open.take(rows, mode="clip"), scores, -np.inf)
        rows, scores = ranked(rows, scores, k)
        found = []
        for at, (limit, left) in enumerate(zip(limits, (scores > -np.inf).sum(axis=1).tolist(), strict=True)):
            count = min(limit.k, left)
            # What the index did not find scores no more than the last that it found.
            if width < held and (count < limit.k or scores[at, count - 1] < least[at]):
                found += self._searched(model, queries[at : at + 1], limits[at : at + 1], is_open, 4 * width)
            else:
                found.append(Best(rows[at, :count], scores[at, :count]))
        return found


def _barring(limit: Limits, height: int) -> Limits:
    """The same, told by all rows < `height` that may not be given."""
    barred = np.ones(height, dtype=bool)
    barred[limit.among] = False
    barred[limit.hidden] = True
    return limit._replace(hidden=np.flatnonzero(barred), among=None)


def _chosen(model: Searchable, queries: Array, limits: Sequence[Limits], is_open: Marks | None) -> list[Best]:
    """Of the rows `among` of each limit."""
    rows = _padded([np.unique(limit.among[limit.allow(limit.among, is_open)]) for limit in limits])  # type: ignore[index,arg-type]
    real = rows < _NONE
    scores = model.score_rows(queries, np.where(real, rows, 0))
    return [
        _first(rows[at, here], scores[at, here], limit.k)
        for at, (limit, here) in enumerate(zip(limits, real, strict=True))
    ]


def _boosted(model: Searchable, queries: Array) -> tuple[Array, Best]:
    """float32 [T, Q], the vectors that an index is searched with; and [T, at most J], the rows that each query boosts,
    ascending, behind zeros, with their scores, −inf for row 0. What is boosted twice has the sum."""
    vectors, boosted, boosts = model.parted(queries)
    query, column = boosted.nonzero()
    # Every query's rows as a stretch of one increasing sequence.
    keys = query * _NONE + boosted[query, column]
    order = keys.argsort()
    keys = keys[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    query, found = np.divmod(keys[first], _NONE)
    ends = np.bincount(query, minlength=len(boosted)).cumsum()
    width = int(np.diff(ends, prepend=0).max(initial=0))
    column = np.arange(width - len(query), width) + (len(query) - ends)[query]
    rows, scores = np.zeros((len(boosted), width), dtype=np.int64), np.zeros((len(boosted), width))
    rows[query, column] = found
    if len(first):
        scores[query, column] = np.add.reduceat(boosts[boosted != 0][order], first, dtype=np.float64)
    scores += model.scores_of(vectors, rows)
    scores[rows == 0] = -np.inf
    if model.bias is not None:
        vectors = np.concatenate([vectors, np.ones((len(vectors), 1))], axis=1)
    return np.ascontiguousarray(vectors, dtype=np.float32), Best(rows, scores.astype(np.float32))


def _padded(lists: Sequence[Ints]) -> Ints:
    """int64 [T, C]: T lists of rows, filled up with _NONE."""
    counts = np.array([len(rows) for rows in lists], dtype=np.int64)
    out = np.full((len(lists), int(counts.max(initial=0))), _NONE)
    out[np.arange(out.shape[1]) < counts[:, None]] = np.concatenate([*lists, np.zeros(0, dtype=np.int64)])
    return out


def _within(rows: Ints, others: Ints) -> npt.NDArray[np.bool_]:
    """bool [T, C]: whether each of `rows` [T, C] is among `others` [T, O], ascending, of the same query."""
    if not others.shape[1]:
        return np.zeros(rows.shape, dtype=bool)
    # Every query's rows as a stretch of one increasing sequence.
    apart = np.arange(len(rows))[:, None] * (_NONE + 1)
    known, asked = (others + apart).ravel(), rows + apart
    place = np.minimum(known.searchsorted(asked), len(known) - 1)
    found: npt.NDArray[np.bool_] = known[place] == asked
    return found


def best_of(scores: Array, limits: Limits, is_open: Marks | None = None) -> Best:
    """The best within `limits` by `scores` [n], column j of which is item row j + 1, of those that `is_open`, bool
    [n + 1], marks, if it is given."""
    if is_open is not None:
        # What was added meanwhile is not open yet.
        scores = scores[: len(is_open) - 1]
    rows = np.arange(1, len(scores) + 1) if limits.among is None else limits.among
    if is_open is not None or len(limits.hidden):
        rows = rows[limits.allow(rows, is_open)]
    return _first(rows, scores[rows - 1], limits.k)


def _first(rows: Ints, scores: Array, k: int) -> Best:
    """The k best of `rows`, each there once."""
    if len(scores) > k:
        # All that tie with the last one, so that of equals the first are given.
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        rows, scores = rows[scores >= least], scores[scores >= least]
    order = np.lexsort((rows, -scores))[:k]
    return Best(rows[order], scores[order])
