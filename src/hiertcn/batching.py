"""The queue-based mini-batch generator (You et al., 2019), with every event exactly once.

A batch has R rows (the paper's queues). A user goes whole to the row with the least to read; each batch takes the next
S chunks of every row, a chunk being up to `chunk` positions of one session. So row r of a batch goes on where row r of
the batch before ended, and the long-term state is carried. A session cut between two batches comes again as context:
its earlier positions are read once more and are no targets. Which user stands where is a function of (seed, epoch).
"""

from __future__ import annotations

__all__ = ["SessionBatches"]

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from hiertcn.cache import Cache
from hiertcn.crowd import Crowd
from hiertcn.impressions import MOST
from hiertcn.ragged import SessionBatch, pack_sessions
from hiertcn.ranges import ranges
from hiertcn.streams import Ints, Stream

RESIDENT_SHARDS = 4
# Assembled as one task, since handing each over by itself costs as much as a small one takes to assemble.
TOGETHER = 4
TASKS_AHEAD = 3


class SessionBatches:
    """Batches of one part of a cache. Iterating gives the rest of the current epoch, prepared ahead in a thread.

    rows, sessions, chunk: R, S and the most positions of a chunk
    item_rows:             for each row of the cache's catalog the model's row (streams.known_rows)
    shuffle:               users in a random order, anew each epoch; otherwise in the cache's order
    users:                 the share of users who are read, drawn under `seed`
    crowd:                 for a model that reads it
    targets:               how many an epoch holds
    """

    def __init__(
        self,
        cache: Cache,
        part: str,
        *,
        item_rows: Ints,
        rows: int,
        sessions: int,
        chunk: int,
        shuffle: bool,
        seed: int = 0,
        users: float = 1.0,
        crowd: Crowd | None = None,
    ) -> None:
        self._cache, self._part, self._item_rows, self._crowd = cache, part, item_rows, crowd
        self._impressions = cache.has_impressions
        self.rows, self._sessions, self._chunk = rows, sessions, chunk
        self._shuffle, self._seed = shuffle, seed
        self._streams: OrderedDict[int, tuple[Stream, _Chunks]] = OrderedDict()
        self._first_event = np.cumsum([0, *(shard["events"] for shard in cache.manifest.shards)])
        self._chunks: list[npt.NDArray[np.int32]] = []
        self.targets = 0
        for index in range(len(cache)):
            stream, chunks = self._stream(index)
            per_user = np.diff(chunks.offsets[stream.user_offsets]).astype(np.int32)
            if users < 1:
                per_user[np.random.default_rng([seed, index]).random(len(per_user)) >= users] = 0
            self._chunks.append(per_user)
            bounds = chunks.targets_before[stream.session_offsets[stream.user_offsets]]
            self.targets += int(np.diff(bounds)[per_user > 0].sum())
        self.epoch = 0
        self.batch = 0
        self._plan = _Plan(self._chunks, rows, sessions, self._order())

    def _order(self) -> list[tuple[int, Ints]]:
        """(shard, users in it) in the order they are read this epoch."""
        shards = [(index, np.flatnonzero(chunks)) for index, chunks in enumerate(self._chunks)]
        if not self._shuffle:
            return shards
        rng = np.random.default_rng([self._seed, self.epoch])
        return [(shards[i][0], rng.permutation(shards[i][1])) for i in rng.permutation(len(shards))]

    def _stream(self, index: int) -> tuple[Stream, _Chunks]:
        """A shard's stream, cut into chunks; a bounded number stays resident."""
        if index not in self._streams:
            sessions, manifest = self._cache.shard(index).sessions, self._cache.manifest
            rule = manifest.session_gap, manifest.max_session_events
            stream = Stream.of(sessions, self._item_rows, self._part, *rule)
            self._streams[index] = stream, _Chunks.of(stream, self._chunk)
            if len(self._streams) > RESIDENT_SHARDS:
                self._streams.popitem(last=False)
        self._streams.move_to_end(index)
        return self._streams[index]

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._plan.batches

    def state_dict(self) -> dict[str, int]:
        """Where the generator stands: what comes next is batch `batch` of epoch `epoch`."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from where `state_dict` was taken, under the same cache and settings."""
        self.epoch, self.batch = state["epoch"], state["batch"]
        self._plan = _Plan(self._chunks, self.rows, self._sessions, self._order())

    def __iter__(self) -> Iterator[SessionBatch]:
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as ahead:
            wanted = iter(range(self.batch, len(self), TOGETHER))
            pending = [ahead.submit(self._assemble_from, i) for i in islice(wanted, TASKS_AHEAD)]
            try:
                while pending:
                    batches = pending.pop(0).result()
                    if (following := next(wanted, None)) is not None:
                        pending.append(ahead.submit(self._assemble_from, following))
                    for batch in batches:
                        self.batch += 1
                        yield batch
            finally:
                for future in pending:
                    future.cancel()
        self.load_state_dict({"epoch": self.epoch + 1, "batch": 0})

    def _assemble_from(self, first: int) -> list[SessionBatch]:
        return [self._assemble(index) for index in range(first, min(first + TOGETHER, len(self)))]

    def _assemble(self, index: int) -> SessionBatch:
        part = self._plan.segments(index)
        shards = part["shard"]
        if (shards == shards[0]).all():
            columns = self._piece(int(shards[0]), part)
        else:
            pieces = [self._piece(int(shard), _select(part, shards == shard)) for shard in np.unique(shards)]
            columns = {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}
            # Positions are places within their piece.
            sizes = np.cumsum([0, *(len(p["items"]) for p in pieces)])
            for name in ("positions", "skipped_at"):
                columns[name] += np.repeat(sizes[:-1], [len(p[name]) for p in pieces])
        row, closing = columns.pop("row"), np.flatnonzero(columns.pop("closing"))
        return pack_sessions(**columns, rows=row[closing], closing=closing, crowd=self._crowd)

    def _piece(self, shard: int, part: dict[str, Ints]) -> dict[str, Any]:
        """The arrays of `pack_sessions` for segments of one shard; a segment is chunks [begin, end) of one user."""
        stream, chunks = self._stream(shard)
        base = chunks.offsets[stream.user_offsets[part["user"]]]
        first, last = base + part["begin"], base + part["end"] - 1
        from_session, to_session = chunks.session[first].astype(np.int64), chunks.session[last].astype(np.int64)
        offsets = stream.session_offsets
        start = offsets[from_session]
        begin = start + (first - chunks.offsets[from_session]) * self._chunk
        session_end = offsets[to_session + 1]
        end = np.minimum(offsets[to_session] + (last - chunks.offsets[to_session] + 1) * self._chunk, session_end)
        user_sessions = to_session - from_session + 1
        session = ranges(from_session, to_session + 1)
        lengths = offsets[session + 1] - offsets[session]
        closes = np.cumsum(user_sessions) - 1
        lengths[closes] = end - offsets[to_session]
        finished = np.ones(len(session), dtype=bool)
        finished[closes] = end == session_end
        flat = ranges(start, end)
        low, high = chunks.targets_before[begin], chunks.targets_before[end]
        target = ranges(low, high)
        shift = np.cumsum(end - start) - (end - start) - start
        skipped, skipped_at = stream.skipped(flat if self._impressions else flat[:0])
        return {
            "items": stream.items[flat],
            "seen": stream.seen[flat],
            "session_lengths": lengths,
            "user_sessions": user_sessions,
            "gaps": stream.gaps[session],
            "finished": finished,
            "carried": np.where(part["begin"] > 0, part["row"], -1),
            "row": part["row"],
            "closing": part["closing"],
            "positions": stream.positions[target] + np.repeat(shift, high - low),
            "targets": stream.targets[target],
            "events": stream.events[target] + self._first_event[shard],
            "shown": self._shown(stream, target),
            "skipped": skipped,
            "skipped_at": skipped_at,
        }

    def _shown(self, stream: Stream, target: Ints) -> Ints:
        """[t, MOST] item rows that were shown at targets, 0 behind the last; no column where a cache has none."""
        if not self._impressions:
            return np.empty((len(target), 0), dtype=np.int64)
        begins, counts = stream.shown_begins[target], stream.shown_counts[target]
        shown = np.zeros((len(target), MOST), dtype=np.int64)
        shown[np.arange(MOST) < counts[:, None]] = stream.shown[ranges(begins, begins + counts)]
        return shown


