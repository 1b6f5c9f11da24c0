"""Events as they come to a server: of many people at once, out of order, twice, late, under one model, then another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hiertcn.artifact import Run
from hiertcn.door import Ask, Event
from hiertcn.errors import ArtifactError, InputError
from hiertcn.models import CONFIGS, HierTCNConfig
from hiertcn.recommender import LATENESS, Recommender
from hiertcn.states import MemoryStates, Update, UserState
from people import FULL, GAP, KINDS, SIZES, START, assert_alike, catalog_of, run_of

# Each decides something: within the session, within the lateness, at the gap and beside it, over several sessions.
WAITS = [0, 1, 60, LATENESS, GAP - 1, GAP, GAP + 1, 90_000]
HEARING = HierTCNConfig(**SIZES, clock=True, trends=(0.5, 24.0), follows=(1.0,), repeats=5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    kinds = {"full": FULL, "repeats": KINDS["repeats"], "hrnn": KINDS["hrnn"], "hearing": HEARING}
    return {
        name: run_of(folder / name, config, catalog_of("abcde"), longest=4 if name == "hrnn" else 1000)
        for name, config in kinds.items()
    }


def facts(rec: Recommender) -> dict[bytes, tuple[object, ...]]:
    found = {}
    for key, value in rec.states.scan():
        state = UserState.from_bytes(value, rec.digest)
        found[key] = (state.items, state.times, state.marks, state.unread, state.previous_end)
    return found


logs = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abcdexyz"), st.sampled_from(WAITS)), min_size=1, max_size=20
)


def any_order(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Runs a test on so many logs, each told in its own order, some at once."""
    kinds = st.sampled_from(["full", "repeats", "hrnn"])
    drawn = given(logs, st.randoms(use_true_random=False), kinds, st.integers(1, 9))
    checks = [HealthCheck.function_scoped_fixture]
    return lambda test: settings(max_examples=examples, deadline=None, suppress_health_check=checks)(drawn(test))


