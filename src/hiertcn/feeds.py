"""What the graphs of an exported model read of a stream, in NumPy: sessions to fold, windows to encode.

Legend: P positions, M sessions, U users, F folded sessions, T asked places, L positions of a window, D what is read of
an item, S long-term state, W rows of last items, n items.
"""

from __future__ import annotations

__all__ = ["Folds", "Windows", "last_items"]

from typing import Any

import numpy as np
import numpy.typing as npt

from hiertcn.crowd import Crowd
from hiertcn.itemrows import Longer
from hiertcn.ranges import ranges
from hiertcn.streams import Ints, Stream

Floats = npt.NDArray[np.float32]


class Folds:
    """The finished sessions of a stream that hold an item; the last session of each user runs.

    chosen: int64 [F], which they are          before: int64 [M], after: int64 [U], into [states of users; states after
    the F sessions]: the state before each session, and after each user's     steps: of sessions that can be folded at
    once, their numbers in F and the places of the states that they go on from
    """

    def __init__(self, stream: Stream) -> None:
        users, sessions = len(stream.user_offsets) - 1, len(stream.gaps)
        user = np.arange(users).repeat(stream.user_offsets[1:] - stream.user_offsets[:-1])
        if users == sessions:
            self.chosen, self.before, self.after = np.zeros(0, dtype=np.int64), user, user
            self.steps: list[tuple[Ints, Ints]] = []
            return
        folds = np.add.reduceat(stream.items > 0, stream.session_offsets[:-1]) > 0
        folds[stream.user_offsets[1:] - 1] = False
        self.chosen = np.flatnonzero(folds)
        count = np.concatenate([[0], np.cumsum(folds)])
        first = count[stream.user_offsets[:-1]]
        self.before = np.where(count[:-1] > first[user], users + count[:-1] - 1, user)
        ends = count[stream.user_offsets[1:]]
        self.after = np.where(ends > first, users + ends - 1, np.arange(users))
        number = np.arange(len(self.chosen))
        rank = number - first[user[self.chosen]]
        order, sizes = np.argsort(rank, kind="stable"), np.bincount(rank)
        self.steps = [(now, self.before[self.chosen[now]]) for now in np.split(order, np.cumsum(sizes)[:-1])]

    def aggregated(self, stream: Stream, read: Longer, how: str) -> Floats:
        """[F, D]: the mean or the maximum of what is read of the known items of each of these sessions."""
        begins = stream.session_offsets[self.chosen]
        ends = stream.session_offsets[self.chosen + 1]
        rows = stream.items[ranges(begins, ends)]
        session = np.repeat(np.arange(len(self.chosen)), ends - begins)[rows > 0]
        vectors, held = read.take(rows[rows > 0], axis=0), np.bincount(session, minlength=len(self.chosen))
        starts = np.cumsum(held) - held
        if how == "max":
            largest: Floats = np.maximum.reduceat(vectors, starts)
            return largest
        sums: Floats = np.add.reduceat(vectors, starts)
        return np.divide(sums, held[:, None], dtype=np.float32)


class Windows:
    """Of some asked places of a stream the positions that a query can see, up to the place itself.

    places: int64 [T]     field: how many they are at most; None: all of the session     session, step: int64 [T], the
    place's own, and how many positions are before it there     begin: int64 [T, 1], of its session
    at: int64 [T, L], positions; where they are not `inside` [T, L], anything
    """

    def __init__(self, stream: Stream, places: Ints, field: int | None) -> None:
        self._stream, self._places = stream, places
        self.session = stream.session_offsets.searchsorted(places, side="right") - 1
        begin = stream.session_offsets.take(self.session)
        self.step, self._begin = places - begin, begin[:, None]
        if field is None:
            self._at = self._begin + np.arange(int(self.step.max()) + 1)
            self.inside = self._at <= places[:, None]
        else:
            self._at = places[:, None] + np.arange(1 - field, 1)
            self.inside = self._at >= self._begin
        self._later = self._at > self._begin

    @property
    def rows(self) -> Ints:
        """int64 [T, L]: the item before each position in its session, 0 where there is none."""
        rows: Ints = self._stream.items.take(self._at - 1, mode="clip") * self._later
        return rows

    def clock(self, buckets: int) -> tuple[Ints, Ints]:
        """int64 [T, L], the hour of the week from its Monday on, and int64 [T, L], the bucket of the pause; as `Clock`
        reckons them of a batch."""
        seen = self._stream.seen.take(self._at, mode="clip")
        pause = (seen - self._stream.seen.take(self._at - 1, mode="clip")).astype(np.float32)
        pause = np.where(self._later, pause, self._stream.gaps.take(self.session)[:, None])
        bucket = np.log2(np.maximum(pause, 0) + np.float32(1)).astype(np.int64)
        # 1970-01-01 was a Thursday.
        hour = ((seen / 3600).astype(np.int64) + 72) % 168
        return hour, np.minimum(bucket, buckets - 1) + buckets * self._later

    def skipped(self, read: Longer) -> Floats:
        """[T, L, D]: the mean vector of what was shown beside the item before each position and not picked."""
        out = np.zeros((*self._at.shape, read.shape[1]), dtype=np.float32)
        cells = np.flatnonzero(self._later & self.inside)
        rows, of = self._stream.skipped(self._at.ravel()[cells] - 1)
        counts = np.bincount(of, minlength=len(cells))
        held = np.flatnonzero(counts)
        if len(held):
            starts = (np.cumsum(counts) - counts)[held]
            means = np.add.reduceat(read.take(rows, axis=0), starts) / counts[held, None].astype(np.float32)
            out.reshape(-1, read.shape[1])[cells[held]] = means
        return out

    def crowd(self, crowd: Crowd) -> tuple[npt.NDArray[np.int32], Floats]:
        """What everybody picked lately, [T, C, K] rows and their weights, as known at the asked places."""
        previous = self._stream.items.take(self._places - 1, mode="clip") * (self.step > 0)
        return crowd.at(self._stream.seen.take(self._places), previous)


def last_items(stream: Stream, initial: Floats, places: Ints, users: Ints) -> Floats:
    """[T, W]: the last W known items before each of `places` [T] in the whole history of its user [T], oldest first,
    after those of `initial` [U, W]."""
    width = initial.shape[1]
    known = stream.items > 0
    count = known.cumsum() - known
    items = stream.items[known]
    begins = stream.session_offsets[stream.user_offsets[:-1]]
    until = count.take(places)
    before = (until - count.take(begins.take(users)))[:, None]
    lag = np.arange(width, 0, -1)
    own = items.take(until[:, None] - lag, mode="clip") if len(items) else np.zeros(1, dtype=np.int64)
    earlier: Any = initial[users[:, None], np.minimum(width - lag + before, width - 1)]
    out: Floats = np.where(lag <= before, own, earlier).astype(np.float32)
    return out
