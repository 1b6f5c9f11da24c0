"""Follows: what everybody picked next, lately, after an item; as it was known at any moment. Ours.

Of an item its last picks are looked at, each of which weighs exp(−age / horizon).

Legend: P pairs of an item and the one picked next in its session, H horizons, K picks of an item, N moments.
"""

from __future__ import annotations

__all__ = ["Follows"]

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hiertcn.ranges import ranges
from hiertcn.trends import MOST, Floats, Ints

Rows = npt.NDArray[np.int32]


class Follows:
    """Of pairs `items` [P] → `picked` [P] at `times` [P] seconds, that of the pick. horizons: hours."""

    def __init__(self, horizons: Sequence[float], items: Ints, picked: Ints, times: Floats) -> None:
        self._seconds = np.array(horizons, dtype=np.float64) * 3600
        order = np.lexsort((picked, times, items))
        self._items, self._picked, self._times = items[order], picked[order].astype(np.int32), times[order]
        self._in_order = np.sort(times)
        # Increases with the item, then with the time, and is exact.
        self._key = self._keys(self._items, self._times)
        # Of items that were picked from since: the last picks, the latest at the end.
        self._since: dict[int, tuple[Rows, Floats]] = {}

    def observe(self, row: int, time: float, after: int) -> None:
        """Take in that `row` was picked next after `after`, at `time`."""
        rows, times = self._since.get(after) or self._last_of(after)
        self._since[after] = np.append(rows, np.int32(row))[-MOST:], np.append(times, time)[-MOST:]

    def at(self, moments: Floats, after: Ints) -> tuple[Rows, npt.NDArray[np.float32]]:
        """int32 [N, H, K] item rows, 0 for none, and float32 [N, H, K], their weights: what followed item rows `after`
        [N], 0 for none, as known at `moments` [N] seconds. No row twice."""
        rows, times = self._last(moments, after)
        order = np.argsort(rows, axis=1, kind="stable")
        rows, times = np.take_along_axis(rows, order, 1), np.take_along_axis(times, order, 1)
        ages = moments[:, None] - times
        weights = np.exp(-ages[:, None, :] / self._seconds[:, None]) * (rows > 0)[:, None, :]
        # A row that was picked several times has the sum of its weights at its last place.
        ends = np.append(rows[:, 1:] != rows[:, :-1], np.ones((len(rows), 1), dtype=bool), axis=1)
        sums = np.cumsum(weights, axis=2)
        place = np.maximum.accumulate(np.where(ends, np.arange(MOST), -1), axis=1)
        before = np.append(np.full((len(rows), 1), -1), place[:, :-1], axis=1)[:, None, :]
        earlier = np.where(before >= 0, np.take_along_axis(sums, np.maximum(before, 0), 2), 0.0)
        rows = np.where(ends, rows, 0)
        found = np.where(rows[:, None, :] > 0, sums - earlier, 0.0)
        return np.repeat(rows[:, None], len(self._seconds), 1), found.astype(np.float32)

    def state(self) -> tuple[Ints, Ints, Floats]:
        """The pairs that count: of each item the last K."""
        begins = np.flatnonzero(np.diff(self._items, prepend=-1))
        ends = np.append(begins[1:], len(self._items))
        kept = ranges(np.maximum(begins, ends - MOST), ends)
        return self._items[kept], self._picked[kept].astype(np.int64), self._times[kept]

    def _keys(self, items: Ints, times: Floats) -> Ints:
        keys: Ints = items * (len(self._in_order) + 1) + np.searchsorted(self._in_order, times)
        return keys

    def _last(self, moments: Floats, after: Ints) -> tuple[Rows, Floats]:
        """[N, K]: the last picks after each item before each moment, and when they were; 0 where there are fewer."""
        past = np.searchsorted(self._key, self._keys(after, moments))
        at = past[:, None] + np.arange(-MOST, 0)
        there = at >= np.searchsorted(self._items, after)[:, None]
        rows, times = np.zeros(at.shape, dtype=np.int32), np.zeros(at.shape)
        rows[there], times[there] = self._picked[at[there]], self._times[at[there]]
        for n, item in enumerate(after.tolist() if self._since else ()):
            if item not in self._since:
                continue
            since, when = self._since[item]
            rows[n], times[n] = 0, 0.0
            rows[n, MOST - len(since) :], times[n, MOST - len(since) :] = since * (when < moments[n]), when
        return rows, np.minimum(times, moments[:, None])

    def _last_of(self, item: int) -> tuple[Rows, Floats]:
        begin, end = np.searchsorted(self._items, [item, item + 1])
        kept = slice(max(begin, end - MOST), end)
        return self._picked[kept], self._times[kept]
