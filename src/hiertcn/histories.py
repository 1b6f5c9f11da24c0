"""The events of one person, out of a cache or a file, as item ids and times."""

from __future__ import annotations

__all__ = ["history_in_cache", "history_in_file"]

from pathlib import Path

from hiertcn.cache import Cache
from hiertcn.columns import Columns
from hiertcn.errors import InputError
from hiertcn.events import read_events
from hiertcn.sessions import SECOND
from hiertcn.tables import Layout

History = tuple[list[str | int], list[float]]


def history_in_cache(cache: Cache, user_id: str) -> History:
    """Item ids and times (seconds) of a user of a prepared log; none for somebody it does not know."""
    found = cache.find(user_id)
    if found is None:
        return [], []
    shard, place = found
    sessions = cache.shard(shard).sessions
    begin, end = sessions.event_offsets[place], sessions.event_offsets[place + 1]
    ids = cache.catalog.items["item_id"].gather(sessions.items[begin:end] - 1)
    return ids.to_list(), (sessions.times[begin:end] / SECOND).tolist()


def history_in_file(path: Path, columns: Columns) -> History:
    """Item ids and times (seconds) of the one person in a log. Raises InputError if there are several."""
    events = read_events(str(path), columns, Layout())
    if len(events.user_ids) > 1:
        raise InputError(
            f"{path} holds events of {len(events.user_ids):,} users, such as {events.user_ids.head(3).to_list()}; "
            "expected those of one person. Leave one user's rows in the file."
        )
    items = events.item_ids.gather(events.frame["item"])
    return items.to_list(), (events.frame["time"].to_numpy() / SECOND).tolist()
