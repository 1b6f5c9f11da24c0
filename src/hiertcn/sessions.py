"""The one session rule, and sessions as ragged arrays.

Legend: U users, M sessions, N events. Times are int64 microseconds since 1970 UTC, here and in the cache.
"""

from __future__ import annotations

__all__ = ["PARTS", "SECOND", "Sessions", "begins_session", "sessionize"]

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hiertcn.ranges import ranges

SECOND = 1_000_000
PARTS = ("train", "valid", "test")


def begins_session(previous: Any, time: Any, session_gap: float) -> Any:
    """Whether an event at `time` begins a new session after an event at `previous` (microseconds; scalars or arrays).

    A gap of exactly `session_gap` seconds begins one.
    """
    return time - previous >= session_gap * SECOND


def sessionize(
    user_offsets: npt.NDArray[np.int64],
    times: npt.NDArray[np.int64],
    session_gap: float,
    longest: int,
    keys: npt.NDArray[Any] | None = None,
) -> npt.NDArray[np.int64]:
    """Offsets [M+1] of the sessions of users whose events, in time order, lie at `user_offsets` [U+1] of `times` [N].

    With `keys` [N] (the log's own session column) a session begins where the key changes between two consecutive events
    of a user; otherwise where `begins_session` says so. A session of more than `longest` events is cut after every
    `longest`, so that what is read of a running one has an end.
    """
    starts = np.ones(len(times) + 1, dtype=bool)
    if len(times):
        starts[1:-1] = begins_session(times[:-1], times[1:], session_gap) if keys is None else keys[1:] != keys[:-1]
        starts[user_offsets] = True
    (offsets,) = starts.nonzero()
    lengths = offsets[1:] - offsets[:-1]
    if lengths.max(initial=0) <= longest:
        return offsets.astype(np.int64, copy=False)
    pieces = -(-lengths // longest)
    cut = offsets[:-1].repeat(pieces) + longest * ranges(np.zeros_like(pieces), pieces)
    return np.append(cut, len(times)).astype(np.int64, copy=False)


@dataclass(frozen=True)
class Sessions:
    """Sessions of many users: users whole, sessions and events in time order.

    items:           int32 [N], item rows; 0 is no item
    times:           int64 [N], microseconds
    parts:           uint8 [N], index into PARTS
    session_offsets: int64 [M+1], into events
    user_offsets:    int64 [U+1], into sessions
    shown:           int32 [S], item rows that were shown beside the item of an event and not picked
    shown_offsets:   int64 [N+1], into `shown`; None where nothing is known of what was shown
    """

    items: npt.NDArray[np.int32]
    times: npt.NDArray[np.int64]
    parts: npt.NDArray[np.uint8]
    session_offsets: npt.NDArray[np.int64]
    user_offsets: npt.NDArray[np.int64]
    shown: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    shown_offsets: npt.NDArray[np.int64] | None = None

    @property
    def event_offsets(self) -> npt.NDArray[np.int64]:
        """int64 [U+1], where the events of each user lie."""
        return self.session_offsets[self.user_offsets]

    def users(self, first: int, last: int) -> Sessions:
        """The users from `first` up to, not with, `last`; events are views."""
        sessions = self.user_offsets[first : last + 1]
        events = self.session_offsets[sessions[0] : sessions[-1] + 1]
        begin, end = int(events[0]), int(events[-1])
        mine = slice(begin, end)
        shown, offsets = self.shown, self.shown_offsets
        if offsets is not None:
            offsets = offsets[begin : end + 1]
            shown, offsets = shown[offsets[0] : offsets[-1]], offsets - offsets[0]
        return Sessions(
            self.items[mine],
            self.times[mine],
            self.parts[mine],
            events - events[0],
            sessions - sessions[0],
            shown,
            offsets,
        )
