"""Logs that are replayed, what tells their events one by one, and what has to be the same then."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl

from hiertcn.columns import Columns
from hiertcn.events import Events, read_events
from hiertcn.recommender import Recommender
from hiertcn.replay import event_id_of
from hiertcn.sessions import SECOND
from hiertcn.states import StateStore, UserState, mark_of
from hiertcn.tables import Layout
from people import GAP, START


def log_of(told: list[tuple[str, str, float]], ids: list[str] | None = None, **columns: Any) -> Events:
    """Events (user, item, seconds) as a log is read, in any order."""
    frame = pl.DataFrame(told, schema=["user", "item", "time"], orient="row")
    if ids is not None:
        frame = frame.with_columns(id=pl.Series(ids))
        columns["event"] = "id"
    return read_events(frame, Columns(**columns), Layout(), time_unit="s")


def told(rec: Recommender, events: list[tuple[str, str, float]], ids: list[str] | None = None) -> None:
    """One by one, in the order of a state."""
    names = ids or [event_id_of(user, item, round(time * SECOND)) for user, item, time in events]
    beside = sorted(zip(events, names, strict=True), key=lambda one: (one[0][2], one[0][1], mark_of(one[1])))
    for (user, item, time), name in beside:
        rec.observe(user, item, time, event_id=name)


def facts(store: StateStore, digest: bytes) -> dict[bytes, tuple[object, ...]]:
    found = {}
    for key, value in store.scan():
        state = UserState.from_bytes(value, digest)
        found[key] = (
            state.items,
            state.times,
            state.marks,
            state.shown,
            state.unread,
            state.previous_end,
            state.forgotten,
        )
    return found


def assert_same(found: StateStore, expected: StateStore, digest: bytes, *, journal: bool = True) -> None:
    assert facts(found, digest) == facts(expected, digest)
    theirs = dict(expected.scan())
    for key, value in found.scan():
        ours, other = (UserState.from_bytes(one, digest).long_term for one in (value, theirs[key]))
        assert (ours is None) == (other is None)
        if ours is not None and other is not None:
            assert ours.dtype == other.dtype
            np.testing.assert_allclose(ours, other, atol=1e-5)
    if journal:
        assert picks_of(found) == picks_of(expected)


def picks_of(store: StateStore) -> list[Any]:
    return sorted(json.loads(entry) for _, entry in store.journal(0, 1_000_000))


def busy(count: int, user: str = "u") -> list[tuple[str, str, float]]:
    """Events of one user, three a session."""
    return [(user, "abcdex"[n % 6], START + 60.0 * n + 3 * GAP * (n // 3)) for n in range(count)]
