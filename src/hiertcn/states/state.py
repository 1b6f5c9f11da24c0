"""What is known of one user, and its form in a store: facts that outlive a model, and what one model made of them.

The facts are the last events, by item ids and in the order of training: time, then item id (then mark). What the model
made of them is its long-term state, which has read all but the last `unread` of them. Under another model nothing has
been read yet.
"""

from __future__ import annotations

__all__ = [
    "DIGEST",
    "HISTORY",
    "USER",
    "Pick",
    "Status",
    "UserState",
    "digest_in",
    "digest_of_model",
    "forgotten_in",
    "key_of_user",
    "mark_of",
]

import hashlib
import json
import struct
import zlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, Literal, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from hiertcn.errors import ArtifactError
from hiertcn.skew import stated

HISTORY = 128
"""Events that are kept of a user, and more where the long-term state has not read them yet."""
DIGEST = 8
USER = 16
"""Bytes by which a store knows a user."""
_MAGIC, _FORMAT = b"HTCN", 3
# Magic, format, code of the long-term type, digest, previous end, forgotten, events, unread, bytes of long_term, of
# items, of what was shown.
_HEADER = struct.Struct(f"<4sHH{DIGEST}sqqIIIII")
_CHECK = struct.Struct("<I")
_OWNER = struct.calcsize("<4sHH")
_TYPES = (np.dtype("<f4"), np.dtype("<i8"), np.dtype("<f8"))
_NOTHING_READ = len(_TYPES)
_ITEM_SIZE = (4, 8, 8, 1)
_NEVER = np.iinfo(np.int64).min
# Neither can be in an id.
_NEXT_EVENT, _NEXT_ITEM = "\n", "\t"

Status = Literal["applied", "duplicate", "conflict", "late", "expired"]
Order = Callable[[str], Any]
T = TypeVar("T")


class DamagedState(ArtifactError):
    """`value`: what is stored of a user, and is no state."""

    def __init__(self, value: bytes, found: str) -> None:
        super().__init__(_told(found))
        self.value = value


class Pick(NamedTuple):
    """An event of one user. item: its id as text. time: microseconds. mark: of the event's own id, 0 for none. shown:
    ids of items that were shown beside it and not picked."""

    item: str
    time: int
    mark: int = 0
    shown: tuple[str, ...] = ()


def key_of_user(user: str) -> bytes:
    """What a store knows a user by, USER bytes. No store holds an id: what was forgotten leaves no name behind."""
    return hashlib.blake2b(user.encode(), digest_size=USER).digest()


def mark_of(event_id: str) -> int:
    """64 bits, not 0: two of a user's last events share one by chance in one of 10^15 cases."""
    return int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=8).digest(), "little") or 1


def digest_of_model(trained: str, model: dict[str, Any], session_gap: float, longest: int) -> bytes:
    """What a stored state depends on: the weights, how the model reads them, the item rows and the session rule."""
    stated = json.dumps([trained, model, session_gap, longest], sort_keys=True)
    return hashlib.sha256(stated.encode()).digest()[:DIGEST]


