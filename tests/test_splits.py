"""Splits: who is in which part, and what stays the same when the log changes."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import given

from hiertcn.errors import InputError
from hiertcn.splits import by_last, by_names, by_time, by_users, described, quantile_cuts

THIRDS = (0.8, 0.1, 0.1)


@pytest.mark.parametrize(
    ("events", "sizes"), [(10, (8, 1, 1)), (2, (1, 0, 1)), (5, (4, 0, 1)), (3, (2, 0, 1)), (100, (80, 10, 10))]
)
def test_last_cuts_each_user_by_count(events: int, sizes: tuple[int, ...]) -> None:
    offsets = np.array([0, events, events + 10])
    parts = by_last(offsets, THIRDS)
    np.testing.assert_array_equal(np.bincount(parts[:events], minlength=3), sizes)
    np.testing.assert_array_equal(np.bincount(parts[events:], minlength=3), (8, 1, 1))


@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=20), train=st.floats(0.05, 0.9))
def test_last_keeps_the_order_of_parts(counts: list[int], train: float) -> None:
    offsets = np.concatenate([[0], np.cumsum(counts)])
    parts = by_last(offsets, (train, (1 - train) / 2, (1 - train) / 2))
    for begin, end in pairwise(offsets):
        assert (np.diff(parts[begin:end].astype(int)) >= 0).all()
        assert (parts[begin:end] == 0).sum() == np.floor(train * (end - begin) + 1e-9)


@given(times=st.lists(st.integers(0, 1000), min_size=1, max_size=200))
def test_time_cuts_at_quantiles_of_all_events(times: list[int]) -> None:
    ordered = np.sort(np.array(times, dtype=np.int64))
    cuts = quantile_cuts(ordered, THIRDS)
    parts = by_time(ordered, cuts)
    assert (parts == 0).sum() <= 0.8 * len(times) + 1e-9
    if len(set(times)) == len(times):
        assert (parts == 0).sum() == np.floor(0.8 * len(times) + 1e-9)
    assert described("time", parts, ordered)["overlap"] == 0


def test_users_stay_in_their_part_whoever_else_comes() -> None:
    ids = pl.Series([f"user {number}" for number in range(5000)])
    parts = by_users(ids, THIRDS, seed=0)
    np.testing.assert_allclose(np.bincount(parts) / len(ids), THIRDS, atol=0.02)
    np.testing.assert_array_equal(by_users(ids[::7], THIRDS, seed=0), parts[::7])
    assert (by_users(ids, THIRDS, seed=1) != parts).mean() > 0.2
    numbers = pl.Series(range(100))
    np.testing.assert_array_equal(by_users(numbers, THIRDS, 0), by_users(numbers.cast(pl.String), THIRDS, 0))
    assert set(by_users(ids, (1.0, 0.0, 0.0), seed=0)) == {0}


def test_names_of_parts() -> None:
    names = ["Train", "test", "valid", "validation", "odd"]
    np.testing.assert_array_equal(by_names(np.array([0, 1, 2, 3], np.uint32), names, "fold"), [0, 2, 1, 1])
    with pytest.raises(InputError, match="'fold' holds 'odd'"):
        by_names(np.array([0, 4], np.uint32), names, "fold")
    with pytest.raises(InputError, match="holds None"):
        by_names(np.array([0], np.uint32), [None], "fold")
