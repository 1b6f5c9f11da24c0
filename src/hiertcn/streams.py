"""What the models read of a shard: positions (an item asked for, then given) in sessions of users.

Legend: P positions, M sessions, U users, T targets.
"""

from __future__ import annotations

__all__ = ["Stream", "crowd_bytes", "crowd_of", "known_rows", "train_sessions"]

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hiertcn.cache import Cache
from hiertcn.catalog import Catalog
from hiertcn.crowd import Crowd, Horizons, bytes_needed
from hiertcn.ranges import ranges
from hiertcn.sessions import PARTS, SECOND, Sessions, begins_session

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def known_rows(catalog: Catalog, known: Catalog | None = None) -> Ints:
    """int64 [rows of `catalog` + 1]: the row each item has in the catalog `known` (default: its own), 0 outside it."""
    rows = np.zeros(catalog.items.height + 1, dtype=np.int64)
    if known is None:
        rows[1 : catalog.size + 1] = np.arange(1, catalog.size + 1)
    else:
        rows[1:] = known.rows(catalog.items["item_id"])
    return rows


def train_sessions(cache: Cache) -> tuple[npt.NDArray[np.int32], Ints, npt.NDArray[np.float64]]:
    """Of each session the events of the train part: item rows int32 [E], offsets [S + 1], ends [S] in seconds."""
    items, lengths, ends = [], [], []
    for index in range(len(cache)):
        sessions = cache.shard(index).sessions
        session = np.repeat(np.arange(len(sessions.session_offsets) - 1), np.diff(sessions.session_offsets))
        kept = (sessions.parts == PARTS.index("train")) & (sessions.items > 0)
        kept &= sessions.items <= cache.manifest.items
        held = np.bincount(session[kept], minlength=len(sessions.session_offsets) - 1)
        last = np.flatnonzero(kept)[np.cumsum(held)[held > 0] - 1]
        items.append(sessions.items[kept])
        lengths.append(held[held > 0])
        ends.append(sessions.times[last] / SECOND)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return np.concatenate(items).astype(np.int32), offsets.astype(np.int64), np.concatenate(ends)


def crowd_of(cache: Cache, part: str, rows: Ints, horizons: Horizons) -> Crowd | None:
    """What a model may know, at events of `part`, of what everybody picked before: events of that part and of those
    before it, so that training learns nothing of validation, nor either of test. None without horizons.

    rows: as of `known_rows`
    """
    if not any(horizons):
        return None
    items, before, times = [], [], []
    for index in range(len(cache)):
        sessions = cache.shard(index).sessions
        row = np.where(sessions.parts <= PARTS.index(part), rows[sessions.items], 0).astype(np.int32)
        begins = np.repeat(sessions.session_offsets[:-1], np.diff(sessions.session_offsets))
        latest = np.maximum.accumulate(np.where(row > 0, np.arange(len(row)), -1))
        latest = np.append(-1, latest)[:-1]
        items.append(row)
        before.append(np.where(latest >= begins, row[latest], 0))
        times.append(sessions.times / SECOND)
    return Crowd.of(horizons, int(rows.max()), np.concatenate(items), np.concatenate(before), np.concatenate(times))


def crowd_bytes(cache: Cache, horizons: Horizons) -> int:
    """Of memory that two crowds of the log take, at most."""
    if not any(horizons):
        return 0
    times = [cache.shard(index).sessions.times for index in range(len(cache))]
    seconds = float(max(part.max() for part in times) - min(part.min() for part in times)) / SECOND
    return bytes_needed(horizons, cache.manifest.events, seconds)


