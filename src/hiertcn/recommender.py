"""Recommendations for one person at a time, following each event: what training and evaluation compute, online.

There is one way from events to an answer. The events that the long-term state has not read yet, and after them an event
on no item at the moment asked about, become a Stream and a SessionBatch as in evaluation; the model's own `forward` and
`fold` do the rest. Whole histories and single events differ only in how many events are still to be read.
"""

from __future__ import annotations

__all__ = ["Recommendation", "Recommender"]

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hiertcn.artifact import Run
from hiertcn.crowd import Crowd
from hiertcn.door import Id, Time, checked_id, microseconds, told
from hiertcn.errors import InputError
from hiertcn.impressions import MOST as MOST_SHOWN
from hiertcn.models import VectorModel
from hiertcn.ragged import SessionBatch
from hiertcn.sessions import PARTS, SECOND, Sessions, begins_session, sessionize
from hiertcn.states import StateStore, UserState, open_states
from hiertcn.states.state import digest_of_model
from hiertcn.streams import Ints, Stream
from hiertcn.wholes import whole_batch

MOST = 500
_NONE = np.empty(0, dtype=np.int32)


class Recommendation(NamedTuple):
    """An item, by its id in the log. `source` says what `score` is: "model", or "popular", the item's train events."""

    item: Id
    score: float
    title: str | None
    source: str