@dataclass(frozen=True)
class _Chunks:
    """A stream cut into chunks. offsets: int64 [M+1], of each session     session: int32 [chunks], of each
    targets_before: int64 [P+1], of each position: looked up thousands of times a batch, so it is not searched for."""

    offsets: Ints
    session: npt.NDArray[np.int32]
    targets_before: Ints

    @classmethod
    def of(cls, stream: Stream, chunk: int) -> _Chunks:
        count = -(-np.diff(stream.session_offsets) // chunk)
        asked = np.bincount(stream.positions, minlength=len(stream.items))
        return cls(
            np.concatenate([[0], np.cumsum(count)]),
            np.repeat(np.arange(len(count), dtype=np.int32), count),
            np.concatenate([[0], np.cumsum(asked)]),
        )


def _select(columns: dict[str, Ints], mask: npt.NDArray[np.bool_]) -> dict[str, Ints]:
    return {name: values[mask] for name, values in columns.items()}


class _Plan:
    """Which chunks of which users stand in which row, for one epoch."""

    def __init__(
        self, chunks: list[npt.NDArray[np.int32]], rows: int, sessions: int, order: list[tuple[int, Ints]]
    ) -> None:
        self._sessions = sessions
        shard = np.concatenate([np.full(len(users), index) for index, users in order])
        user = np.concatenate([users for _, users in order])
        count = np.concatenate([chunks[index][users] for index, users in order]).astype(np.int64)
        row, begin = _shortest_row(count, rows)
        sorted_ = np.lexsort((begin, row))
        self._shard, self._user, self._row = shard[sorted_], user[sorted_], row[sorted_]
        self._begin, self._end = begin[sorted_], (begin + count)[sorted_]
        longest = int(self._end.max(initial=0))
        self.batches = -(-longest // sessions)
        self._stride = (self.batches + 1) * sessions
        self._key = self._row * self._stride + self._end
        self._rows = np.arange(rows)

    def segments(self, batch: int) -> dict[str, Ints]:
        """Users of a batch, row by row: shard, user, row, their chunks [begin, end), whether they close their row."""
        low, high = batch * self._sessions, (batch + 1) * self._sessions
        first = np.searchsorted(self._key, self._rows * self._stride + low, side="right")
        past = np.searchsorted(self._key, self._rows * self._stride + high, side="left") + 1
        row_ends = np.searchsorted(self._row, self._rows, side="right")
        past = np.minimum(past, row_ends)
        at = ranges(first, np.maximum(past, first))
        closing = np.zeros(len(at), dtype=bool)
        closing[np.append(np.flatnonzero(np.diff(self._row[at])), len(at) - 1)] = True
        return {
            "shard": self._shard[at],
            "user": self._user[at],
            "row": self._row[at],
            "begin": np.maximum(low - self._begin[at], 0),
            "end": np.minimum(self._end[at], high) - self._begin[at],
            "closing": closing,
        }


def _shortest_row(count: Ints, rows: int) -> tuple[Ints, Ints]:
    """(row, begin) [U]: each user in turn goes to the row with the fewest chunks so far, the lowest of equal ones."""
    heap = [(0, row) for row in range(rows)]
    row_of, begin = np.empty(len(count), dtype=np.int64), np.empty(len(count), dtype=np.int64)
    for i, chunks in enumerate(count.tolist()):
        load, row = heap[0]
        row_of[i], begin[i] = row, load
        heapq.heapreplace(heap, (load + chunks, row))
    return row_of, begin
