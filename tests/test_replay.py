"""A log replayed in bulk leaves what its events leave that are told one by one; again, and after a kill, nothing else."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hiertcn.journal
import hiertcn.replay
from commands import Ask, said
from hiertcn.artifact import Run
from hiertcn.columns import Columns
from hiertcn.door import Event
from hiertcn.errors import StorageError
from hiertcn.events import Events, read_events
from hiertcn.models import HierTCNConfig
from hiertcn.recommender import LATENESS, Recommender
from hiertcn.replay import Replayed, event_id_of, replay
from hiertcn.served import served
from hiertcn.sessions import SECOND
from hiertcn.states import MemoryStates, Pick, StateStore, Update, UserState, mark_of
from hiertcn.states.state import HISTORY
from hiertcn.tables import Layout
from people import FULL, GAP, KINDS, SIZES, START, catalog_of, run_of

# Each decides something: within the session, within the lateness, at the gap and beside it, over several sessions.
WAITS = [0, 1, 60, LATENESS, GAP - 1, GAP, GAP + 1, 90_000]
HEARING = HierTCNConfig(**SIZES, clock=True, trends=(0.5, 24.0), follows=(1.0,), repeats=5)
ITEMS = ["a", "b", "c", "d", "e", "unknown", "x"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    kinds = {"full": FULL, "repeats": KINDS["repeats"], "hrnn": KINDS["hrnn"], "hearing": HEARING}
    return {
        name: run_of(folder / name, config, catalog_of("abcde"), longest=4 if name == "hrnn" else 1000)
        for name, config in kinds.items()
    }


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
        found[key] = (state.items, state.times, state.marks, state.shown, state.unread, state.previous_end, state.forgotten)
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


events_of = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from(ITEMS), st.sampled_from(WAITS)), min_size=1, max_size=30
)


def placed(log: list[tuple[str, str, float]]) -> list[tuple[str, str, float]]:
    times = START + np.cumsum([wait for *_, wait in log])
    return list(dict.fromkeys((user, item, float(time)) for (user, item, _), time in zip(log, times, strict=True)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events_of, st.sampled_from(["full", "repeats", "hrnn", "hearing"]), st.integers(0, 30), st.booleans(), st.data())
def test_a_log_in_bulk_is_its_events_one_by_one(
    runs: dict[str, Run], log: list[tuple[str, str, float]], kind: str, before: int, named: bool, data: st.DataObject
) -> None:
    """Into an empty store, or one that a server has told the first events to."""
    events = placed(log)
    ids = [f"e{n}" for n in range(len(events))] if named else None
    clean, rec = Recommender.load(runs[kind]), Recommender.load(runs[kind])
    told(clean, events, ids)
    told(rec, events[:before], None if ids is None else ids[:before])
    shuffled = data.draw(st.permutations(range(len(events))))
    read = log_of([events[n] for n in shuffled], None if ids is None else [ids[n] for n in shuffled])
    done = replay(served(runs[kind]), rec.states, read)
    assert_same(rec.states, clean.states, rec.digest)
    assert (done.events, done.told) == (len(events), max(len(events) - before, 0))
    assert done.statuses == {k: n for k, n in (("duplicate", min(before, len(events))), ("applied", done.told)) if n}
    again = dict(rec.states.scan())
    second = replay(served(runs[kind]), rec.states, read)
    assert (dict(rec.states.scan()), second.told) == (again, 0)
    assert second.statuses == {"duplicate": len(events)}
