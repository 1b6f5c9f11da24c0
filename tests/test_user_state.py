"""A user's facts are the same whatever way the events came, and come back from a store as they were, or not at all."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hiertcn.errors import ArtifactError
from hiertcn.states import Pick, UserState, mark_of
from hiertcn.states.state import HISTORY

MINE, OTHER = b"8 bytes!", b"8 others"
moments = st.integers(0, 2**50)
texts = st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=5)
picks = st.builds(Pick, texts, moments, st.integers(0, 2**64 - 1), st.lists(texts, max_size=2, unique=True).map(tuple))


def after(state: UserState, *more: Pick) -> UserState:
    for pick in more:
        state, _ = state.followed_by(pick, str)
    return state


def by_place(unread: int) -> UserState:
    """Events a, b, c, … at 10, 20, 30, … seconds, with marks of their own, of which the last `unread` are not read."""
    state = after(UserState(), *(Pick("abcdefgh"[n], 10 * (n + 1), mark_of(f"e{n}")) for n in range(8)))
    return state if unread == 8 else state.after(8 - unread, np.ones(3, np.float32), 10 * (8 - unread))


@st.composite
def states(draw: st.DrawFn) -> UserState:
    state = after(UserState(), *draw(st.lists(picks, max_size=6)))
    if state.unread and draw(st.booleans()):
        kind = draw(st.sampled_from([np.float32, np.int64]))
        elements = {} if kind == np.int64 else {"elements": st.floats(-1, 1, width=32)}
        long_term = draw(arrays.arrays(kind, st.integers(0, 6), **elements))
        state = state.after(draw(st.integers(1, state.unread)), long_term, draw(st.none() | moments))
    return replace(state, forgotten=draw(st.none() | moments))


def facts(state: UserState) -> tuple[object, ...]:
    return state.items, state.times, state.marks, state.shown, state.unread, state.previous_end, state.forgotten


@given(states())
def test_a_state_comes_back_as_it_was(state: UserState) -> None:
    again = UserState.from_bytes(state.to_bytes(MINE), MINE)
    assert facts(again) == facts(state)
    if state.long_term is None:
        assert again.long_term is None
    else:
        assert again.long_term is not None
        assert again.long_term.dtype == state.long_term.dtype
        np.testing.assert_array_equal(again.long_term, state.long_term)


@given(states())
def test_another_model_has_read_nothing_of_it(state: UserState) -> None:
    again = UserState.from_bytes(state.to_bytes(OTHER), MINE)
    assert (again.items, again.times, again.marks) == (state.items, state.times, state.marks)
    assert (again.unread, again.long_term, again.previous_end) == (len(state.items), None, None)
    assert again.shown[len(again.shown) - len(state.shown) :] == state.shown
    assert again.forgotten == state.forgotten


@settings(max_examples=300)
@given(states(), st.data())
def test_a_damaged_state_is_refused(state: UserState, data: st.DataObject) -> None:
    whole = state.to_bytes(MINE)
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    for bad in (flipped, whole[:at], whole + b"\0", data.draw(st.binary(max_size=100))):
        with pytest.raises(ArtifactError):
            UserState.from_bytes(bad, MINE)


@pytest.mark.parametrize(
    ("at", "value", "text"),
    [
        (0, b"h", "format 3"),
        (4, b"\1", "format 1"),
        (6, b"\7", "format 3"),
        (32, b"\2", "length"),
        (36, b"\2", "length"),
        (44, b"\2", "length"),
    ],
)
def test_a_state_that_does_not_agree_with_itself_is_refused(at: int, value: bytes, text: str) -> None:
    whole = after(UserState(), Pick("a", 10)).after(1, np.zeros(3, np.float32), None).to_bytes(MINE)
    body = whole[:at] + value + whole[at + 1 : -4]
    with pytest.raises(ArtifactError, match=text):
        UserState.from_bytes(body + zlib.crc32(body).to_bytes(4, "little"), MINE)


@given(st.lists(picks, max_size=8, unique_by=lambda pick: (pick.item, pick.time)), st.randoms())
def test_events_come_in_any_order_and_more_than_once(given_picks: list[Pick], random: object) -> None:
    marked = [pick._replace(mark=mark_of(str(n))) for n, pick in enumerate(given_picks)]
    shuffled = marked + marked[: len(marked) // 2]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    state = after(UserState(), *shuffled)
    ordered = sorted(marked, key=lambda pick: (pick.time, pick.item))
    assert (state.items, state.times) == ([pick.item for pick in ordered], [pick.time for pick in ordered])
    assert state.marks == [pick.mark for pick in ordered]
    assert (state.shown or [()] * len(ordered)) == [pick.shown for pick in ordered]


def test_between_events_of_one_time_the_order_of_the_log_decides() -> None:
    at_once = [Pick(item, 10) for item in ("10", "9", "2")]
    assert after(UserState(), *at_once).items == ["10", "2", "9"]
    state = UserState()
    for pick in at_once:
        state, _ = state.followed_by(pick, int)
    assert state.items == ["2", "9", "10"]


@pytest.mark.parametrize("unread", [8, 3])
def test_an_event_counts_once(unread: int) -> None:
    state = by_place(unread)
    for pick, expected in (
        (Pick("c", 30, mark_of("e2")), "duplicate"),
        (Pick("c", 31, mark_of("e2")), "conflict"),
        (Pick("x", 30, mark_of("e2")), "conflict"),
    ):
        assert state.followed_by(pick, str) == (state, expected)
    for pick in (Pick("h", 80, mark_of("other")), Pick("h", 80)):
        again, status = state.followed_by(pick, str)
        assert (status, again.items[-2:]) == ("applied", ["h", "h"])
        assert again.marks[-2:] == sorted(again.marks[-2:])


def test_what_was_read_is_not_read_again() -> None:
    state = by_place(3)
    for time, item, status, unread in ((61, "x", "applied", 4), (90, "x", "applied", 4), (55, "x", "late", 3)):
        found, what = state.followed_by(Pick(item, time), str)
        assert (what, found.unread) == (status, unread)
        assert found.times == sorted([*state.times, time])
        np.testing.assert_array_equal(found.long_term, state.long_term)
    # Of one time with the first one that is not read yet: by the order of ids.
    assert state.followed_by(Pick("a", 60), str)[1] == "late"
    assert state.followed_by(Pick("x", 60), str)[1] == "applied"


def test_what_was_to_be_forgotten_does_not_come_back() -> None:
    state = UserState(forgotten=50)
    assert state.followed_by(Pick("a", 50), str) == (state, "expired")
    state, status = state.followed_by(Pick("a", 51), str)
    assert (status, state.items, state.forgotten) == ("applied", ["a"], 50)


@given(st.integers(0, 3), st.lists(st.integers(1, 60), max_size=8))
def test_the_last_events_are_kept_and_all_that_are_not_read(past: int, steps: list[int]) -> None:
    state, count = UserState(), 0
    for step in steps:
        state = after(state, *(Pick(f"i{n}", n) for n in range(count, count + step)))
        count += step
        state = state.after(max(state.unread - past, 0), np.zeros(1, np.float32), None)
        assert state.items == [f"i{n}" for n in range(max(0, count - HISTORY), count)]
        assert state.unread == min(past, count)
    unread = after(UserState(), *(Pick(f"i{n}", n) for n in range(HISTORY + 50)))
    assert len(unread.items) == unread.unread == HISTORY + 50
    assert unread.seen == unread.items


def test_a_typical_state_takes_less_than_2_kb() -> None:
    """25 events on numbers of seven digits, and a long-term state of 306 numbers, as of the default model."""
    state = after(UserState(), *(Pick(str(9_700_000 + n), 10**15 + n, mark_of(f"e{n}")) for n in range(25)))
    assert 1500 < len(state.after(20, np.zeros(306, np.float32), 0).to_bytes(MINE)) < 2000