@dataclass(frozen=True, eq=False)
class UserState:
    """items, times, marks: [H], the last events in the order of time and item id; as of `Pick`
    shown:        of each event that is not read yet, as of `Pick`; empty where nothing was shown
    unread:       how many of the last events `long_term` has not read
    long_term:    [S], the model's state after the others and all before them; None: nothing was read yet
    previous_end: microseconds: the last event of the latest session with a known item that was read; None without one
    forgotten:    microseconds: events up to then were to be forgotten; None if none were
    """

    items: list[str] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    shown: list[tuple[str, ...]] = field(default_factory=list)
    unread: int = 0
    long_term: npt.NDArray[Any] | None = None
    previous_end: int | None = None
    forgotten: int | None = None

    @property
    def read(self) -> int:
        """How many of the events that are kept `long_term` has read."""
        return len(self.times) - self.unread

    @property
    def latest(self) -> int:
        """Microseconds: the time of the last event, 0 where there is none."""
        return self.times[-1] if self.times else 0

    @property
    def seen(self) -> list[str]:
        """The distinct items of the events, the latest at the end."""
        return list(dict.fromkeys(self.items[::-1]))[::-1]

    def followed_by(self, pick: Pick, order: Order) -> tuple[Self, Status]:
        """The state after one more event, and what became of it.

        order: of item ids, that of the log: it decides between events of one time, as it does when a log is prepared

        "duplicate" and "conflict": an event of the same mark is known, alike or not. "late": the long-term state has
        read past it; it is only remembered. "expired": it is of a time that was to be forgotten.
        """
        if self.forgotten is not None and pick.time <= self.forgotten:
            return self, "expired"
        if pick.mark and pick.mark in self.marks:
            at = self.marks.index(pick.mark)
            return self, "duplicate" if _alike(self.items[at], self.times[at], pick) else "conflict"
        place, key = bisect_left(self.times, pick.time), (order(pick.item), pick.mark)
        while place < len(self.times) and self.times[place] == pick.time:
            if (order(self.items[place]), self.marks[place]) > key:
                break
            place += 1
        late = self.long_term is not None and place <= self.read
        unread, shown = self.unread, self.shown
        if not late:
            unread += 1
            if shown or pick.shown:
                shown = _with(shown or [()] * self.unread, place - self.read, pick.shown)
        kept = max(HISTORY, unread)
        # Not by `replace`, which takes several times as long.
        found = type(self)(
            _with(self.items, place, pick.item)[-kept:],
            _with(self.times, place, pick.time)[-kept:],
            _with(self.marks, place, pick.mark)[-kept:],
            shown,
            unread,
            self.long_term,
            self.previous_end,
            self.forgotten,
        )
        return found, "late" if late else "applied"

    def followed_by_all(self, picks: Sequence[Pick], order: Order) -> tuple[Self, list[Status]]:
        """The same after many events, given in the order that events are kept in, with nothing shown beside them: as
        one by one, but a mark counts once among all of them."""
        if not self.times and self.forgotten is None and len({pick.mark for pick in picks}) == len(picks):
            items, times, marks = [list(column) for column in zip(*picks, strict=True)][:3] if picks else ([], [], [])
            return replace(self, items=items, times=times, marks=marks, unread=len(picks)), ["applied"] * len(picks)
        stored = [Pick(*pick) for pick in zip(self.items, self.times, self.marks, strict=True)]
        beside = self.shown or [()] * self.unread
        read = stored[: self.read]
        unread = [pick._replace(shown=shown) for pick, shown in zip(stored[self.read :], beside, strict=True)]
        begin = _place(unread[0], order) if unread else None
        known = {pick.mark: pick[:2] for pick in stored if pick.mark}
        statuses: list[Status] = []
        for pick in picks:
            if self.forgotten is not None and pick.time <= self.forgotten:
                statuses.append("expired")
            elif pick.mark in known:
                statuses.append("duplicate" if _alike(*known[pick.mark], pick) else "conflict")
            else:
                if pick.mark:
                    known[pick.mark] = pick[:2]
                late = self.long_term is not None and (begin is None or _place(pick, order) < begin)
                statuses.append("late" if late else "applied")
                (read if late else unread).append(pick)
        kept = max(HISTORY, len(unread))
        last = [one for part in (read, unread) for one in sorted(part, key=lambda pick: _place(pick, order))][-kept:]
        found = replace(
            self,
            items=[pick.item for pick in last],
            times=[pick.time for pick in last],
            marks=[pick.mark for pick in last],
            shown=[pick.shown for pick in last[len(last) - len(unread) :]] if self.shown else [],
            unread=len(unread),
        )
        return found, statuses

    def after(self, count: int, long_term: npt.NDArray[Any], previous_end: int | None) -> Self:
        """The state when `long_term` has read `count` more events."""
        unread = self.unread - count
        kept = max(HISTORY, unread)
        shown = self.shown[count:]
        return replace(
            self,
            items=self.items[-kept:],
            times=self.times[-kept:],
            marks=self.marks[-kept:],
            shown=shown if any(shown) else [],
            unread=unread,
            long_term=long_term,
            previous_end=previous_end,
        )

    def unlearned(self) -> Self:
        """The same facts, of which no model has read any."""
        shown = [()] * self.read + self.shown if self.shown else []
        return replace(self, shown=shown, unread=len(self.times), long_term=None, previous_end=None)

    def to_bytes(self, digest: bytes) -> bytes:
        """The state as a value for a store, marked with the DIGEST bytes of the model that `long_term` belongs to."""
        kind, state = _NOTHING_READ, b""
        if self.long_term is not None:
            values = self.long_term.astype(self.long_term.dtype.newbyteorder("<"))
            kind, state = _TYPES.index(values.dtype), values.tobytes()
        items = _NEXT_EVENT.join(self.items).encode()
        shown = _NEXT_EVENT.join(map(_NEXT_ITEM.join, self.shown)).encode()
        sizes = (len(self.times), self.unread, len(state), len(items), len(shown))
        ends = (_NEVER if moment is None else moment for moment in (self.previous_end, self.forgotten))
        head = _HEADER.pack(_MAGIC, _FORMAT, kind, digest, *ends, *sizes)
        columns = (np.array(self.times, dtype="<i8"), np.array(self.marks, dtype="<u8"))
        body = b"".join([head, *(column.tobytes() for column in columns), state, items, shown])
        return body + _CHECK.pack(zlib.crc32(body))

    @classmethod
    def from_bytes(cls, data: bytes, digest: bytes) -> Self:
        """The state in a value of a store; of another model's, the facts. Raises ArtifactError if it is damaged or of
        another format."""
        body, check = data[: -_CHECK.size], data[-_CHECK.size :]
        if len(body) < _HEADER.size or check != _CHECK.pack(zlib.crc32(body)):
            raise DamagedState(data, "is damaged")
        magic, form, kind, owner, end, forgotten, events, unread, *sizes = _HEADER.unpack_from(body)
        if (magic, form) != (_MAGIC, _FORMAT) or kind > _NOTHING_READ:
            raise ArtifactError(_told(f"has format {form}, this version reads format {_FORMAT}"))
        bounds = [*accumulate([_HEADER.size, 8 * events, 8 * events, *sizes])]
        if bounds[-1] != len(body) or unread > events or sizes[0] % _ITEM_SIZE[kind]:
            raise DamagedState(data, "does not have the length it states")
        times, marks, state, items, shown = (body[begin:stop] for begin, stop in pairwise(bounds))
        names = items.decode().split(_NEXT_EVENT) if events else []
        lists = [tuple(text.split(_NEXT_ITEM)) if text else () for text in shown.decode().split(_NEXT_EVENT)]
        lists = lists if shown else []
        if len(names) != events or len(lists) not in (0, unread):
            raise DamagedState(data, "does not agree with itself")
        found = cls(
            names,
            np.frombuffer(times, "<i8").tolist(),
            np.frombuffer(marks, "<u8").tolist(),
            lists,
            unread,
            None if kind == _NOTHING_READ else np.frombuffer(state, _TYPES[kind]),
            None if end == _NEVER else end,
            None if forgotten == _NEVER else forgotten,
        )
        return found if owner == digest else found.unlearned()


