"""What is told and asked of people, checked at the door: events, ids, times, how many items."""

from __future__ import annotations

__all__ = [
    "LATEST",
    "LONGEST_ID",
    "Ask",
    "Event",
    "Id",
    "Time",
    "checked_id",
    "checked_k",
    "key_of",
    "microseconds",
    "pick_of",
    "told",
]

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from hiertcn.catalog import Filter
from hiertcn.errors import InputError
from hiertcn.quarantine import shown
from hiertcn.sessions import SECOND
from hiertcn.states import Pick, mark_of
from hiertcn.states.state import key_of_user

LONGEST_ID = 256
MOST = 500
"""Items that can be asked for at once."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = int(datetime(2200, 1, 1, tzinfo=UTC).timestamp())
"""Seconds since 1970 that no event comes up to."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

Id = str | int
Time = float | int | datetime


class Event(NamedTuple):
    """That `user` picked `item` at `time`.

    event_id: of the event itself, so that it counts once however often it is told
    shown:    the items it was picked from, read by a model that reads impressions: the first 20 that are known (a cache
              keeps 20 of more by chance)
    """

    user: Id
    item: Id
    time: Time
    event_id: str | None = None
    shown: Sequence[Id] = ()


class Ask(NamedTuple):
    """What `user` will pick next; as of `Recommender.recommend`.

    candidates: what to choose of; None: the catalog
    filter:     of that, only items with such values in columns that the catalog keeps
    unstored:   events of the user that are read for this answer and never stored
    """

    user: Id
    k: int = 10
    exclude_seen: bool = False
    time: Time | None = None
    candidates: Sequence[Id] | None = None
    filter: Filter | None = None
    unstored: Sequence[Event] = ()


def key_of(user: Id) -> bytes:
    """What a store knows a user by; as of `key_of_user`. Raises InputError for what can't be an id."""
    return key_of_user(checked_id(user, "user"))


def pick_of(event: Event) -> Pick:
    """An event of its user. Raises InputError unless a log can hold it."""
    item, at = checked_id(event.item, "item"), microseconds(event.time)
    if not isinstance(event.shown, list | tuple):
        raise InputError(f"What was shown is {told(event.shown)}; expected a list of item ids. Give it as one.")
    shown = tuple(checked_id(other, "item") for other in event.shown)
    return Pick(item, at, 0 if event.event_id is None else mark_of(checked_id(event.event_id, "event")), shown)


def checked_k(k: int) -> int:
    """A number of items. Raises InputError unless it is from 1 to 500."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MOST:
        raise InputError(f"k is {told(k)}; expected a whole number from 1 to {MOST}. Ask for so many items.")
    return k


def checked_id(given: Id, what: str) -> str:
    """An id as text. Raises InputError unless it is one that a log can hold."""
    if isinstance(given, int | np.integer) and not isinstance(given, bool) and -(2**63) <= given < 2**63:
        return str(given)
    if isinstance(given, str) and given and not _CONTROL.search(given):
        try:
            if len(given.encode()) <= LONGEST_ID:
                return given
        except UnicodeEncodeError:
            pass
    raise InputError(
        f"The {what} id is {told(given)}; expected a whole number of 64 bits, or a text of 1 to {LONGEST_ID} bytes of "
        "UTF-8 without control characters. Give the id as it stands in the log."
    )


def told(value: object) -> str:
    """A value and its type, for an error; an integer too long for text is not spelled out."""
    spelled = "" if isinstance(value, int) and value.bit_length() > 64 else f"{shown(value)}, "
    return f"{spelled}of type {type(value).__name__}"


def microseconds(time: Time) -> int:
    """A time since 1970. Raises InputError unless it can be one."""
    value = time.item() if isinstance(time, np.generic) else time
    at = 0
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise InputError(f"The time {value} has no zone; expected one, such as datetime.now(timezone.utc). Add it.")
        at = (value - _EPOCH) // timedelta(microseconds=1)
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < LATEST:
        at = round(value * SECOND)
    if not 0 < at < LATEST * SECOND:
        raise InputError(
            f"The time is {told(value)}; expected seconds since 1970 UTC, or a datetime with a zone, after 1970 "
            "began and before 2200. Divide milliseconds by 1000."
        )
    return at