class Recommender:
    """A trained model and the states of its users. Times are seconds since 1970 UTC, or datetimes with a zone.

    A context manager that closes the store. Safe to use from several threads.
    """

    def __init__(self, run: Run, states: StateStore, crowd: Crowd | None = None) -> None:
        self.states = states
        self._crowd, self._crowd_lock = crowd or run.crowd(), threading.Lock()
        self._model, self._catalog = run.model, run.catalog
        self._session_gap, self._longest = run.session_gap, run.max_session_events
        self._digest = digest_of_model(
            run.manifest["trained"], run.manifest["model"], run.session_gap, run.max_session_events
        )
        self._withdrawn = run.withdrawn
        self._ids = self._catalog.ids
        self._rows = np.arange(self._catalog.size + 1)
        self._popular = torch.from_numpy(self._catalog.train_events[1:].astype(np.float64))

    @classmethod
    def load(cls, run: str | Path | Run, states: str | StateStore = "memory:", crowd: Crowd | None = None) -> Self:
        """The model of the directory `run`, with the store `states` ("memory:", "sqlite:///FILE", or an open one).

        crowd: for a model that reads it, what everybody picked lately; None: as of the end of its log, all parts of it.
               What is observed is added; it is kept in memory, not in the store

        Raises ArtifactError for a directory that is damaged or none, and what `open_states` raises.
        """
        run = run if isinstance(run, Run) else Run(run)
        # A damaged model is found before a store is made.
        _ = run.model
        return cls(run, open_states(states) if isinstance(states, str) else states, crowd)

    def close(self) -> None:
        """Close the store."""
        self.states.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def observe(self, user: Id, item: Id, time: Time, shown: Sequence[Id] = ()) -> None:
        """Take in that `user` picked `item` at `time`. An item outside the catalog counts for the session's time only.

        shown: the items that it was picked from, read by a model that reads impressions: the first 20 that are known
               (a cache keeps 20 of more by chance)

        Raises InputError for an id or a time that can't be one, and for a time before the user's last event.
        """
        key, row, at = checked_id(user, "user"), self._row(item), microseconds(time)
        skipped = self._skipped(row, shown)
        states = []

        def after(stored: bytes | None) -> bytes:
            states.append(self._after(self._state(stored), row, at, skipped))
            return states[-1].to_bytes(self._digest)

        self.states.update(key, after)
        if self._crowd is not None:
            before = states[-1].items[:-1]
            known = before[before > 0]
            with self._crowd_lock:
                self._crowd.observe(row, at / SECOND, int(known[-1]) if len(known) else 0)

    def recommend(
        self, user: Id, k: int = 10, *, exclude_seen: bool = False, time: Time | None = None
    ) -> list[Recommendation]:
        """The `k` items (1 … 500; fewer where the catalog has fewer) that `user` is most likely to pick next.

        time:         when it is asked. If that begins a session, the running one is taken as finished; nothing is
                      stored. Without it, the session is still running
        exclude_seen: leave out the last 256 items that the user had

        Of a user without an event on a known item nothing is known but what everybody picks at `time`, where the model
        reads that; else the most popular items are given, and `source` says so.
        Raises InputError for a bad argument, ArtifactError if the store holds a damaged or foreign state for the user.
        """
        state, at = self._asked(user, time)
        return self._recommend(state, at, k, state.seen if exclude_seen else _NONE)

    def recommend_history(
        self,
        items: Sequence[Id],
        times: Sequence[Time],
        k: int = 10,
        *,
        exclude_seen: bool = False,
        sessions: Sequence[Id] | None = None,
        shown: Sequence[Sequence[Id]] | None = None,
    ) -> list[Recommendation]:
        """The same for a person in no store, from all of the person's events at once, in any order.

        sessions: of each event, where the log names them: a session begins where this changes
        shown:    of each event, the items that were shown, as in `observe`

        Without `sessions` equal to observing the events one after another, but all are computed in parallel.
        """
        columns = {"times": times, "sessions": sessions, "lists of items shown": shown}
        for what, column in columns.items():
            if column is not None and len(items) != len(column):
                raise InputError(f"There are {len(items)} items and {len(column)} {what}; expected one for each item.")
        rows = np.array([self._row(item) for item in items], dtype=np.int32)
        moments = np.array([microseconds(time) for time in times], dtype=np.int64)
        order = np.argsort(moments, kind="stable")
        skipped = [self._skipped(rows[at], shown[at]) for at in order] if shown is not None else []
        state = self._state(None).followed_by(rows[order], moments[order], skipped)
        hidden = np.unique(rows[rows > 0]) if exclude_seen else _NONE
        keys = None
        if sessions is not None and len(sessions):
            keys = np.unique(list(map(str, sessions)), return_inverse=True)[1][order]
        return self._recommend(state, int(moments.max(initial=0)), k, hidden, keys)

    def query(self, user: Id, time: Time | None = None) -> npt.NDArray[Any]:
        """[Q]: the vector whose scores, with the model's boosts, rank the next item; `time` as in `recommend`."""
        query = self._query(*self._asked(user, time))
        if isinstance(self._model, VectorModel):
            query = self._model.parted(query)[0]
        found: npt.NDArray[Any] = query[0].numpy()
        return found

    @torch.inference_mode()
    def scores(self, user: Id, time: Time | None = None) -> npt.NDArray[Any]:
        """[items]: the model's scores of the whole catalog, in the order of its rows; `time` as in `recommend`."""
        found: npt.NDArray[Any] = self._model.score(self._query(*self._asked(user, time)))[0].numpy()
        return found

    def session(self, user: Id) -> int:
        """How many events the running session of a user holds."""
        return len(self._state(self.states.get(checked_id(user, "user"))).times)

    def delete(self, user: Id) -> None:
        """Forget all events of a user."""
        self.states.delete(checked_id(user, "user"))

    def _asked(self, user: Id, time: Time | None) -> tuple[UserState, int]:
        """The state of a user, and the moment asked about: that of the last event where none is given."""
        state = self._state(self.states.get(checked_id(user, "user")))
        last = int(state.times[-1]) if len(state.times) else 0
        return state, last if time is None else _not_before(state, microseconds(time))

    def _state(self, stored: bytes | None) -> UserState:
        if stored is None:
            return UserState(self._model.zero_state(1)[0].numpy())
        return UserState.from_bytes(stored, self._digest)

    @torch.inference_mode()
    def _after(self, state: UserState, row: int, at: int, skipped: npt.NDArray[np.int32]) -> UserState:
        """The state after an event. One that begins a session folds the running session, if that holds an item."""
        full = len(state.times) >= self._longest
        if len(state.times) and (begins_session(state.times[-1], _not_before(state, at), self._session_gap) or full):
            if state.items.any():
                # What the crowd does changes no state.
                _, after = self._model.fold(self._batch(state, at), _initial(state))
                state = replace(state, long_term=after[0].numpy(), previous_end=int(state.times[-1]))
            state = state.without_events()
        return state.followed_by(np.array([row], dtype=np.int32), np.array([at]), [skipped])

    @torch.inference_mode()
    def _query(self, state: UserState, at: int, keys: Ints | None = None) -> Tensor:
        """[1, Q]: the query of an event at `at`."""
        with self._crowd_lock:
            batch = self._batch(state, at, keys, self._crowd)
        queries, _ = self._model(batch, _initial(state))
        asked: Tensor = queries[batch.positions]
        return asked

    def _batch(self, state: UserState, at: int, keys: Ints | None = None, crowd: Crowd | None = None) -> SessionBatch:
        """One user's events that are still to be read, and the one asked for at `at`, on item row 0.

        keys: int64, the sessions of those events, of which the last one still runs; None: by the rule of the run
        """
        times = np.append(state.times, at)
        parts = np.zeros(len(times), dtype=np.uint8)
        parts[-1] = PARTS.index("test")
        keys = None if keys is None else np.append(keys, keys[-1:])
        offsets = sessionize(np.array([0, len(times)]), times, self._session_gap, self._longest, keys)
        users = np.array([0, len(offsets) - 1])
        shown = np.concatenate([[0], np.cumsum(state.skips), [len(state.skipped)]])
        whole = Sessions(np.append(state.items, np.int32(0)), times, parts, offsets, users, state.skipped, shown)
        stream = Stream.of(whole, self._rows, "test", self._session_gap, self._longest)
        if state.previous_end is None:
            return whole_batch(stream, crowd)
        seen, gaps = stream.seen.copy(), stream.gaps.copy()
        if begins_session(state.previous_end, times[0], self._session_gap):
            gaps[0] = seen[0] - state.previous_end / SECOND
        else:
            # It began because the one before was full; see Stream.of.
            seen[0] = state.previous_end / SECOND
        return whole_batch(replace(stream, seen=seen, gaps=gaps), crowd)

    @torch.inference_mode()
    def _recommend(
        self, state: UserState, at: int, k: int, hide: npt.NDArray[np.int32], keys: Ints | None = None
    ) -> list[Recommendation]:
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MOST:
            raise InputError(f"k is {told(k)}; expected a whole number from 1 to {MOST}. Ask for so many items.")
        if len(state.seen) or (self._crowd is not None and at):
            scores, source = self._model.score(self._query(state, at, keys))[0], "model"
        else:
            scores, source = self._popular, "popular"
        hidden = torch.from_numpy(np.union1d(hide, self._withdrawn).astype(np.int64) - 1)
        best = scores.index_fill(0, hidden, -torch.inf).topk(min(k, len(scores) - len(hidden)))
        return [
            Recommendation(self._ids[row - 1], score, self._catalog.title(row), source)
            for row, score in zip((best.indices + 1).tolist(), best.values.tolist(), strict=True)
        ]

    def _skipped(self, row: int, shown: Sequence[Id]) -> npt.NDArray[np.int32]:
        """The first rows of what was shown beside the item of `row`; none for a model that does not read them."""
        if not isinstance(shown, list | tuple):
            raise InputError(f"What was shown is {told(shown)}; expected a list of item ids. Give it as one.")
        rows = dict.fromkeys(self._row(item) for item in shown)
        known = [other for other in rows if other not in (0, row)] if self._model.reads_impressions else []
        return np.array(known[:MOST_SHOWN], dtype=np.int32)

    def _row(self, item: Id) -> int:
        checked_id(item, "item")
        return self._catalog.row(item)


def _initial(state: UserState) -> Tensor:
    """[1, S]: a copy of the long-term state."""
    return torch.tensor(state.long_term).unsqueeze(0)


def _not_before(state: UserState, at: int) -> int:
    if len(state.times) and at < state.times[-1]:
        raise InputError(
            f"The time {at / SECOND} is earlier than the user's last event, at {state.times[-1] / SECOND}; expected "
            "the events of a user in the order of time. Sort them, or give a whole history to recommend_history."
        )
    return at
