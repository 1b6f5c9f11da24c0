"""Times that are ahead of the clock here, since the clock of who tells them is fast.

Such an event counts as of now. How many seconds ahead it was stays in its microseconds, which nobody tells over HTTP:
so several keep their order, and one that is told again is known, whatever the clock here shows by then.
"""

from __future__ import annotations

__all__ = ["SKEW", "ahead_of", "clamped", "stated"]

from hiertcn.sessions import SECOND

SKEW = 120
"""Seconds that an event may be ahead."""


def clamped(time: int, now: float) -> float:
    """`time`, or now with how far ahead it is; both in seconds since 1970."""
    return time if time <= now else int(now) + (time - int(now)) / SECOND


def ahead_of(time: int) -> int:
    """Seconds that a time (microseconds) which `clamped` gave was ahead, 0 for one that was not."""
    return time % SECOND


def stated(time: int) -> int:
    """Microseconds: the time that was told, of one that was clamped; any other as it is.

    A log may hold a time within the first 120 µs of a second; nothing but what counts as the same event follows.
    """
    second, ahead = divmod(time, SECOND)
    return (second + ahead) * SECOND if ahead <= SKEW else time
