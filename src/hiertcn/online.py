"""From what is known of people to what models read: a Stream of the events still to be read and of one asked about.

Events that come late have to find the session they belong to still open, so a session is folded into the long-term
state only when no event within the allowed lateness can change it: the next one began longer ago than that.

Legend: U users, E events of all of them, S size of the long-term state.
"""

from __future__ import annotations

__all__ = ["Known", "Online", "Reader"]

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, compress
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hiertcn.crowd import Crowd
from hiertcn.impressions import MOST as MOST_SHOWN
from hiertcn.sessions import PARTS, SECOND, Sessions, begins_session, sessionize
from hiertcn.states import UserState
from hiertcn.streams import Ints, Stream

Rows = npt.NDArray[np.int32]
# Where a clock stands still no event would ever be late: of more than these, sessions that are over are settled.
_MOST_UNREAD = 2_048


class Known(Protocol):
    """Items by their rows, 1 … size, of which there may be more each time."""

    @property
    def size(self) -> int:
        """The last row."""

    def rows(self, items: Sequence[str]) -> Rows:
        """int32 [len(items)]: the rows of items, 0 of those that are not known."""

    def stored(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Rows as they are kept in stored states."""

    def restored(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What `stored` gave as rows again."""


class Reader(Protocol):
    """A trained model, for people rather than parts of a log. Its computations may be torch's or another's. repeats: so
    many rows of last items stand at the end of its states."""

    repeats: int

    @property
    def reads_impressions(self) -> bool:
        """Whether what was shown beside earlier events changes its queries."""

    def zero_state(self, users: int) -> npt.NDArray[Any]:
        """[users, S]: the state of a person before the first session."""

    def fold(self, stream: Stream, initial: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[U, S]: the states after each user's finished sessions, from `initial` [U, S]."""

    def encode(self, stream: Stream, initial: npt.NDArray[Any], crowd: Crowd | None = None) -> npt.NDArray[Any]:
        """[T, Q]: the queries of the positions asked for."""


class _Settled(NamedTuple):
    """So many of the events to be read no late one can change; `next`: when the one after them was."""

    events: int
    next: int


class Online:
    """session_gap, longest: when a session is over, as of `sessionize`; lateness: seconds"""

    def __init__(self, reader: Reader, catalog: Known, session_gap: float, longest: int, lateness: float) -> None:
        self._reader, self._catalog = reader, catalog
        self._gap, self._longest, self._lateness = session_gap, longest, round(lateness * SECOND)
        self._rows = np.arange(catalog.size + 1)

    def kept_of(self, item: str, shown: Sequence[str]) -> tuple[str, ...]:
        """The first of the items shown that a model reads beside the one picked; none where it reads none."""
        if not self._reader.reads_impressions:
            return ()
        others = [other for other in dict.fromkeys(shown) if other != item]
        return tuple(compress(others, self._catalog.rows(others)))[:MOST_SHOWN]

    def asked(self, states: Sequence[UserState], moments: Ints, keys: Ints | None = None) -> Stream:
        """The events of users that are still to be read, and one asked for at `moments` [U] microseconds, on row 0.

        keys: [E], the sessions of those events, of which each user's last one still runs; None: by the rule
        """
        begins = np.array([0, *accumulate(state.unread + 1 for state in states)])
        asked = begins[1:] - 1
        there = np.ones(begins[-1], dtype=bool)
        there[asked] = False
        times, items = np.empty(len(there), dtype=np.int64), np.zeros(len(there), dtype=np.int32)
        times[there] = [time for state in states for time in state.times[state.read :]]
        times[asked] = moments
        items[there] = self._catalog.rows([item for state in states for item in state.items[state.read :]])
        if keys is not None:
            ends = asked - np.arange(len(asked))
            keys = np.insert(keys, ends, keys[np.maximum(ends - 1, 0)])
        parts = np.where(there, np.uint8(0), np.uint8(PARTS.index("test")))
        offsets = sessionize(begins, times, self._gap, self._longest, keys)
        shown, shown_offsets = self._shown(states, there)
        whole = Sessions(items, times, parts, offsets, offsets.searchsorted(begins), shown, shown_offsets)
        if len(self._rows) <= self._catalog.size:
            self._rows = np.arange(self._catalog.size + 1)
        stream = Stream.of(whole, self._rows, "test", self._gap, self._longest)
        return self._after_what_was_read(stream, states, times[begins[:-1]])

    def _shown(self, states: Sequence[UserState], there: npt.NDArray[np.bool_]) -> tuple[Rows, Ints | None]:
        if not any(state.shown for state in states):
            return np.empty(0, dtype=np.int32), None
        lists = [beside for state in states for beside in (state.shown or [()] * state.unread)]
        counts = np.zeros(len(there), dtype=np.int64)
        counts[there] = [len(beside) for beside in lists]
        rows = self._catalog.rows([item for beside in lists for item in beside])
        return rows, np.concatenate([[0], np.cumsum(counts)])

    def _after_what_was_read(self, stream: Stream, states: Sequence[UserState], begun: Ints) -> Stream:
        """The gaps from what was read to each user's first session; `begun` [U]: when that began."""
        read = [user for user, state in enumerate(states) if state.previous_end is not None]
        if not read:
            return stream
        end = np.array([states[user].previous_end for user in read], dtype=np.int64)
        first = stream.user_offsets[read]
        place = stream.session_offsets[first]
        seen, gaps = stream.seen.copy(), stream.gaps.copy()
        # It began because the one before was full; see Stream.of.
        goes_on = ~begins_session(end, begun[read], self._gap) & (seen[place] == begun[read] / SECOND)
        gaps[first] = np.where(goes_on, 0.0, seen[place] - end / SECOND)
        seen[place] = np.where(goes_on, end / SECOND, seen[place])
        return replace(stream, seen=seen, gaps=gaps)

    def initial(self, states: Sequence[UserState]) -> npt.NDArray[Any]:
        """[U, S]: a copy of the long-term states."""
        initial = self._reader.zero_state(len(states))
        for user, state in enumerate(states):
            if state.long_term is not None:
                initial[user] = state.long_term
        if (last := self._reader.repeats) and len(states):
            initial[:, -last:] = self._catalog.restored(initial[:, -last:])
        return initial

    def folded(self, states: Sequence[UserState]) -> list[UserState]:
        """The states when the long-term ones have read all sessions that no late event can change."""
        found = {user: settled for user, state in enumerate(states) if (settled := self._settled(state)) is not None}
        if not found:
            return list(states)
        parts = [_first(states[user], settled.events) for user, settled in found.items()]
        stream = self.asked(parts, np.array([settled.next for settled in found.values()]))
        after = self._reader.fold(stream, self.initial(parts))
        if last := self._reader.repeats:
            after[:, -last:] = self._catalog.stored(after[:, -last:])
        out = list(states)
        for part, long_term, (user, settled) in zip(parts, after, found.items(), strict=True):
            out[user] = states[user].after(settled.events, long_term, self._end(part))
        return out

    def _settled(self, state: UserState) -> _Settled | None:
        many = state.unread > max(_MOST_UNREAD, 2 * self._longest)
        if not state.unread or not (many or state.times[state.read] < state.times[-1] - self._lateness):
            return None
        times = np.array(state.times[state.read :])
        begins = sessionize(np.array([0, len(times)]), times, self._gap, self._longest)[1:-1]
        over = begins if many else begins[times[begins] < times[-1] - self._lateness]
        return _Settled(int(over[-1]), int(times[over[-1]])) if len(over) else None

    def _end(self, part: UserState) -> int | None:
        """Microseconds: the last event of the latest session with a known item."""
        times, known = np.array(part.times), self._catalog.rows(part.items) > 0
        offsets = sessionize(np.array([0, len(times)]), times, self._gap, self._longest)
        holding = np.flatnonzero(np.add.reduceat(known, offsets[:-1]))
        return int(times[offsets[holding[-1] + 1] - 1]) if len(holding) else part.previous_end


def _first(state: UserState, count: int) -> UserState:
    """As if the first `count` of the events to be read were all."""
    events = slice(state.read, state.read + count)
    return replace(
        state,
        items=state.items[events],
        times=state.times[events],
        marks=state.marks[events],
        shown=state.shown[:count],
        unread=count,
    )
