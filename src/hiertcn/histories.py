"""The events of one person, out of a cache or a file, as item ids, times and sessions."""

from __future__ import annotations

__all__ = ["History", "history_in_cache", "history_in_file"]

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hiertcn.cache import Cache
from hiertcn.columns import Columns
from hiertcn.errors import InputError
from hiertcn.events import read_events
from hiertcn.sessions import SECOND
from hiertcn.tables import Layout


class History(NamedTuple):
    """As `Recommender.recommend_history` takes them. times: seconds; sessions: None where the gap tells them apart.
    shown: of each event what was shown; None where nothing is known of that."""

    items: list[str | int]
    times: list[float]
    sessions: list[int] | None
    shown: list[list[str | int]] | None = None


def history_in_cache(cache: Cache, user_id: str) -> History:
    """Of a user of a prepared log, in its own sessions; empty for somebody it does not know."""
    found = cache.find(user_id)
    if found is None:
        return History([], [], None)
    shard, place = found
    whole = cache.shard(shard).sessions
    one = whole.users(place, place + 1)
    ids = cache.catalog.items["item_id"].gather(one.items - 1)
    shown = None
    if one.shown_offsets is not None:
        beside = cache.catalog.items["item_id"].gather(one.shown - 1).to_list()
        shown = [beside[begin:end] for begin, end in pairwise(one.shown_offsets.tolist())]
    sessions = np.repeat(np.arange(len(one.session_offsets) - 1), np.diff(one.session_offsets))
    return History(ids.to_list(), (one.times / SECOND).tolist(), sessions.tolist(), shown)


def history_in_file(
    path: Path, columns: Columns, layout: Layout, time_unit: str | None = None, tz: str | None = None
) -> History:
    """Of the one person in a log, which need not have a column of users. Raises InputError if there are several."""
    events = read_events(str(path), columns, layout, time_unit=time_unit, tz=tz, one_user=True)
    if len(events.user_ids) > 1:
        raise InputError(
            f"{path} holds events of {len(events.user_ids):,} users, such as {events.user_ids.head(3).to_list()}; "
            "expected those of one person. Leave one user's rows in the file."
        )
    items = events.item_ids.gather(events.frame["item"])
    sessions = events.frame["session"].to_list() if "session" in events.frame.columns else None
    return History(items.to_list(), (events.frame["time"].to_numpy() / SECOND).tolist(), sessions)
