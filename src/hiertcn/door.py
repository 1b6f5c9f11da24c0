"""What is asked about one person, checked at the door: ids and times."""

from __future__ import annotations

__all__ = ["Id", "Time", "checked_id", "microseconds", "told"]

import re
from datetime import UTC, datetime, timedelta

import numpy as np

from hiertcn.errors import InputError
from hiertcn.quarantine import shown
from hiertcn.sessions import SECOND

LONGEST_ID = 256
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = int(datetime(2200, 1, 1, tzinfo=UTC).timestamp())
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

Id = str | int
Time = float | int | datetime


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
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _LATEST:
        at = round(value * SECOND)
    if not 0 < at < _LATEST * SECOND:
        raise InputError(
            f"The time is {told(value)}; expected seconds since 1970 UTC, or a datetime with a zone, after 1970 "
            "began and before 2200. Divide milliseconds by 1000."
        )
    return at
