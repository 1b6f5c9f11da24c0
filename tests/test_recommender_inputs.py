"""What a recommender takes for an id, a time and a number of items, and what it says of anything else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from hiertcn.errors import InputError
from hiertcn.recommender import Recommender
from people import FULL, GAP, START, assert_alike, catalog_of, five_items, run_of


@pytest.fixture
def rec(tmp_path: Path) -> Recommender:
    return five_items(tmp_path / "run")


def test_ids_are_those_of_the_log(tmp_path: Path) -> None:
    numbers = Recommender.load(run_of(tmp_path / "numbers", FULL, catalog_of([17, 5, 3])))
    for user, item in ((1, 17), ("2", "17"), (np.int64(3), np.int64(17))):
        numbers.observe(user, item, START)
    assert numbers.recommend("1") == numbers.recommend(2) == numbers.recommend(3)
    assert numbers.recommend(1)[0].source == "model"
    assert {r.item for r in numbers.recommend(1)} == {17, 5, 3}
    numbers.observe(1, "no number", START)
    texts = Recommender.load(run_of(tmp_path / "texts", FULL, catalog_of(["017", "17", "🙂"])))
    texts.observe("u", 17, START)
    assert {r.item for r in texts.recommend("u", exclude_seen=True)} == {"017", "🙂"}


BAD_IDS = ["", "a" * 257, "é" * 129, "a\n", "\0", "\x85", "\ud800", 2**63, 10**5000, True, 1.5, None, b"a", ["a"]]


@pytest.mark.parametrize("bad", BAD_IDS, ids=lambda bad: type(bad).__name__)
def test_an_id_that_can_be_none_is_refused(rec: Recommender, bad: object) -> None:
    for call in (
        lambda: rec.observe(bad, "a", START),  # type: ignore[arg-type]
        lambda: rec.observe("u", bad, START),  # type: ignore[arg-type]
        lambda: rec.recommend(bad),  # type: ignore[arg-type]
        lambda: rec.query(bad),  # type: ignore[arg-type]
        lambda: rec.delete(bad),  # type: ignore[arg-type]
        lambda: rec.recommend_history([bad], [START]),  # type: ignore[list-item]
    ):
        with pytest.raises(InputError, match=r"id is .*; expected a whole number of 64 bits, or a text") as caught:
            call()
        assert len(str(caught.value)) < 350
        assert "\n" not in str(caught.value)
    assert list(rec.states.scan()) == []


NUMBERS = [float("nan"), float("inf"), -1, 0, 7_258_118_400, 1_700_000_000_000, 10**5000]
DATES = [
    datetime(2024, 5, 1),
    *(datetime(year, 1, 1, tzinfo=UTC) for year in (1969, 9999)),
    np.datetime64("2024-05-01"),
]
BAD_TIMES = [*NUMBERS, *DATES, True, "1700000000", None]


@pytest.mark.parametrize("bad", BAD_TIMES, ids=lambda bad: type(bad).__name__)
def test_a_time_that_can_be_none_is_refused(rec: Recommender, bad: object) -> None:
    calls = [
        lambda: rec.observe("u", "a", bad),  # type: ignore[arg-type]
        lambda: rec.recommend_history(["a"], [bad]),  # type: ignore[list-item]
    ]
    if bad is not None:
        calls.append(lambda: rec.recommend("u", time=bad))  # type: ignore[arg-type]
    for call in calls:
        with pytest.raises(InputError, match=r"The time .*; expected") as caught:
            call()
        assert len(str(caught.value)) < 350
    assert list(rec.states.scan()) == []


def test_times_of_every_kind_are_the_same_moment(rec: Recommender) -> None:
    moment = datetime.fromtimestamp(START, UTC)
    kinds = [START, float(START), np.int64(START), np.float64(START), np.int32(START), moment]
    for time in [*kinds, moment.astimezone(timezone(timedelta(hours=9)))]:
        rec.delete("u")
        rec.observe("u", "a", time)
        rec.observe("u", "b", START + GAP)
        expected = rec.recommend_history(["a", "b"], [START, START + GAP])
        assert_alike(rec.recommend("u"), expected)


def test_events_come_in_the_order_of_time(rec: Recommender) -> None:
    rec.observe("u", "a", START)
    rec.observe("u", "b", START)
    before = list(rec.states.scan())
    for call in (lambda: rec.observe("u", "c", START - 0.001), lambda: rec.recommend("u", time=START - 1)):
        with pytest.raises(InputError, match="earlier than the user's last event"):
            call()
    assert list(rec.states.scan()) == before


@pytest.mark.parametrize("k", [0, -1, 501, 10**200, 2.0, True, "3", None])
def test_k_is_a_number_from_1_to_500(rec: Recommender, k: object) -> None:
    for user in ("u", "cold"):
        rec.delete("u")
        rec.observe("u", "a", START)
        with pytest.raises(InputError, match="expected a whole number from 1 to 500"):
            rec.recommend(user, k)  # type: ignore[arg-type]
    assert len(rec.recommend("u", 500)) == 5
