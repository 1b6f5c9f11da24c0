"""A log in bulk leaves what its events leave one by one; told again, or gone on with after a fault, nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hiertcn.journal
import hiertcn.replay
from hiertcn.artifact import Run
from hiertcn.crowd import Crowd, Horizons
from hiertcn.errors import StorageError
from hiertcn.models import HierTCNConfig
from hiertcn.recommender import LATENESS, Recommender
from hiertcn.replay import replay
from hiertcn.served import served
from hiertcn.sessions import SECOND
from hiertcn.states import MemoryStates, Pick, Update, UserState
from hiertcn.states.state import HISTORY
from people import FULL, GAP, KINDS, SIZES, START, catalog_of, run_of
from replays import assert_same, busy, log_of, picks_of, told
from stores import STORES, opened

# Each decides something: within the session, within the lateness, at the gap and beside it, over several sessions.
WAITS = [0, 1, 60, LATENESS, GAP - 1, GAP, GAP + 1, 90_000]
HEARING = HierTCNConfig(**SIZES, clock=True, trends=(0.5, 24.0), follows=(1.0,), repeats=5)
HEARING_HORIZONS = Horizons((0.5, 24.0), (1.0,))
# The last one of sessions that are cut.
KINDS_RUN = ["full", "repeats", "hrnn", "hearing", "cut"]
ITEMS = ["a", "b", "c", "d", "e", "unknown", "x"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    kinds = {"full": FULL, "repeats": KINDS["repeats"], "hrnn": KINDS["hrnn"], "hearing": HEARING, "cut": HEARING}
    return {
        name: run_of(folder / name, config, catalog_of("abcde"), longest={"hrnn": 4, "cut": 3}.get(name, 1000))
        for name, config in kinds.items()
    }


events_of = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from(ITEMS), st.sampled_from(WAITS)), min_size=1, max_size=30
)


def placed(log: list[tuple[str, str, float]]) -> list[tuple[str, str, float]]:
    times = START + np.cumsum([wait for *_, wait in log])
    return list(dict.fromkeys((user, item, float(time)) for (user, item, _), time in zip(log, times, strict=True)))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events_of, st.sampled_from(KINDS_RUN), st.integers(0, 30), st.booleans(), st.data())
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


@settings(max_examples=60, deadline=None)
@given(events_of.map(placed), st.integers(0, 30), st.integers(0, 30), st.none() | st.integers(0, 9), st.data())
def test_many_events_change_a_state_as_one_by_one(
    log: list[tuple[str, str, float]], first: int, read: int, forgotten: int | None, data: st.DataObject
) -> None:
    def order(item: str) -> str:
        return item

    picks = sorted({Pick(item, int(time), n % 17 + 1) for n, (_, item, time) in enumerate(log)}, key=_place)
    state = UserState(forgotten=None if forgotten is None else picks[forgotten % len(picks)].time)
    beside = data.draw(st.sampled_from([(), ("a", "b")]))
    for pick in data.draw(st.permutations(picks))[:first]:
        state, _ = state.followed_by(pick._replace(shown=beside), order)
    if 0 < read < state.unread:
        state = state.after(read, np.ones(3, np.float32), None)
    distinct = list({pick.mark: pick for pick in reversed(picks)}.values())
    chosen = sorted(distinct, key=_place)
    after, statuses = state.followed_by_all(chosen, order)
    expected = []
    for pick in chosen:
        state, status = state.followed_by(pick, order)
        expected.append(status)
    assert statuses == expected
    assert (after.items, after.times, after.marks, after.shown) == (state.items, state.times, state.marks, state.shown)
    assert (after.unread, after.long_term) == (state.unread, state.long_term)


def _place(pick: Pick) -> tuple[int, str, int]:
    return pick.time, pick.item, pick.mark


def test_of_a_long_history_the_last_stay_and_all_is_read(runs: dict[str, Run]) -> None:
    events = [*busy(3 * HISTORY), *busy(5, "v")]
    model, rec = served(runs["hearing"]), Recommender.load(runs["hearing"])
    told(rec, events)
    store = MemoryStates()
    assert replay(model, store, log_of(events)).statuses == {"applied": len(events)}
    assert_same(store, rec.states, rec.digest)
    before = dict(store.scan())
    assert {len(UserState.from_bytes(value, rec.digest).times) for value in before.values()} == {HISTORY, 5}
    # Beyond the horizon nothing is known by its id, but nothing is read again either.
    again = replay(model, store, log_of(events))
    assert again.statuses == {"duplicate": HISTORY + 5, "late": 2 * HISTORY}
    assert (dict(store.scan()), again.told) == (before, 0)


def test_what_a_server_took_in_under_other_ids_is_known_by_item_and_time(runs: dict[str, Run]) -> None:
    rec = Recommender.load(runs["full"])
    events = busy(9)
    for number, event in enumerate(events[:6]):
        rec.observe(*event, event_id=f"request {number}")
    done = replay(served(runs["full"]), rec.states, log_of(events))
    assert done.statuses == {"duplicate": 6, "applied": 3}
    # With ids of its own an event is another one.
    named = replay(served(runs["full"]), rec.states, log_of(events, [f"other {n}" for n in range(9)]))
    assert named.statuses == {"late": 3, "applied": 6}


def test_an_id_counts_once_in_a_log(runs: dict[str, Run]) -> None:
    events = [("u", "a", START), ("u", "a", START), ("u", "b", START + 9), ("u", "b", START + 9)]
    store = MemoryStates()
    done = replay(served(runs["full"]), store, log_of(events, ["x", "x", "x", "y"]))
    assert done.statuses == {"applied": 2, "conflict": 1}
    assert [entry[1] for entry in picks_of(store)] == ["a", "b"]


@pytest.mark.parametrize("kind", STORES)
def test_it_fills_every_store(
    runs: dict[str, Run], kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hiertcn.replay, "TOGETHER", 20)
    events = [event for user in "uvw" for event in busy(9, user)]
    rec = Recommender.load(runs["full"])
    told(rec, events)
    with opened(kind, request, tmp_path) as store:
        for expected in ("applied", "duplicate"):
            assert replay(served(runs["full"]), store, log_of(events)).statuses == {expected: 27}
            assert_same(store, rec.states, rec.digest)


def test_what_was_forgotten_stays_so(runs: dict[str, Run]) -> None:
    rec, events = Recommender.load(runs["full"]), busy(12)
    rec.delete("u", events[7][2])
    done = replay(served(runs["full"]), rec.states, log_of(events))
    assert done.statuses == {"expired": 8, "applied": 4}
    assert len(picks_of(rec.states)) == 4


class Breaking(MemoryStates):
    """A store that takes so many updates, and then refuses all."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def update(self, keys: Any, fn: Any) -> None:
        if not self.left:
            raise StorageError("the disk is full")
        self.left -= 1
        super().update(keys, fn)


