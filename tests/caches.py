"""Caches made of a few users, written as `prepare` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from hiertcn.batching import SessionBatches
from hiertcn.cache import Cache, Manifest, write_cache
from hiertcn.catalog import Catalog
from hiertcn.crowd import Crowd
from hiertcn.sessions import PARTS, SECOND, Sessions, sessionize
from hiertcn.streams import known_rows

LONGEST = 1000

User = tuple[str | int, Sequence[int], Sequence[float], Sequence[str] | str]


def cache_of(
    path: Path, users: Sequence[User], session_gap: float, catalog_size: int | None = None, shards: int = 1
) -> Cache:
    """A cache of `users`: id, item rows, times in seconds, and the part of each event or of all.

    Rows above `catalog_size` (default: the largest row) are items outside the catalog, and 0 is no item.
    """
    width = max([catalog_size or 1, *(row for _, items, _, _ in users for row in items)])
    size = width if catalog_size is None else catalog_size
    pieces = [
        _sessions(users[k * len(users) // shards : (k + 1) * len(users) // shards], session_gap) for k in range(shards)
    ]
    train = np.zeros(width + 1, dtype=np.int64)
    for _, sessions in pieces:
        train += np.bincount(sessions.items[sessions.parts == 0], minlength=width + 1)
    items = pl.DataFrame(
        {"item_id": [f"i{row}" for row in range(1, width + 1)], "title": None, "link": None, "train_events": train[1:]},
        schema={"item_id": pl.String, "title": pl.String, "link": pl.String, "train_events": pl.Int64},
    )
    return write_cache(path, Manifest(session_gap, LONGEST, {"by": "test"}, "s"), Catalog(items, size), pieces)


def _sessions(users: Sequence[User], session_gap: float) -> tuple[pl.Series, Sessions]:
    ids = pl.Series([user for user, _, _, _ in users], dtype=None if users else pl.String)
    rows = np.array([row for _, items, _, _ in users for row in items], dtype=np.int32)
    times = np.array([time * SECOND for _, _, times, _ in users for time in times], dtype=np.int64)
    names = [
        part for _, items, _, parts in users for part in ([parts] * len(items) if isinstance(parts, str) else parts)
    ]
    offsets = np.cumsum([0, *(len(items) for _, items, _, _ in users)])
    sessions = sessionize(offsets, times, session_gap, LONGEST)
    parts = np.array([PARTS.index(name) for name in names], dtype=np.uint8)
    return ids, Sessions(rows, times, parts, sessions, np.searchsorted(sessions, offsets))


def batches_of(
    cache: Cache,
    part: str = "train",
    *,
    rows: int = 3,
    sessions: int = 2,
    chunk: int = 3,
    shuffle: bool = False,
    seed: int = 0,
    users: float = 1.0,
    crowd: Crowd | None = None,
) -> SessionBatches:
    """Batches over the cache's own catalog, small enough that users and sessions are cut."""
    return SessionBatches(
        cache,
        part,
        item_rows=known_rows(cache.catalog),
        rows=rows,
        sessions=sessions,
        chunk=chunk,
        shuffle=shuffle,
        seed=seed,
        users=users,
        crowd=crowd,
    )
