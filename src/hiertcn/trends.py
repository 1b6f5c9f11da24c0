"""Trends: what everybody picked lately, as it was known at any moment. Ours.

A pick weighs exp(−age / horizon), its age counted from the end of its period. What is known at a moment are the whole
periods before it, and of each horizon the items that weigh most: a log of any length gives a small snapshot a period,
and a log read at once gives the same ones as its events observed one by one.

Legend: E events, B snapshots, H horizons, K items of a horizon, N moments, n items.
"""

from __future__ import annotations

__all__ = ["MOST", "PERIOD", "Trends", "reined"]

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

PERIOD = 60.0
"""Seconds."""
MOST = 64
"""Items of a horizon."""
_RANGE = 300.0
_WEEK = 7 * 86_400
_KEPT = 60


def reined(times: Floats) -> Floats:
    """`times` [E] seconds; of the few events, one in a thousand at most, that come more than a week after all others,
    the end of these: a wrong clock is to make nobody deaf to what is picked until then."""
    ordered = np.sort(times)
    few = max(1, len(times) // 1000)
    far = np.flatnonzero(np.diff(ordered[-few - 1 :]) > _WEEK)
    return np.minimum(times, ordered[-few - 1 :][far[0]]) if len(far) else times


class _Risen(NamedTuple):
    """most: int64 [H, K], the items that weigh most; picks: [H, K], their weights; added: [H, R], to what was picked"""

    most: Ints
    picks: Floats
    added: Floats


class Trends:
    """Nothing was picked yet. horizons: hours, increasing; items: of the catalog."""

    def __init__(self, horizons: Sequence[float], items: int) -> None:
        self._seconds = np.array(horizons, dtype=np.float64) * 3600
        # [H, n + 1]: weights as of the begin of the period `origin`. All fade alike, so their order needs no update.
        self._weights = np.zeros((len(horizons), items + 1))
        self._origin = 0
        self._most = np.zeros((len(horizons), MOST), dtype=np.int64)
        self._fresh = np.zeros(items + 1, dtype=bool)
        # The period that runs, and its picks.
        self._period = 0
        self._picked: list[int] = []
        # What will be found when it ends, if somebody asked.
        self._ended: _Risen | None = None
        # A pick far ahead of the others, and its period.
        self._held: tuple[int, int] | None = None
        # Whether there were snapshots before the first that is kept; it stands for them.
        self._forgot = False
        self._keep(np.zeros(0, dtype=np.int64))

    @classmethod
    def of(cls, horizons: Sequence[float], catalog: int, items: Ints, times: Floats) -> Self:
        """Of events on item rows `items` [E], 0 for none of the catalog, at `times` [E] seconds, in any order."""
        trends = cls(horizons, catalog)
        order = np.argsort(times, kind="stable")
        order = order[items[order] > 0]
        items, periods = items[order], (times[order] // PERIOD).astype(np.int64)
        begins = np.flatnonzero(np.diff(periods, prepend=-1))
        trends._keep(periods[begins] + 1)
        for number, (begin, end) in enumerate(pairwise([*begins.tolist(), len(items)])):
            trends._count(number, items[begin:end])
        return trends

    @classmethod
    def restored(cls, horizons: Sequence[float], catalog: int, weights: Floats, begin: int) -> Self:
        """Go on from what `state` gave; the catalog may have grown."""
        trends = cls(horizons, catalog)
        trends._weights[:, : weights.shape[1]] = weights
        trends._most = np.argsort(-trends._weights, axis=1, kind="stable")[:, :MOST]
        trends._most = np.pad(trends._most, ((0, 0), (0, MOST - trends._most.shape[1])))
        trends._keep(np.array([begin]))
        trends._origin, trends._forgot = begin, True
        trends._count(0, np.zeros(0, dtype=np.int64))
        return trends

    def state(self) -> tuple[Floats, int]:
        """float64 [H, n + 1], the weights of all items after the last period that is over, and that period's end."""
        begin = int(self._periods[-1]) if len(self._periods) else self._origin
        return self._weights * np.exp((self._origin - begin) * PERIOD / self._seconds)[:, None], begin

    def observe(self, row: int, time: float) -> None:
        """Take in one more pick, on item row `row`. One that comes late counts as of the period that runs; so does one
        more than a week ahead, unless the next one is, too."""
        period, held = int(time // PERIOD), self._held
        if self._period and (period - self._period) * PERIOD > _WEEK:
            self._held = (row, period)
            if held is None or abs(period - held[1]) * PERIOD > _WEEK:
                return
            self._go_to(min(held[1], period))
        self._held = None
        for one in (row,) if held is None else (held[0], row):
            self._go_to(period)
            if one:
                self._picked.append(one)
                self._ended = None

    def at(self, moments: Floats) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """int32 [N, H, K] item rows, 0 for none, and float32 [N, H, K], their weights, as known at `moments` [N]
        seconds."""
        begins, rows, picks = self._periods, self._rows, self._picks
        if self._picked and (moments // PERIOD).max(initial=0) > self._period:
            # By then the running period is over. To be asked about tomorrow does not make it tomorrow.
            if self._ended is None:
                self._ended = self._risen(self._period + 1, *np.unique(self._picked, return_counts=True))
            begins = np.append(begins, self._period + 1)
            rows = np.append(rows, self._ended.most[None].astype(np.int32), axis=0)
            picks = np.append(picks, self._ended.picks[None].astype(np.float32), axis=0)
        if not len(begins):
            shape = len(moments), *rows.shape[1:]
            return np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.float32)
        found = np.searchsorted(begins, moments // PERIOD, side="right") - 1
        age = np.where(found < 0, np.inf, moments - begins[found] * PERIOD)
        if self._forgot:
            found, age = np.maximum(found, 0), np.where(found < 0, 0.0, age)
        fade = np.exp(-age[:, None] / self._seconds).astype(np.float32)
        return rows[found], picks[found] * fade[:, :, None]

    def _keep(self, periods: Ints) -> None:
        """Room for snapshots of the begins of `periods` [B]."""
        self._periods = periods
        self._rows = np.zeros((len(periods), len(self._seconds), MOST), dtype=np.int32)
        self._picks = np.zeros(self._rows.shape, dtype=np.float32)

    def _go_to(self, period: int) -> None:
        """End the period that runs if a later one does now. Of observed ones, an hour of snapshots is kept."""
        if period <= self._period:
            return
        if self._picked:
            picked, self._picked, self._ended = np.array(self._picked), [], None
            rows, picks = self._rows[1 - _KEPT :], self._picks[1 - _KEPT :]
            self._forgot |= len(rows) < len(self._rows)
            self._keep(np.append(self._periods[1 - _KEPT :], self._period + 1))
            self._rows[:-1], self._picks[:-1] = rows, picks
            self._count(len(rows), picked)
        self._period = period

    def _count(self, snapshot: int, picked: Ints) -> None:
        """Fill a snapshot, which `picked` are the last picks before."""
        begin = int(self._periods[snapshot])
        rows, counts = np.unique(picked, return_counts=True)
        risen = self._risen(begin, rows, counts)
        self._weights[:, rows] += risen.added
        self._most, self._rows[snapshot], self._picks[snapshot] = risen.most, risen.most, risen.picks
        self._period = max(self._period, begin)

    def _risen(self, begin: int, rows: Ints, counts: Ints) -> _Risen:
        """What the begin of a period finds where distinct `rows` [R] were picked `counts` [R] times since the last."""
        age = (begin - self._origin) * PERIOD / self._seconds
        if age.max() > _RANGE:
            self._weights *= np.exp(-age)[:, None]
            self._origin, age = begin, np.zeros(len(age))
        grown = np.exp(age)
        if (more := int(rows.max(initial=0)) + 1 - len(self._fresh)) > 0:
            # The catalog has grown.
            self._weights, self._fresh = np.pad(self._weights, ((0, 0), (0, more))), np.pad(self._fresh, (0, more))
        # Only what was picked can rise: the others keep their order.
        self._fresh[rows] = True
        kept = np.where(self._fresh[self._most], 0, self._most)
        self._fresh[rows] = False
        some = np.concatenate([kept, np.broadcast_to(rows, (len(kept), len(rows)))], axis=1)
        found: Floats = np.take_along_axis(self._weights, some, 1)
        added: Floats = counts.astype(np.float64) * grown[:, None]
        found[:, kept.shape[1] :] += added
        order = np.lexsort((some, -found))[:, :MOST]
        picks: Floats = np.take_along_axis(found, order, 1) / grown[:, None]
        return _Risen(np.take_along_axis(some, order, 1), picks, added)
