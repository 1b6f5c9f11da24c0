"""What the models read of a shard: positions (an item asked for, then given) in sessions of users.

Legend: P positions, M sessions, U users, T targets.
"""

from __future__ import annotations

__all__ = ["Stream", "crowd_bytes", "crowd_of", "known_rows", "train_sessions"]

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hiertcn.cache import Cache
from hiertcn.catalog import Catalog
from hiertcn.crowd import Crowd, Horizons, bytes_needed
from hiertcn.ranges import ranges
from hiertcn.sessions import PARTS, SECOND, Sessions, begins_session

Ints = npt.NDArray[np.int64]


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
            ends = np.concatenate([np.flatnonzero(asked), [-1]])
            last = ends[np.searchsorted(ends[:-1], sessions.event_offsets[1:], side="left") - 1]
            kept = np.arange(len(asked)) <= np.repeat(last, np.diff(sessions.event_offsets))
        session = np.repeat(np.arange(len(sessions.session_offsets) - 1), np.diff(sessions.session_offsets))[kept]
        items = rows[sessions.items[kept]]
        times = sessions.times[kept] / SECOND
        known, asked = items > 0, asked[kept]
        count = np.bincount(session, minlength=len(sessions.session_offsets) - 1)
        begins = np.cumsum(count) - count
        step = np.cumsum(known) - known
        step -= step[begins[session]]
        held = np.bincount(session[known], minlength=len(count))
        cut = np.append(False, np.diff(sessions.session_offsets) >= longest)[: len(count)]
        cut[sessions.user_offsets[:-1][np.diff(sessions.user_offsets) > 0]] = False
        cut[1:] &= held[:-1] > 0
        begin, before = (sessions.times[np.maximum(sessions.session_offsets[:-1] - back, 0)] for back in (0, 1))
        cut &= ~begins_session(before, begin, session_gap)
        trailing = np.zeros(len(count), dtype=np.int64)
        trailing[session[asked & ~known & (step == held[session])]] = 1
        lengths = held + trailing
        place = (np.cumsum(lengths) - lengths)[session] + step
        events = np.flatnonzero(kept)[asked]
        offsets = np.zeros(len(kept) + 1, dtype=np.int64) if sessions.shown_offsets is None else sessions.shown_offsets
        size, given = int(lengths.sum()), np.flatnonzero(kept)[known]
        return cls(
            items=_scattered(items[known], place[known], size),
            seen=_seen(times, place, known, lengths, np.where(cut, before / SECOND, _first(times, begins, count))),
            session_offsets=np.concatenate([[0], np.cumsum(lengths[lengths > 0])]),
            gaps=np.where(cut, np.float32(0), _gaps(times, count, begins, held, sessions.user_offsets))[lengths > 0],
            user_offsets=np.concatenate([[0], np.cumsum(lengths > 0)])[sessions.user_offsets],
            positions=place[asked],
            targets=items[asked],
            events=events,
            shown=rows[sessions.shown].astype(np.int32),
            shown_begins=offsets[events],
            shown_counts=offsets[events + 1] - offsets[events],
            skip_begins=_scattered(offsets[given], place[known], size),
            skip_counts=_scattered(offsets[given + 1] - offsets[given], place[known], size),
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


def _seen(
    times: npt.NDArray[np.float64],
    place: Ints,
    known: npt.NDArray[np.bool_],
    lengths: Ints,
    first: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """float64 [P]; first: [M], what is known of time where a session begins."""
    size = int(lengths.sum())
    seen = np.empty(size + 1)
    seen[place[known] + 1] = times[known]
    starts = (np.cumsum(lengths) - lengths)[lengths > 0]
    seen[starts] = first[lengths > 0]
    return seen[:size]


def _first(times: npt.NDArray[np.float64], begins: Ints, count: Ints) -> npt.NDArray[np.float64]:
    """[M]: the time of each session's first event; 0 of one without events."""
    first = np.zeros(len(count))
    first[count > 0] = times[begins[count > 0]]
    return first


def _gaps(
    times: npt.NDArray[np.float64], count: Ints, begins: Ints, held: Ints, user_offsets: Ints
) -> npt.NDArray[np.float32]:
    """float32 [M]: seconds from the end of the user's last session that held a known item; 0 where there is none."""
    sessions = np.arange(len(count))
    latest = np.maximum.accumulate(np.where(held > 0, sessions, -1))
    latest = np.concatenate([[-1], latest[:-1]])[: len(count)]
    first = user_offsets[np.searchsorted(user_offsets, sessions, side="right") - 1]
    follows = (latest >= first) & (count > 0)
    previous = latest[follows]
    gaps = np.zeros(len(count), dtype=np.float32)
    gaps[follows] = times[begins[follows]] - times[begins[previous] + count[previous] - 1]
    return gaps
