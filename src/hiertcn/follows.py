"""Follows: what everybody picked next, lately, after an item; as it was known at any moment. Ours.

Of an item its last picks are looked at, each of which weighs exp(−age / horizon).

Legend: P pairs of an item and the one picked next in its session, H horizons, K picks of an item, N moments.
"""

from __future__ import annotations

__all__ = ["Follows"]

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hiertcn.ranges import ranges, runs
from hiertcn.trends import MOST, Floats, Ints

Rows = npt.NDArray[np.int32]
_PICK = np.dtype([("time", "<f8"), ("row", "<i4")])


class Follows:
    """Of pairs `items` [P] → `picked` [P] at `times` [P] seconds, that of the pick. horizons: hours."""

    def __init__(self, horizons: Sequence[float], items: Ints, picked: Ints, times: Floats) -> None:
        self._seconds = np.array(horizons, dtype=np.float64) * 3600
        order = np.lexsort((picked, times, items))
        self._picked, self._times = picked[order].astype(np.int32), times[order]
        # The pairs of item x are those from _begins[x] to _begins[x + 1].
        self._begins = np.concatenate([[0], np.cumsum(np.bincount(items))])
        # Of items that were picked from since: the last picks, the latest at the end; as bytes, since there are many.
        self._since: dict[int, bytes] = {}

    def observe(self, row: int, time: float, after: int) -> None:
        """Take in that `row` was picked next after `after`, at `time`."""
        known = self._since.get(after) or self._last_of(after)
        self._since[after] = (known + np.array((time, row), dtype=_PICK).tobytes())[-MOST * _PICK.itemsize :]

    def at(self, moments: Floats, after: Ints) -> tuple[Rows, npt.NDArray[np.float32]]:
        """int32 [N, H, K] item rows, 0 for none, and float32 [N, H, K], their weights: what followed item rows `after`
        [N], 0 for none, as known at `moments` [N] seconds. No row twice."""
        rows, times = self._last(moments, after)
        order, each = rows.argsort(axis=1, kind="stable"), np.arange(len(rows))[:, None]
        rows, times = rows[each, order], times[each, order]
        weights = np.exp((times - moments[:, None])[:, None, :] / self._seconds[:, None]) * (rows > 0)[:, None, :]
        # A row that was picked several times has the sum of its weights at its last place.
        begins, last = runs(rows)
        sums = np.zeros((*weights.shape[:2], MOST + 1))
        weights.cumsum(axis=2, out=sums[:, :, 1:])
        earlier = sums[each[:, :, None], np.arange(weights.shape[1])[:, None], begins[:, None, :]]
        rows *= last
        found = (sums[:, :, 1:] - earlier) * (rows > 0)[:, None, :]
        return rows[:, None].repeat(len(self._seconds), 1), found.astype(np.float32)

    def state(self) -> tuple[Ints, Ints, Floats]:
        """The pairs that count: of each item the last K."""
        begins, ends = self._begins[:-1], self._begins[1:]
        kept = ranges(np.maximum(begins, ends - MOST), ends)
        items = np.repeat(np.arange(len(begins)), np.minimum(ends - begins, MOST))
        return items, self._picked[kept].astype(np.int64), self._times[kept]

    def _of(self, items: Ints) -> tuple[Ints, Ints]:
        """[N], [N]: the begins and ends of the pairs of items."""
        begins, ends = (self._begins.take(items + more, mode="clip") for more in (0, 1))
        return begins, ends

    def _last(self, moments: Floats, after: Ints) -> tuple[Rows, Floats]:
        """[N, K]: the last picks after each item before each moment, and when they were; 0 where there are fewer."""
        begins, past = self._of(after)
        past = _bisected(self._times, begins, past, moments)
        at = past[:, None] + np.arange(-MOST, 0)
        there = at >= begins[:, None]
        rows, times = np.zeros(at.shape, dtype=np.int32), np.zeros(at.shape)
        rows[there], times[there] = self._picked[at[there]], self._times[at[there]]
        for n, item in enumerate(after.tolist() if self._since else ()):
            if item not in self._since:
                continue
            since = np.frombuffer(self._since[item], dtype=_PICK)
            rows[n], times[n], when = 0, 0.0, since["time"]
            rows[n, MOST - len(since) :], times[n, MOST - len(since) :] = since["row"] * (when < moments[n]), when
        return rows, np.minimum(times, moments[:, None])

    def _last_of(self, item: int) -> bytes:
        (begin,), (end,) = self._of(np.array([item]))
        kept = slice(max(begin, end - MOST), end)
        found = np.empty(len(self._times[kept]), dtype=_PICK)
        found["time"], found["row"] = self._times[kept], self._picked[kept]
        return found.tobytes()


def _bisected(times: Floats, begins: Ints, ends: Ints, moments: Floats) -> Ints:
    """[N]: the first place from `begins` on whose time is not before `moments`, `ends` if there is none.

    In each of these stretches the times increase.
    """
    low, high = begins, ends
    while (apart := low < high).any():
        middle = (low + high) // 2
        earlier = apart & (times.take(middle, mode="clip") < moments)
        low, high = np.where(earlier, middle + 1, low), np.where(apart & ~earlier, middle, high)
    return low
