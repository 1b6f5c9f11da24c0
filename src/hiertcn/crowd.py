"""The crowd: what everybody picked lately, of all items (trends) and next after one item (follows). Ours.

Legend: E events, P pairs of an item and the one picked next in its session, C columns: one for each
horizon of the trends and of the follows, K items of a column, N moments.
"""

from __future__ import annotations

__all__ = ["Crowd", "Horizons", "bytes_needed"]

from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from hiertcn.follows import Follows
from hiertcn.trends import MOST, PERIOD, Floats, Ints, Trends, reined

_STATE = {"weights": ("float64", 2), "begin": ("int64", 0)}
_STATE |= {"items": ("int64", 1), "picked": ("int64", 1), "times": ("float64", 1)}
# Minutes, of the year 2200; picks.
_LATEST, _HEAVIEST = 121_000_000, 1e12
# Of an event while it is read: rows, time, order, and copies of them; of an item of a snapshot: row and weight.
_READ, _SNAPSHOT = 96, 8


class Horizons(NamedTuple):
    """Hours, increasing: a pick counts exp(−age / horizon)."""

    trends: tuple[float, ...] = ()
    follows: tuple[float, ...] = ()


def bytes_needed(horizons: Horizons, events: int, seconds: float) -> int:
    """Of memory, at most, while the second of two crowds is read that hear so many events over so many seconds."""
    snapshots = int(min(events, seconds / PERIOD + 1)) * len(horizons.trends)
    return events * _READ + 2 * snapshots * MOST * _SNAPSHOT


class Crowd:
    """items: of the catalog. Nothing was picked yet."""

    def __init__(self, horizons: Horizons, items: int) -> None:
        none = np.zeros(0, dtype=np.int64)
        self.horizons = horizons
        self._trends = Trends(horizons.trends, items)
        self._follows = Follows(horizons.follows, none, none, none.astype(np.float64))

    @classmethod
    def of(cls, horizons: Horizons, catalog: int, items: Ints, before: Ints, times: Floats) -> Self:
        """Of events on item rows `items` [E], 0 for none of the catalog, at `times` [E] seconds, in any order; `before`
        [E]: the row picked before each in its session, 0 for none."""
        crowd, times = cls(horizons, catalog), reined(times)
        paired = (before > 0) & (items > 0)
        if horizons.trends:
            crowd._trends = Trends.of(horizons.trends, catalog, items, times)
        if horizons.follows:
            crowd._follows = Follows(horizons.follows, before[paired], items[paired], times[paired])
        return crowd

    @classmethod
    def restored(cls, horizons: Horizons, catalog: int, state: dict[str, npt.NDArray[Any]]) -> Self:
        """Go on from what `state` gave; the catalog may have grown. Raises ValueError or KeyError if it can't be."""
        for name, (kind, dimensions) in _STATE.items():
            if (state[name].dtype.name, state[name].ndim) != (kind, dimensions) or not np.isfinite(state[name]).all():
                raise ValueError(f"{name} should be {kind} in {dimensions} dimensions, and finite")
        weights, begin = state["weights"], int(state["begin"])
        if not (0 <= begin < _LATEST and (weights >= 0).all() and weights.max(initial=0) <= _HEAVIEST):
            raise ValueError("the trends are of no time or weight that can be")
        if len(weights) != len(horizons.trends) or weights.shape[1] > catalog + 1:
            raise ValueError("the trends are not of these horizons and items")
        crowd = cls(horizons, catalog)
        if horizons.trends:
            crowd._trends = Trends.restored(horizons.trends, catalog, weights, begin)
        if horizons.follows:
            items, picked, times = (state[name] for name in ("items", "picked", "times"))
            rows = np.concatenate([items, picked])
            if not len(items) == len(picked) == len(times) or (rows != rows.clip(1, catalog)).any():
                raise ValueError("the pairs are not of these items")
            crowd._follows = Follows(horizons.follows, items, picked, times)
        return crowd

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """What of all that `of` was given still counts at its end."""
        weights, begin = self._trends.state()
        items, picked, times = self._follows.state()
        return {"weights": weights, "begin": np.array(begin), "items": items, "picked": picked, "times": times}

    def observe(self, row: int, time: float, before: int) -> None:
        """Take in one more pick, at `time` seconds; `before`: what the same person picked before in the session."""
        if self.horizons.trends:
            self._trends.observe(row, time)
        if self.horizons.follows and row and before:
            self._follows.observe(row, time, before)

    def at(self, moments: Floats, after: Ints) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """int32 [N, C, K] item rows, 0 for none, and float32 [N, C, K], their weights, as known at `moments` [N]
        seconds to people who picked item rows `after` [N] last, 0 for none."""
        columns = []
        if self.horizons.trends:
            columns.append(self._trends.at(moments))
        if self.horizons.follows:
            columns.append(self._follows.at(moments, after))
        rows, weights = (np.concatenate(parts, axis=1) for parts in zip(*columns, strict=True))
        return rows, weights
