"""From queries to the best items of the catalog.

Legend: T queries, Q size of a query, n items.
"""

from __future__ import annotations

__all__ = ["Best", "Limits", "Scorer", "Scores", "best_of"]

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hiertcn.streams import Ints

Array = npt.NDArray[Any]


class Scores(Protocol):
    """Of a trained model, the part that scores."""

    def score(self, queries: Array) -> Array:
        """[T, n]: the scores of the whole catalog for queries [T, Q]; column j is item row j + 1."""


class Best(NamedTuple):
    """Item rows, the best first, of equals the first in the catalog; and their scores."""

    rows: Ints
    scores: Array


class Limits(NamedTuple):
    """So many items at most, none of the rows `hidden`, and of the rows `among` alone, if they are given."""

    k: int
    hidden: Ints
    among: Ints | None = None


class Scorer:
    """Of the model whose `scores` they are."""

    def __init__(self, scores: Scores) -> None:
        self._scores = scores

    def best(self, queries: Array, limits: Sequence[Limits]) -> list[Best]:
        """The best items for each of `queries` [T, Q] within its `limits` [T]."""
        return [best_of(scores, limit) for scores, limit in zip(self._scores.score(queries), limits, strict=True)]


def best_of(scores: Array, limits: Limits) -> Best:
    """The best within `limits` by `scores` [n], column j of which is item row j + 1."""
    rows = np.arange(1, len(scores) + 1) if limits.among is None else limits.among
    rows = rows[np.isin(rows, limits.hidden, invert=True)] if len(limits.hidden) else rows
    left = scores[rows - 1]
    if len(left) > limits.k:
        # All that tie with the last one, so that of equals the first are given.
        least = np.partition(left, len(left) - limits.k)[len(left) - limits.k]
        rows, left = rows[left >= least], left[left >= least]
    order = np.argsort(-left, kind="stable")[: limits.k]
    return Best(rows[order], left[order])
