"""Item vectors that change while they are searched: a base that stays, and beside it what was put since."""

from __future__ import annotations

__all__ = ["Snapshot", "Table"]

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hiertcn.retrieval.protocol import Allowed, Found, Rows, Vectors
from hiertcn.retrieval.ranks import best, ranked

# So many scores are in memory at a time, and so many bytes of a block's vectors.
_SCORES, _BYTES = 1 << 22, 1 << 24
_ROOM = 256
_DENSE = 0.2


@dataclass(frozen=True)
class Snapshot:
    """What a table holds at a moment; it does not change.

    Slots are places in the table: those of `base`, float32 or float16 [B, Q], first, those of `side`, float32 [S, Q],
    behind them. rows: int64 [B + S], the item row in a slot; live: bool [B + S], whether it counts.
    """

    base: npt.NDArray[Any]
    side: Vectors
    rows: Rows
    live: Allowed

    @cached_property
    def count(self) -> int:
        """How many items it holds."""
        return int(self.live.sum())

    def allowing(self, allowed: Allowed | None) -> Allowed:
        """bool [B + S]: the slots that are live and whose rows are `allowed`."""
        if allowed is None:
            return self.live
        inside = self.rows < len(allowed)
        marked: Allowed = self.live & inside
        marked[inside] &= np.asarray(allowed, dtype=bool)[self.rows[inside]]
        return marked

    def vectors(self, slots: Rows) -> Vectors:
        """float32 [..., Q]: the vectors in `slots`."""
        held = len(self.base)
        if not held:
            return np.asarray(self.side[slots])
        if not len(self.side):
            return self.base.take(slots, axis=0).astype(np.float32, copy=False)
        out = np.asarray(self.base[np.minimum(slots, held - 1)], dtype=np.float32)
        beyond = slots >= held
        out[beyond] = self.side[slots[beyond] - held]
        return out

    def among(self, queries: Vectors, k: int, marked: Allowed) -> Rows:
        """int64 [T, at most k]: of the slots of the base that are `marked` [B + S], the best; −1 for none."""
        return self._scan(queries, k, np.arange(len(self.base)), marked)

    def beside(self, queries: Vectors, k: int, marked: Allowed) -> Rows:
        """The same of the side."""
        slots = len(self.base) + np.flatnonzero(marked[len(self.base) :])
        return self._scan(queries, k, slots[np.argsort(self.rows[slots])], marked)

    def _scan(self, queries: Vectors, k: int, slots: Rows, marked: Allowed) -> Rows:
        """Of `slots`, in order of their rows, so that of equal scores the smaller row stays."""
        step = max(1, min(_SCORES // max(1, len(queries)), _BYTES // (4 * queries.shape[1])))
        kept = np.empty((len(queries), 0), dtype=np.int64)
        scores = np.empty((len(queries), 0), dtype=np.float32)
        for begin in range(0, len(slots), step):
            block = slots[begin : begin + step]
            here = marked[block]
            whole = block[-1] < len(self.base) and here.mean() > _DENSE
            if not whole:
                block, here = block[here], here[here]
            # A range of the base is read as it lies; picking vectors one by one costs far more than a product too many.
            vectors = np.asarray(self.base[block[0] : block[-1] + 1], np.float32) if whole else self.vectors(block)
            found = queries @ vectors.T
            found[:, ~here] = -np.inf
            top = np.sort(best(found, k), axis=1)
            kept = np.concatenate([kept, block[top]], axis=1)
            scores = np.concatenate([scores, np.take_along_axis(found, top, axis=1)], axis=1)
            top = np.sort(best(scores, k), axis=1)
            kept = np.take_along_axis(kept, top, axis=1)
            scores = np.take_along_axis(scores, top, axis=1)
        return np.where(np.isneginf(scores), -1, kept)

    def rank(self, queries: Vectors, k: int, slots: Rows) -> Found:
        """The best of candidate `slots` [T, C], −1 for none, by inner products that are the same in every index."""
        real = slots >= 0
        slots = np.where(real, slots, 0)
        vectors = self.vectors(slots)
        scores = np.einsum("tcq,tq->tc", vectors, queries).astype(np.float32)
        scores[~real] = -np.inf
        return ranked(self.rows[slots], scores, k)


class Table:
    """The newest snapshot, and how it changes. `rows` [B], ascending, are those of `base`; row 0 is no item.

    Writers take turns by a lock of their owner's; a snapshot can be read by anyone at any time.
    """

    def __init__(self, base: npt.NDArray[Any], rows: Rows | None = None) -> None:
        rows = np.arange(len(base)) if rows is None else rows
        self.now = Snapshot(base, np.empty((0, base.shape[1]), dtype=np.float32), rows, rows > 0)
        # With room to grow: what stands behind the end of a snapshot is not seen by it.
        self._side, self._rows = self.now.side, rows[:0]
        self._slot: dict[int, int] = {}

    def put(self, rows: Rows, vectors: Vectors) -> None:
        """Put the items of distinct `rows` [R]."""
        live = self._without(rows)
        base, used = len(self.now.base), len(self.now.side)
        if used + len(rows) > len(self._side):
            live = self._make_room(live, len(rows))
            used = len(live) - base
        end = used + len(rows)
        self._side[used:end], self._rows[used:end] = vectors, rows
        self._slot.update(zip(rows.tolist(), range(base + used, base + end), strict=True))
        self._show(np.concatenate([live, np.ones(len(rows), dtype=bool)]), end)

    def remove(self, rows: Rows) -> None:
        """Take the items of `rows` [R] out."""
        self._show(self._without(rows), len(self.now.side))

    def _without(self, rows: Rows) -> Allowed:
        """Which slots are live once `rows` are not."""
        live = self.now.live.copy()
        base = self.now.rows[: len(self.now.base)]
        at = np.minimum(np.searchsorted(base, rows), len(base) - 1) if len(base) else rows[:0]
        live[at[base[at] == rows[: len(at)]]] = False
        beside = (self._slot.pop(row, None) for row in rows.tolist())
        live[[slot for slot in beside if slot is not None]] = False
        return live

    def _make_room(self, live: Allowed, more: int) -> Allowed:
        """Move what is live at the side to a new one with room for `more`; which slots are live then."""
        base = len(self.now.base)
        kept = np.flatnonzero(live[base:])
        room = max(_ROOM, 2 * (len(kept) + more))
        side, rows = np.empty((room, self._side.shape[1]), dtype=np.float32), np.empty(room, dtype=np.int64)
        side[: len(kept)], rows[: len(kept)] = self._side[kept], self._rows[kept]
        self._side, self._rows = side, rows
        self._slot = {row: base + at for at, row in enumerate(rows[: len(kept)].tolist())}
        return np.concatenate([live[:base], np.ones(len(kept), dtype=bool)])

    def _show(self, live: Allowed, used: int) -> None:
        base = self.now.base
        rows = np.concatenate([self.now.rows[: len(base)], self._rows[:used]])
        self.now = Snapshot(base, self._side[:used], rows, live)