@dataclass(frozen=True)
class Stream:
    """Positions of a shard's users.

    An event on an item outside the catalog is no input; it holds its session together, and if it is a target it is
    asked where it happened: before the next known item of the session, or at a position of row 0 at the session's end.
    A session of such events alone is never folded, and gaps are counted from the session before it.

    items:           int64 [P]      seen: float64 [P], seconds (see SessionBatch)
    session_offsets: int64 [M+1]    gaps: float32 [M]      user_offsets: int64 [U+1], users without positions included
    positions, targets, events: int64 [T], in the order of positions; `events` are places in the shard
    shown:           int32 [S], item rows; what was shown at target t are those from shown_begins[t] on, shown_counts[t]
    skip_begins, skip_counts: int64 [P], the same of the event that gives the item of each position
    """

    items: Ints
    seen: npt.NDArray[np.float64]
    session_offsets: Ints
    gaps: npt.NDArray[np.float32]
    user_offsets: Ints
    positions: Ints
    targets: Ints
    events: Ints
    shown: npt.NDArray[np.int32]
    shown_begins: Ints
    shown_counts: Ints
    skip_begins: Ints
    skip_counts: Ints

    @classmethod
    def of(cls, sessions: Sessions, rows: Ints, part: str, session_gap: float, longest: int) -> Stream:
        """The events of users as positions. Of a session that begins only because the one before it held `longest`
        events a model knows no more than within one: its begin is the time of the event before, its gap is 0.

        For "train": the events of the train part, each a target. Otherwise: every event of the users with events in
        `part`, whatever part it is in, up to their last one there; the targets are those of `part`."""
        asked = sessions.parts == PARTS.index(part)
        if part == "train":
            kept = asked
            # What is outside the catalog can't be learned.
            asked = asked & (rows[sessions.items] > 0)
        else:
            ends, events = np.append(asked.nonzero()[0], -1), sessions.event_offsets
            last = ends[ends[:-1].searchsorted(events[1:]) - 1]
            kept = np.arange(len(asked)) <= last.repeat(events[1:] - events[:-1])
        sizes = sessions.session_offsets[1:] - sessions.session_offsets[:-1]
        session = np.arange(len(sizes)).repeat(sizes)[kept]
        items = rows[sessions.items[kept]]
        times = sessions.times[kept] / SECOND
        known, asked = items > 0, asked[kept]
        count = np.bincount(session, minlength=len(sizes))
        begins = count.cumsum() - count
        step = known.cumsum() - known
        step -= step[begins[session]]
        held = np.bincount(session[known], minlength=len(sizes))
        goes_on = _going_on(sessions, sizes, held, session_gap, longest)
        trailing = np.zeros(len(sizes), dtype=np.int64)
        trailing[session[asked & ~known & (step == held[session])]] = 1
        lengths = held + trailing
        place = (lengths.cumsum() - lengths)[session] + step
        events = kept.nonzero()[0][asked]
        offsets = np.zeros(len(kept) + 1, dtype=np.int64) if sessions.shown_offsets is None else sessions.shown_offsets
        size, given, there, filled = int(lengths.sum()), kept.nonzero()[0][known], place[known], lengths > 0
        first = np.zeros(len(sizes))
        first[count > 0] = times[begins[count > 0]]
        first[goes_on] = sessions.times[sessions.session_offsets[goes_on] - 1] / SECOND
        gaps = _gaps(times, count, begins, held, sessions.user_offsets)
        gaps[goes_on] = 0
        return cls(
            items=_scattered(items[known], there, size),
            seen=_seen(times[known], there, lengths, first),
            session_offsets=_offsets(lengths[filled]),
            gaps=gaps[filled],
            user_offsets=_offsets(filled)[sessions.user_offsets],
            positions=place[asked],
            targets=items[asked],
            events=events,
            shown=rows[sessions.shown].astype(np.int32),
            shown_begins=offsets[events],
            shown_counts=offsets[events + 1] - offsets[events],
            skip_begins=_scattered(offsets[given], there, size),
            skip_counts=_scattered(offsets[given + 1] - offsets[given], there, size),
        )

    def skipped(self, positions: Ints) -> tuple[Ints, Ints]:
        """int64 [K] item rows that were shown beside the items at `positions` [p] and not picked, and int64 [K], which
        of the p each is of."""
        begins, counts = self.skip_begins[positions], self.skip_counts[positions]
        rows = self.shown[ranges(begins, begins + counts)]
        of = np.repeat(np.arange(len(positions)), counts)
        return rows[rows > 0].astype(np.int64), of[rows > 0]


def _scattered(values: Ints, place: Ints, size: int) -> Ints:
    out = np.zeros(size, dtype=np.int64)
    out[place] = values
    return out


def _offsets(counts: npt.NDArray[Any]) -> Ints:
    """int64 [n + 1]: where each of the parts of so many begins, and the end."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    counts.cumsum(out=offsets[1:])
    return offsets


def _seen(times: Floats, place: Ints, lengths: Ints, first: Floats) -> Floats:
    """float64 [P], of known items at `times` and `place`; first: [M], what is known of time where a session begins."""
    size, ends = int(lengths.sum()), lengths.cumsum()
    seen = np.empty(size + 1)
    seen[place + 1] = times
    filled = lengths > 0
    seen[(ends - lengths)[filled]] = first[filled]
    return seen[:size]


def _going_on(sessions: Sessions, sizes: Ints, held: Ints, session_gap: float, longest: int) -> Ints:
    """The sessions that begin only because the one before them, of the same user, was full, and held a known item."""
    after = (sizes[:-1] >= longest).nonzero()[0] + 1
    if not len(after):
        return after
    begins = sessions.session_offsets[after]
    goes_on = (held[after - 1] > 0) & ~np.isin(after, sessions.user_offsets)
    goes_on &= ~begins_session(sessions.times[begins - 1], sessions.times[begins], session_gap)
    return after[goes_on]


def _gaps(times: Floats, count: Ints, begins: Ints, held: Ints, user_offsets: Ints) -> npt.NDArray[np.float32]:
    """float32 [M]: seconds from the end of the user's last session that held a known item; 0 where there is none."""
    sessions = np.arange(len(count))
    latest = np.full(len(count) + 1, -1)
    np.maximum.accumulate(np.where(held > 0, sessions, -1), out=latest[1:])
    latest = latest[:-1]
    first = user_offsets[user_offsets.searchsorted(sessions, side="right") - 1]
    (follows,) = ((latest >= first) & (count > 0)).nonzero()
    previous = latest[follows]
    gaps = np.zeros(len(count), dtype=np.float32)
    gaps[follows] = times[begins[follows]] - times[begins[previous] + count[previous] - 1]
    return gaps