@pytest.mark.parametrize("left", [0, 1, 3, 5, 6, 7])
def test_what_was_broken_off_goes_on(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """Between users, between the last of them and the journal, and in the journal."""
    monkeypatch.setattr(hiertcn.replay, "TOGETHER", 30)
    monkeypatch.setattr(hiertcn.journal, "TOGETHER", 25)
    events = [event for user in "uvwxyz" for event in busy(20 + ord(user) % 5, user)]
    model, whole, store = served(runs["hearing"]), MemoryStates(), Breaking(left)
    replay(model, whole, log_of(events))
    with pytest.raises(StorageError):
        replay(model, store, log_of(events))
    store.left = 100
    replay(model, store, log_of(events))
    assert_same(store, whole, model.digest)
    assert [entry for _, entry in store.journal(0)] == [entry for _, entry in whole.journal(0)]


class Contended(MemoryStates):
    """A store where another server's event comes between the first reading and writing."""

    def __init__(self, other: Recommender) -> None:
        super().__init__()
        self.other, self.calls = other, 0

    def update(self, keys: Any, fn: Any) -> None:
        if len(keys) > 1 and not self.calls:
            self.calls = 1
            fn([None] * len(keys))
            self.other.observe("v", "e", START + 5)
            super().update(
                self.other.states.scan().__next__()[:1], lambda _: Update([next(self.other.states.scan())[1]])
            )
        super().update(keys, fn)


def test_another_servers_event_in_between_is_kept(runs: dict[str, Run]) -> None:
    store = Contended(Recommender.load(runs["full"]))
    events = [*busy(6, "u"), *busy(6, "v")]
    done = replay(served(runs["full"]), store, log_of(events))
    clean = Recommender.load(runs["full"])
    told(clean, events)
    clean.observe("v", "e", START + 5)
    assert done.statuses == {"applied": 12}
    found, expected = (
        {key: len(UserState.from_bytes(value, clean.digest).times) for key, value in one.scan()}
        for one in (store, clean.states)
    )
    assert found == expected


def test_another_models_states_are_read_anew_with_all_the_log(runs: dict[str, Run]) -> None:
    events = busy(2 * HISTORY)
    store, fresh = MemoryStates(), MemoryStates()
    replay(served(runs["repeats"]), store, log_of(events))
    model = served(runs["full"])
    for one in (store, fresh):
        replay(model, one, log_of(events))
    assert_same(store, fresh, model.digest)


def test_a_rebuild_reads_what_led_on_would_only_remember(runs: dict[str, Run]) -> None:
    events, model = busy(30), served(runs["full"])
    rec, clean = Recommender.load(runs["full"]), Recommender.load(runs["full"])
    told(rec, events[15:])
    told(clean, events)
    before = dict(rec.states.scan())
    assert replay(model, rec.states, log_of(events)).statuses == {"late": 15, "duplicate": 15}
    assert dict(rec.states.scan()) != before
    assert replay(model, rec.states, log_of(events), rebuild=True).statuses == {"duplicate": 30}
    assert_same(rec.states, clean.states, rec.digest, journal=False)


def test_a_damaged_state_is_left_unless_all_is_rebuilt(runs: dict[str, Run]) -> None:
    events, model, store, whole = [*busy(9), *busy(9, "v")], served(runs["full"]), MemoryStates(), MemoryStates()
    replay(model, store, log_of(events))
    replay(model, whole, log_of(events))
    key, value = next(store.scan())
    store.update([key], lambda _: Update([value[:-1]]))
    done = replay(model, store, log_of(events))
    assert (done.damaged, done.users, done.statuses) == (1, 2, {"duplicate": 9})
    assert store.get([key]) == [value[:-1]]
    assert not replay(model, store, log_of(events), rebuild=True).damaged
    assert_same(store, whole, model.digest)


def test_the_journal_is_told_the_last_picks_in_the_order_of_time(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hiertcn.journal, "KEPT", 7)
    events = [*busy(12), *busy(12, "v")]
    rec, store = Recommender.load(runs["hearing"]), MemoryStates()
    told(rec, events)
    assert replay(served(runs["hearing"]), store, log_of(events)).told == 7
    entries = [json.loads(entry) for _, entry in store.journal(0)]
    assert entries == sorted(entries, key=lambda entry: entry[0])
    assert [one[0] for one in entries] == [json.loads(entry)[0] for _, entry in rec.states.journal(0)][-7:]


def test_a_crowd_that_heard_the_log_in_training_hears_only_the_time(runs: dict[str, Run]) -> None:
    events = busy(12)
    model = served(runs["hearing"])
    rows = np.array([1, 2])
    crowd = Crowd.of(HEARING_HORIZONS, 5, rows, rows[::-1].copy(), np.array([START, events[8][2]]))
    model.crowd = lambda: crowd  # type: ignore[method-assign]
    store = MemoryStates()
    assert replay(model, store, log_of(events[:9])).told == 0
    assert picks_of(store) == [[round(events[8][2] * SECOND), "", ""]]
    assert replay(model, store, log_of(events)).told == 3
    with Recommender(model, store) as rec:
        rec.listen()
        assert rec.clock == events[-1][2]


def test_ids_of_another_type_keep_the_order_of_the_catalog(tmp_path: Path) -> None:
    """Numbers in the catalog, texts in the log: events of one time come in the order of numbers."""
    run = run_of(tmp_path / "run", FULL, catalog_of([2, 10, 33]))
    events = [("u", item, START) for item in ("10", "2", "33", "x")]
    store, rec = MemoryStates(), Recommender.load(run)
    replay(served(run), store, log_of(events))
    told(rec, events)
    assert_same(store, rec.states, rec.digest)
    ((_, value),) = store.scan()
    assert UserState.from_bytes(value, rec.digest).items == ["x", "2", "10", "33"]
