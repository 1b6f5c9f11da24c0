"""What a model has of items, by row, in tables that grow while they are read; and how new items get theirs.

Legend: n items, R rows, T queries, C items to score, J boosted items of a query, G size of the given vectors,
D what a model reads of an item, Q size of a query.
"""

from __future__ import annotations

__all__ = ["Given", "ItemRows", "Longer", "boosts_of"]

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
_BLOCK = 1 << 16
_ROOM = 256
# Inner products of such numbers stay finite; an index takes no larger ones.
_LARGEST = 1e15


class Longer:
    """A table [n + 1, …] that stays, and rows that were put since: in the place of its own, or behind them.

    What is put makes a new one; who reads an older one goes on to read it whole. Only the newest may be put to.
    """

    def __init__(self, base: Array) -> None:
        self._base, self._side, self._used = base, base[:0].copy(), 0
        # Of each row its place at the side, −1 for none.
        self._places = np.empty(0, dtype=np.int32)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *self._base.shape[1:]

    def __len__(self) -> int:
        return max(len(self._base), len(self._places))

    def __getitem__(self, rows: slice) -> Array:
        begin, end, _ = rows.indices(len(self))
        if end <= len(self._base) and (self._places[begin:end] < 0).all():
            return self._base[begin:end]
        return self.take(np.arange(begin, end))

    def take(self, rows: Array, axis: int = 0) -> Array:
        """[…]: of any `rows` below its length, along the only axis there is to take along; zeros where none was put."""
        if not self._used:
            return self._base.take(rows, axis)
        places = self._places.take(rows)
        found = self._base.take(np.where(rows < len(self._base), rows, 0), axis)
        there = places >= 0
        found[there] = self._side[places[there]]
        return found

    def put(self, rows: Array, values: Array) -> Longer:
        """The table in which distinct `rows` [R] ≥ 1 have `values` [R, …]."""
        longer = Longer(self._base)
        height = max(len(self), int(rows.max(initial=0)) + 1)
        places = np.full(height, -1, dtype=np.int32)
        places[: len(self._places)] = self._places
        # What these rows had is not needed any more.
        places[rows] = -1
        side, used = self._side, self._used
        if used + len(rows) > len(side):
            kept = np.flatnonzero(places >= 0)
            used = len(kept)
            side = np.empty((max(_ROOM, 2 * (used + len(rows))), *self._base.shape[1:]), dtype=self._base.dtype)
            side[:used] = self._side[places[kept]]
            places[kept] = np.arange(used)
        longer._used = used + len(rows)
        side[used : longer._used] = values
        places[rows] = np.arange(used, longer._used)
        longer._side, longer._places = side, places
        return longer


class ItemRows(NamedTuple):
    """What a model has of items: what it reads [n + 1, D], what queries are compared with [n + 1, Q], and what is added
    to scores [n + 1], or None."""

    read: Longer
    compared: Longer
    bias: Longer | None

    def put(self, rows: Array, read: Floats, compared: Floats) -> ItemRows:
        """Those in which distinct `rows` int64 [R] ≥ 1 have `read` [R, D] and `compared` [R, Q]."""
        bias = None if self.bias is None else self.bias.put(rows, -np.square(compared).sum(1) / 2)
        return ItemRows(self.read.put(rows, read), self.compared.put(rows, compared), bias)

    def indexed(self, rows: Array) -> Floats:
        """float32 [R, Q] or [R, Q + 1]: what an index holds of `rows`: their vectors, and the bias behind them."""
        found: Floats = self.compared.take(rows).astype(np.float32, copy=False)
        return found if self.bias is None else np.append(found, self.bias.take(rows)[:, None], axis=1)

    def scores(self, vectors: Floats) -> Floats:
        """[T, n + 1]: of all rows, for the vectors of queries [T, Q]."""
        out = np.empty((len(vectors), len(self.compared)), dtype=np.float32)
        for begin in range(0, len(self.compared), _BLOCK):
            block = self.compared[begin : begin + _BLOCK]
            np.matmul(vectors, block.astype(np.float32, copy=False).T, out=out[:, begin : begin + len(block)])
        if self.bias is not None:
            out += self.bias[:]
        return out

    def scores_of(self, vectors: Floats, rows: Array) -> Floats:
        """[T, C]: of `rows` [T, C], each query its own."""
        asked = self.compared.take(rows).astype(np.float32, copy=False)
        scores: Floats = np.matmul(asked, vectors[:, :, None])[:, :, 0]
        return scores if self.bias is None else scores + self.bias.take(rows)


@dataclass(frozen=True, eq=False)
class Given:
    """A model reads W v of an item that comes with v, and compares queries with v, zeros behind it.

    weight: W, float32 [D, G]     dtype: what the vectors are kept in     query: Q ≥ G
    squared: whether half the square of v's length is taken off its scores
    """

    weight: Floats
    dtype: np.dtype[Any]
    query: int
    squared: bool

    @property
    def size(self) -> int:
        """G."""
        return int(self.weight.shape[1])

    def fault(self, vector: Floats) -> str | None:
        """What is wrong with a vector that an item comes with."""
        if vector.shape != (self.size,):
            return f"of size {vector.size}, expected {self.size}"
        with np.errstate(over="ignore"):
            kept = vector.astype(self.dtype)
            largest = float(np.abs(kept).max())
        if not largest <= _LARGEST:
            return "not finite"
        if self.squared and float(np.square(kept, dtype=np.float64).sum()) / 2 > _LARGEST:
            return f"as large as {largest:g}, so that its square is out of range"
        return None if kept.any() else "zero"

    def parts(self, vectors: Floats) -> tuple[Array, Array]:
        """(float32 [R, D], float32 [R, Q]): what is read, and what queries are compared with, of `vectors` [R, G]."""
        kept = vectors.astype(self.dtype).astype(np.float32)
        return kept @ self.weight.T, np.pad(kept, ((0, 0), (0, self.query - self.size)))


def boosts_of(boosted: Array, boosts: Floats, rows: Array) -> Floats:
    """[T, C]: of `rows` [T, C], each query's own, the boosts, of which `boosts` [T, J] are those of the rows `boosted`
    [T, J]; what is boosted twice has the sum."""
    # Every query's rows as stretches of one increasing sequence.
    apart = np.arange(len(rows))[:, None] * (1 + max(int(boosted.max(initial=0)), int(rows.max(initial=0))))
    keys = (boosted + apart).ravel()
    order = keys.argsort(kind="stable")
    keys, sums = keys[order], np.concatenate([[0.0], np.cumsum(boosts.ravel()[order], dtype=np.float64)])
    first, past = (keys.searchsorted(rows + apart, side=side) for side in ("left", "right"))
    found: Floats = (sums[past] - sums[first]).astype(np.float32)
    return found
