"""Which items are near each item, and how near: random walks from item to session or user, and from there to item.

Legend: n items, E edges, B baskets (sessions and users), T items of a neighbourhood, H further ones, W walks.
"""

from __future__ import annotations

__all__ = ["Baskets", "Neighbourhoods", "baskets_of", "walked"]

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hiertcn.cache import Cache
from hiertcn.sessions import PARTS

Ints = npt.NDArray[np.int64]
_VISITS = 1 << 22


class Baskets:
    """The bipartite graph of items and what they were picked in. An edge for each pick: of `items` [E], which are below
    `size`, in `baskets` [E]."""

    def __init__(self, items: Ints, baskets: Ints, size: int) -> None:
        self.size = size
        self._baskets, self._from_item = _grouped(items, baskets, size)
        self._items, self._from_basket = _grouped(baskets, items, int(baskets.max(initial=-1)) + 1)

    @property
    def picked(self) -> Ints:
        """The items with an edge."""
        return np.flatnonzero(np.diff(self._from_item))

    def step(self, items: Ints, random: np.random.Generator) -> Ints:
        """From each item to a basket that it is in, and from there to an item that is in it, each edge alike likely."""
        baskets = self._baskets[_any(self._from_item, items, random)]
        return self._items[_any(self._from_basket, baskets, random)]


def baskets_of(cache: Cache, part: str | None, users: bool = False) -> Baskets:
    """What is picked in sessions, and, if asked for, by users: by the events of a part on items of the catalog, or, of
    None, all events on any item."""
    size = cache.manifest.items if part else cache.catalog.items.height
    items, baskets, begin = [], [], 0
    for index in range(len(cache)):
        sessions = cache.shard(index).sessions
        kept = (sessions.items > 0) & (sessions.items <= size)
        if part is not None:
            kept &= sessions.parts == PARTS.index(part)
        for offsets in (sessions.session_offsets, sessions.event_offsets)[: 1 + users]:
            owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            items.append(sessions.items[kept].astype(np.int64))
            baskets.append(owner[kept] + begin)
            begin += len(offsets) - 1
    return Baskets(np.concatenate(items), np.concatenate(baskets), size + 1)


def _grouped(by: Ints, values: Ints, size: int) -> tuple[Ints, Ints]:
    return values[np.argsort(by, kind="stable")], np.concatenate([[0], np.cumsum(np.bincount(by, minlength=size))])


def _any(offsets: Ints, of: Ints, random: np.random.Generator) -> Ints:
    return offsets[of] + (random.random(len(of)) * (offsets[of + 1] - offsets[of])).astype(np.int64)


@dataclass(frozen=True)
class Neighbourhoods:
    """Rows of items; 0 behind the last one.

    near:    int64 [n + 1, T], the most visited items of walks from each item, the most visited first
    weights: float32 [n + 1, T], their visits, divided by their sum (importance pooling, Ying et al., 2018, 3.1)
    further: int64 [n + 1, H], the next most visited ones
    """

    near: Ints
    weights: npt.NDArray[np.float32]
    further: Ints


def walked(graph: Baskets, near: int, further: int, walks: int, steps: int, seed: int) -> Neighbourhoods:
    """From every item W = `walks` walks of so many steps."""
    random, size = np.random.default_rng(seed), graph.size
    found = Neighbourhoods(
        np.zeros((size, near), np.int64), np.zeros((size, near), np.float32), np.zeros((size, further), np.int64)
    )
    begins, block = graph.picked, max(1, _VISITS // (walks * steps))
    for at in range(0, len(begins), block):
        here = starts = np.repeat(begins[at : at + block], walks)
        visits = []
        for _ in range(steps):
            here = graph.step(here, random)
            visits.append(starts * size + here)
        _fill(found, np.concatenate(visits), size)
    sums = found.weights.sum(1, keepdims=True)
    np.divide(found.weights, sums, out=found.weights, where=sums > 0)
    return found


def _fill(found: Neighbourhoods, visits: Ints, size: int) -> None:
    """visits: codes start · size + item, one for each visit."""
    codes, count = np.unique(visits, return_counts=True)
    start, item = np.divmod(codes, size)
    apart = start != item
    start, item, count = start[apart], item[apart], count[apart]
    order = np.lexsort((item, -count, start))
    start, item, count = start[order], item[order], count[order]
    rank = np.arange(len(start)) - np.searchsorted(start, start)
    width = found.near.shape[1]
    kept = rank < width
    found.near[start[kept], rank[kept]] = item[kept]
    found.weights[start[kept], rank[kept]] = count[kept]
    kept = ~kept & (rank < width + found.further.shape[1])
    found.further[start[kept], rank[kept] - width] = item[kept]
