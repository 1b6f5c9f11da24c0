"""What everybody picked lately: against a slow computation, observed as read, and of no later part."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caches import User, cache_of
from crowds import CATALOG, HORIZONS, START, dense
from hiertcn.crowd import Crowd, Horizons, bytes_needed
from hiertcn.streams import crowd_bytes, crowd_of, known_rows
from hiertcn.trends import MOST, PERIOD

Events = list[tuple[int, int, float]]


def slow(events: Events, moment: float, after: int) -> npt.NDArray[Any]:
    """[C, n + 1] by the words of the docstrings."""
    out = np.zeros((3, CATALOG + 1))
    period = moment // PERIOD
    for row, before, time in events:
        ended = (time // PERIOD + 1) * PERIOD
        if row and time // PERIOD < period:
            out[:2, row] += np.exp(-(moment - ended) / np.array([180.0, 7200.0]))
        if row and before and before == after and time < moment:
            out[2, row] += np.exp(-(moment - time) / 1800)
    return out


def crowd(events: Events) -> Crowd:
    rows, before, times = (np.array([event[k] for event in events]) for k in range(3))
    return Crowd.of(HORIZONS, CATALOG, rows.astype(np.int64), before.astype(np.int64), times.astype(np.float64))


def told(one: Crowd, moment: float, after: int) -> npt.NDArray[Any]:
    return dense(*one.at(np.array([moment], dtype=np.float64), np.array([after])))[0]


rows = st.integers(0, CATALOG)
logs = st.lists(st.tuples(rows, rows, st.integers(0, 2000).map(lambda wait: float(START + wait))), min_size=1)


@settings(deadline=None)
@given(logs, st.integers(-100, 4000), rows)
def test_it_is_the_slow_sum(events: Events, moment: int, after: int) -> None:
    np.testing.assert_allclose(
        told(crowd(events), START + moment, after), slow(events, START + moment, after), atol=1e-5
    )


@settings(deadline=None)
@given(logs, st.randoms(use_true_random=False))
def test_the_order_of_what_is_read_changes_nothing(events: Events, random: Any) -> None:
    mixed = random.sample(events, len(events))
    for moment in (START + 500, START + 3000):
        np.testing.assert_allclose(told(crowd(events), moment, 1), told(crowd(mixed), moment, 1), rtol=1e-6)


@settings(deadline=None)
@given(logs, st.integers(0, 40))
def test_observed_one_by_one_it_is_the_same_at_every_moment(events: Events, minutes: int) -> None:
    """The events of the first minutes are read at once, the others told."""
    events = sorted(events, key=lambda event: event[2])
    asked = np.array([START + 3_000.0, START + 30 * 86_400.0]), np.array([1, 2])
    known = sum(time < (START // PERIOD + minutes) * PERIOD for _, _, time in events)
    whole, told_one = crowd(events), crowd(events[:known]) if known else Crowd(HORIZONS, CATALOG)
    for row, before, time in events[known:]:
        now, after = np.array([time]), np.array([before])
        np.testing.assert_allclose(
            dense(*told_one.at(now, after))[0], dense(*whole.at(now, after))[0], rtol=1e-5, atol=1e-6
        )
        told_one.observe(row, time, before)
        # Nobody's question moves the clock of all: not far ahead, and not into the next period.
        told_one.at(*asked)


@settings(deadline=None)
@given(logs)
def test_it_goes_on_from_its_state_with_a_larger_catalog(events: Events) -> None:
    before = crowd(events)
    after = Crowd.restored(HORIZONS, CATALOG + 2, before.state())
    for moment in (START + 2100, START + 9000):
        at = np.array([float(moment)]), np.array([2])
        expected, found = dense(*before.at(*at), CATALOG + 2), dense(*after.at(*at), CATALOG + 2)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_of_more_items_those_that_weigh_most_are_kept() -> None:
    """Of trends the most; of follows the last picks."""
    rng = np.random.default_rng(0)
    items = rng.permutation(np.repeat(np.arange(1, 101), np.arange(1, 101)))
    times = START + np.arange(len(items)) / 1000
    many = Crowd.of(Horizons((1.0,), (1.0,)), 100, items, np.full(len(items), 7), times)
    found, weights = many.at(np.array([START + 7200.0]), np.array([7]))
    assert set(found[0, 0]) == set(range(101 - MOST, 101))
    assert (np.diff(weights[0, 0]) <= 0).all()
    assert set(found[0, 1]) - {0} == set(items[-MOST:])


def test_a_long_time_overflows_nothing() -> None:
    times = np.array([60.0, START, START])
    short = Crowd.of(Horizons((0.01,)), 2, np.array([1, 2, 2]), np.zeros(3, np.int64), times)
    found = dense(*short.at(np.array([90.0, 130.0, START + 80.0]), np.zeros(3, np.int64)), 2)[:, 0]
    assert found[0].tolist() == [0, 0, 0]
    assert found[1, 1] == pytest.approx(np.exp(-10 / 36))
    assert found[2, 1] == 0 < found[2, 2]


def test_a_part_knows_of_its_own_events_and_of_those_before_it(tmp_path: Path) -> None:
    parts = ["train", "train", "valid", "test"]
    users: list[User] = [("u", [1, 2, 3, 4], [START + 100 * k for k in range(4)], parts)]
    cache = cache_of(tmp_path / "cache", users, 1800, CATALOG)
    rows = known_rows(cache.catalog)
    for part, known in (("train", {1, 2}), ("valid", {1, 2, 3}), ("test", {1, 2, 3, 4})):
        one = crowd_of(cache, part, rows, HORIZONS)
        assert one is not None
        assert set(np.flatnonzero(told(one, START + 1000, 0)[1])) == known
        for item in range(1, 4):
            assert set(np.flatnonzero(told(one, START + 1000, item)[2])) == known & {item + 1}
    assert crowd_of(cache, "train", rows, Horizons()) is None
    assert crowd_bytes(cache, Horizons()) == 0 < crowd_bytes(cache, HORIZONS) == bytes_needed(HORIZONS, 4, 300)


def test_follows_stay_within_the_session_and_pass_over_unknown_items(tmp_path: Path) -> None:
    users: list[User] = [("u", [1, CATALOG + 1, 2, 3], [START, START + 10, START + 20, START + 9000], "train")]
    one = crowd_of(
        cache := cache_of(tmp_path / "cache", users, 1800, CATALOG), "train", known_rows(cache.catalog), HORIZONS
    )
    assert one is not None
    assert np.flatnonzero(told(one, START + 9100, 1)[2]).tolist() == [2]
    assert not told(one, START + 9100, 2)[2].any()


def test_being_asked_about_tomorrow_does_not_stop_the_clock() -> None:
    hears, asked = Crowd(HORIZONS, CATALOG), Crowd(HORIZONS, CATALOG)
    for minute in range(5):
        asked.at(np.array([START + 1e8]), np.array([0]))
        for one in (hears, asked):
            one.observe(1 + minute, START + 60.0 * minute, 0)
    assert np.flatnonzero(told(hears, START + 400, 0)[0]).tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(told(asked, START + 400, 0), told(hears, START + 400, 0))


YEARS = 1e8


@pytest.mark.parametrize("way", ["observed", "read", "of a log of thousands"])
def test_a_wrong_clock_makes_nobody_deaf(way: str) -> None:
    many = [(1 + n % 3, 0, START + 60.0 * n / 100) for n in range(3000 if way == "of a log of thousands" else 5)]
    stray = [(4, 0, START + YEARS)] * (2 if way == "of a log of thousands" else 1)
    if way == "observed":
        one = crowd(many)
        one.observe(*stray[0][::2], 0)
    else:
        one = Crowd.restored(HORIZONS, CATALOG, crowd(many + stray).state())
    end = many[-1][2]
    for minute in range(1, 5):
        one.observe(5, end + 60.0 * minute, 0)
    found = told(one, end + 400, 0)
    assert found[0, 5] > 1
    # It counts as of the end of the others.
    assert 0 < found[1, 4] < 2


def test_after_a_long_pause_the_clock_goes_on() -> None:
    one = crowd([(1, 0, START)])
    for minute in range(3):
        one.observe(2 + minute, START + YEARS + 60.0 * minute, 0)
    assert np.flatnonzero(told(one, START + YEARS + 200, 0)[0] > 1e-3).tolist() == [2, 3, 4]


def test_an_item_that_is_newer_than_the_catalog_is_heard() -> None:
    one = crowd([(1, 0, START)])
    one.observe(CATALOG + 2, START + 120, 1)
    assert dense(*one.at(np.array([START + 200.0]), np.array([1])), CATALOG + 2)[0, 1:, CATALOG + 2].all()


def test_it_takes_no_more_memory_than_is_told() -> None:
    rng, events, seconds = np.random.default_rng(0), 200_000, 100_000
    items, before = rng.integers(1, 1000, (2, events))
    times = START + rng.uniform(0, seconds, events)
    for horizons in (Horizons((0.5, 4.0), (1.0,)), Horizons((), (1.0,)), Horizons((0.5,), ())):
        said = bytes_needed(horizons, events, seconds)
        tracemalloc.start()
        two = [Crowd.of(horizons, 1000, items.copy(), before.copy(), times.copy()) for _ in range(2)]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert 0.4 * said < peak < said, (horizons, peak / said)
        del two