def digest_in(data: bytes) -> bytes:
    """Of the model that a stored state's `long_term` belongs to; of a damaged value some bytes."""
    return data[_OWNER : _OWNER + DIGEST]


def forgotten_in(data: bytes) -> int | None:
    """Microseconds: what was stored up to then was to be forgotten; None if none was, or it is damaged or no state."""
    if len(data) < _HEADER.size or data[-_CHECK.size :] != _CHECK.pack(zlib.crc32(data[: -_CHECK.size])):
        return None
    magic, form, _, _, _, forgotten, *_ = _HEADER.unpack_from(data)
    return None if (magic, form) != (_MAGIC, _FORMAT) or forgotten == _NEVER else int(forgotten)


def _place(pick: Pick, order: Order) -> tuple[int, Any, int]:
    """What events are ordered by."""
    return pick.time, order(pick.item), pick.mark


def _alike(item: str, time: int, pick: Pick) -> bool:
    return item == pick.item and stated(time) == stated(pick.time)


def _with(column: list[T], place: int, value: T) -> list[T]:
    return [*column[:place], value, *column[place:]]


def _told(found: str) -> str:
    return (
        f"A user's stored state {found}; expected one that hiertcn wrote. Restore the store from a copy, or delete the "
        "user to begin anew."
    )