def check_order_and_repetition(
    runs: dict[str, Run], log: list[tuple[str, str, float]], random: Random, kind: str, together: int
) -> None:
    times = START + np.cumsum([wait for *_, wait in log])
    events = [
        Event(user, item, float(time), f"e{n}")
        for n, ((user, item, _), time) in enumerate(zip(log, times, strict=True))
    ]
    clean = Recommender.load(runs[kind])
    assert [clean.observe(*event[:3], event_id=event.event_id) for event in events] == ["applied"] * len(events)
    # None comes after one that is later by more than the lateness, and again at any time after it came.
    arriving = sorted(events, key=lambda event: event.time + random.uniform(0, LATENESS))
    for event in random.sample(events, len(events) // 2):
        arriving.insert(random.randint(arriving.index(event) + 1, len(arriving)), event)
    rec = Recommender.load(runs[kind])
    statuses = []
    for begin in range(0, len(arriving), together):
        statuses += rec.observe_many(arriving[begin : begin + together])
    first = [event not in arriving[:place] for place, event in enumerate(arriving)]
    assert statuses == ["applied" if one else "duplicate" for one in first]
    assert facts(rec) == facts(clean)
    users = sorted({event.user for event in events})
    for user in users:
        np.testing.assert_allclose(rec.query(user), clean.query(user), atol=1e-5)
    asks = [Ask(user) for user in users]
    for found, expected in zip(rec.recommend_many(asks), clean.recommend_many(asks), strict=True):
        assert_alike(found, expected)


@any_order(150)
def test_order_within_the_lateness_and_repetition_change_nothing(
    runs: dict[str, Run], log: list[tuple[str, str, float]], random: Random, kind: str, together: int
) -> None:
    check_order_and_repetition(runs, log, random, kind, together)


@pytest.mark.slow
@any_order(10_000)
def test_they_change_nothing_of_10_000_logs(
    runs: dict[str, Run], log: list[tuple[str, str, float]], random: Random, kind: str, together: int
) -> None:
    check_order_and_repetition(runs, log, random, kind, together)


def test_many_people_at_once_are_each_alone(runs: dict[str, Run]) -> None:
    rng = np.random.default_rng(0)
    together, alone = Recommender.load(runs["full"]), Recommender.load(runs["full"])
    for _ in range(12):
        events = [
            Event(f"u{n}", "abcdexyz"[rng.integers(8)], START + int(rng.choice(WAITS)) + 100_000 * _) for n in range(9)
        ]
        statuses = together.observe_many(events)
        assert statuses == [alone.observe(*event[:3]) for event in events]
        for n in range(9):
            np.testing.assert_allclose(together.query(f"u{n}"), alone.query(f"u{n}"), atol=1e-5)


def test_a_late_event_is_remembered_and_not_read(runs: dict[str, Run]) -> None:
    rec, clean = Recommender.load(runs["full"]), Recommender.load(runs["full"])
    for one in (rec, clean):
        for item, time in (("a", START), ("b", START + 2 * GAP), ("c", START + 2 * GAP + LATENESS + 1)):
            one.observe("u", item, time)
    assert rec.observe("u", "d", START + 5, event_id="e") == "late"
    np.testing.assert_array_equal(rec.query("u"), clean.query("u"))
    assert rec.observe("u", "d", START + 5, event_id="e") == "duplicate"
    assert rec.observe("u", "d", START + 6, event_id="e") == "conflict"
    assert {r.item for r in rec.recommend("u", exclude_seen=True)} == {"e"}


def test_one_event_that_can_be_none_stores_nothing_of_the_others(runs: dict[str, Run]) -> None:
    rec = Recommender.load(runs["full"])
    with pytest.raises(InputError, match="user id"):
        rec.observe_many([Event("u", "a", START), Event("", "a", START)])
    assert not facts(rec)
    assert rec.observe_many([]) == []


@pytest.mark.parametrize("other", ["weights", "items", "session_gap", "model"])
def test_another_model_reads_the_facts_anew(tmp_path: Path, other: str) -> None:
    config = CONFIGS["hiertcn"](**{**FULL.model_dump(), "gap_decay": "none"}) if other == "model" else FULL
    first = Recommender.load(run_of(tmp_path / "a", FULL, catalog_of("abcde")))
    second = run_of(
        tmp_path / "b",
        config,
        catalog_of("fdcba" if other == "items" else "abcde"),
        gap=60 if other == "session_gap" else GAP,
        seed=int(other == "weights"),
    )
    events = [("a", START), ("b", START + 30), ("f", START + 2 * GAP), ("c", START + 9 * GAP)]
    for item, time in events:
        first.observe("u", item, time)
    before = first.query("u")
    clean, swapped = Recommender.load(second), Recommender.load(second, first.states)
    for item, time in events:
        clean.observe("u", item, time)
    for time in (START + 9 * GAP + 20, START + 20 * GAP):
        # Read for an answer, read to be stored, and back under the first model.
        np.testing.assert_allclose(swapped.query("u"), clean.query("u"), atol=1e-5)
        for one in (swapped, clean):
            one.observe("u", "d", time)
    assert facts(swapped) == facts(clean)
    again = Recommender.load(first_run := Run(tmp_path / "a"), first.states)
    whole = Recommender.load(first_run)
    for item, time in [*events, ("d", START + 9 * GAP + 20), ("d", START + 20 * GAP)]:
        whole.observe("u", item, time)
    np.testing.assert_allclose(again.query("u"), whole.query("u"), atol=1e-5)
    assert np.abs(again.query("u") - before).max() > 1e-3


def test_a_damaged_state_is_told(runs: dict[str, Run]) -> None:
    rec = Recommender.load(runs["full"])
    rec.observe("u", "a", START)
    ((key, value),) = rec.states.scan()
    rec.states.update([key], lambda _: Update([value[:-1]]))
    for call in (lambda: rec.recommend("u"), lambda: rec.observe("u", "b", START), lambda: rec.query("u")):
        with pytest.raises(ArtifactError, match="stored state"):
            call()
    rec.delete("u")
    assert rec.observe("u", "a", START) == "applied"


def test_who_is_forgotten_comes_back_as_somebody_new(runs: dict[str, Run]) -> None:
    rec, clean = Recommender.load(runs["full"]), Recommender.load(runs["full"])
    rec.observe("u", "a", START)
    rec.delete("u", until=START + 10)
    assert rec.recommend("u")[0].source == "popular"
    assert rec.observe("u", "b", START + 10) == "expired"
    assert rec.observe("u", "c", START + 11) == clean.observe("u", "c", START + 11) == "applied"
    np.testing.assert_array_equal(rec.query("u"), clean.query("u"))


def test_who_was_forgotten_for_longer_stays_so(runs: dict[str, Run]) -> None:
    rec = Recommender.load(runs["full"])
    for until in (START + 100, START + 10, None):
        rec.delete("u", until=until)
        assert rec.observe("u", "b", START + 100) == "expired"
    assert rec.observe("u", "b", START + 101) == "applied"


@pytest.mark.parametrize("kind", ["repeats", "hrnn"])
def test_where_a_clock_stands_still_what_is_kept_has_an_end(
    runs: dict[str, Run], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions of at most 1,000 and 4 events: kept unread are twice as many, or the least that is settled early."""
    monkeypatch.setattr("hiertcn.online._MOST_UNREAD", 20)
    rec = Recommender.load(runs[kind])
    most = {"repeats": 2_000, "hrnn": 20}[kind]
    for number in range(0, most + 300, 50):
        assert (
            rec.observe_many([Event("u", "abcde"[n % 5], START, f"e{n}") for n in range(number, number + 50)])
            == ["applied"] * 50
            or number > most
        )
    ((_, value),) = rec.states.scan()
    state = UserState.from_bytes(value, rec.digest)
    assert state.long_term is not None
    assert 0 < state.unread <= most + 50
    assert len(rec.recommend("u")) == 5


def test_who_shares_a_store_hears_the_same_crowd(runs: dict[str, Run]) -> None:
    shared = MemoryStates()
    one, other = Recommender.load(runs["hearing"], shared), Recommender.load(runs["hearing"], shared)
    alone = Recommender.load(runs["hearing"])
    for n in range(30):
        event = (f"u{n % 7}", "abcdex"[n % 6], START + 40 * n)
        (one if n % 2 else other).observe(*event)
        alone.observe(*event)
    for rec in (one, other):
        # It listens when it is asked.
        rec.listen()
        assert_alike(rec.recommend("nobody", time=START + 1300), alone.recommend("nobody", time=START + 1300))
    deaf = Recommender.load(runs["hearing"]).recommend("nobody", time=START + 1300)
    assert [r.score for r in deaf] != [r.score for r in alone.recommend("nobody", time=START + 1300)]


def test_what_was_shown_is_kept_until_it_is_read(tmp_path: Path) -> None:
    """And read anew by another model, as far as it is there."""
    config = HierTCNConfig(**SIZES, impressions=True)
    rec = Recommender.load(run_of(tmp_path / "a", config, catalog_of("abcde")))
    rec.observe("u", "a", START, ["b", "x", "a", "c"])
    rec.observe("u", "d", START + 1)
    rec.observe("u", "b", START, ["e"])
    ((_, value),) = rec.states.scan()
    assert UserState.from_bytes(value, rec.digest).shown == [("b", "c"), ("e",), ()]
    rec.observe("u", "d", START + 2 * GAP)
    rec.observe("u", "d", START + 2 * GAP + 400, ["e"])
    ((_, value),) = rec.states.scan()
    assert UserState.from_bytes(value, rec.digest).shown == [(), ("e",)]
