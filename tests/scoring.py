"""The two ways a model is asked: in batches, as in training and evaluation, and event by event, as for one person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from caches import User
from hiertcn import sessions
from hiertcn.batching import SessionBatches
from hiertcn.models import Model
from hiertcn.ragged import SessionBatch, pack_sessions
from hiertcn.sessions import SECOND


def zero_state(model: Model, users: int) -> Tensor:
    """The zero state in the precision of the model's weights."""
    dtype = next((p.dtype for p in model.parameters()), None)
    state = model.zero_state(users)
    return state.to(dtype) if dtype and state.is_floating_point() else state


def passed(model: Model, batches: SessionBatches) -> Iterator[tuple[SessionBatch, Tensor]]:
    """(batch, queries) of the rest of an epoch, states carried from batch to batch."""
    carried = zero_state(model, batches.rows)
    for batch in batches:
        queries, after = model(batch, batch.initial(carried))
        carried = batch.carry(carried, after)
        yield batch, queries


@torch.no_grad()
def in_batches(model: Model, batches: SessionBatches) -> Tensor:
    """Scores [T, items] of the targets of an epoch, in the order of the cache's events."""
    model.eval()
    scores, events = [], []
    for batch, queries in passed(model, batches):
        scores.append(model.score(queries[batch.positions]))
        events.append(batch.events)
    return torch.cat(scores)[torch.cat(events).argsort()]


class Person:
    """One person's long-term state and running session, told of events one by one."""

    def __init__(self, model: Model, session_gap: float) -> None:
        self._model, self._session_gap = model, session_gap
        self._state = zero_state(model, 1)
        self._items: list[int] = []
        self._seen: list[float] = []  # where each item of the session was asked for, and where the next one is
        self._gap = 0.0
        self._latest: float | None = None
        self._ended: float | None = None

    @torch.no_grad()
    def scores(self, time: float) -> Tensor:
        """Scores [items] of what comes next. Only whether `time` begins a session, and the gap before it, are used."""
        if self._latest is None or sessions.begins_session(self._latest * SECOND, time * SECOND, self._session_gap):
            self._begin(time)
        batch = self._batch([*self._items, 0], self._seen, finished=False)
        before, _ = self._model.fold(batch, batch.initial(self._state))
        return self._model.score(self._model.encode(batch, before)[batch.positions])[0]

    def observe(self, item: int, time: float) -> None:
        """Take in what came, 0 for an unknown item, after `scores` was asked for it."""
        self._latest = time
        if item:
            self._items.append(item)
            self._seen.append(time)

    def _begin(self, time: float) -> None:
        if self._items:
            batch = self._batch(self._items, self._seen[:-1], finished=True)
            _, after = self._model.fold(batch, batch.initial(self._state))
            self._state = batch.carry(self._state, after)
            self._ended = self._latest
        self._gap = 0.0 if self._ended is None else time - self._ended
        self._items, self._seen = [], [time]

    def _batch(self, items: Sequence[int], seen: Sequence[float], finished: bool) -> SessionBatch:
        zero = np.zeros(1, dtype=np.int64)
        return pack_sessions(
            items=np.array(items, dtype=np.int64),
            seen=np.array(seen, dtype=np.float64),
            session_lengths=zero + len(items),
            user_sessions=zero + 1,
            gaps=np.array([self._gap], dtype=np.float32),
            finished=np.array([finished]),
            carried=zero,
            rows=zero,
            closing=zero,
            positions=zero + len(items) - 1,
            targets=zero,
            events=zero,
        )


def one_by_one(model: Model, users: Iterable[User], session_gap: float) -> Tensor:
    """Scores [T, items] before each event of users, told event by event; rows above the catalog are unknown."""
    model.eval()
    out = []
    for _, items, times, _ in users:
        person = Person(model, session_gap)
        for item, time in zip(items, times, strict=True):
            out.append(person.scores(time))
            person.observe(item if item <= model.items_in_catalog else 0, time)
    return torch.stack(out)
