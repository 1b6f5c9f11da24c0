"""A user's state comes back from a store as it was, or not at all."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hiertcn.errors import ArtifactError
from hiertcn.states import UserState

MINE, OTHER = b"8 bytes!", b"8 others"


def some_rows(most: int, least: int = 0) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(np.int32, st.integers(0, most), elements=st.integers(least, 2**31 - 1))


@st.composite
def states(draw: st.DrawFn) -> UserState:
    kind = draw(st.sampled_from([np.float32, np.int64]))
    elements = {} if kind == np.int64 else {"elements": st.floats(-1, 1, width=32)}
    items = draw(some_rows(6))
    return UserState(
        draw(arrays.arrays(kind, st.integers(0, 6), **elements)),
        items,
        draw(arrays.arrays(np.int64, len(items))),
        draw(st.none() | st.integers(0, 2**62)),
        draw(some_rows(6, least=1)),
    )


def assert_same(a: UserState, b: UserState) -> None:
    assert a.previous_end == b.previous_end
    for name in ("long_term", "items", "times", "seen"):
        assert getattr(a, name).dtype == getattr(b, name).dtype
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@given(states())
def test_a_state_comes_back_as_it_was(state: UserState) -> None:
    assert_same(UserState.from_bytes(state.to_bytes(MINE), MINE), state)


@settings(max_examples=300)
@given(states(), st.data())
def test_a_damaged_state_is_refused(state: UserState, data: st.DataObject) -> None:
    whole = state.to_bytes(MINE)
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    for bad in (flipped, whole[:at], whole + b"\0", data.draw(st.binary(max_size=100))):
        with pytest.raises(ArtifactError):
            UserState.from_bytes(bad, MINE)


def test_a_state_of_another_model_or_format_is_refused() -> None:
    whole = UserState(np.zeros(3, np.float32)).to_bytes(MINE)
    with pytest.raises(ArtifactError, match="stored under the model"):
        UserState.from_bytes(whole, OTHER)
    for at, value, text in (
        (0, b"h", "format 2"),
        (4, b"\1", "format 1"),
        (6, b"\7", "format 2"),
        (28, b"\2", "length"),
    ):
        body = whole[:at] + value + whole[at + 1 : -4]
        with pytest.raises(ArtifactError, match=text):
            UserState.from_bytes(body + zlib.crc32(body).to_bytes(4, "little"), MINE)


@given(st.lists(st.lists(st.integers(0, 300), max_size=300), max_size=4))
def test_the_last_distinct_known_items_are_remembered(pieces: list[list[int]]) -> None:
    state = UserState(np.zeros(0, np.float32))
    for piece in pieces:
        state = state.followed_by(np.array(piece, np.int32), np.zeros(len(piece), np.int64))
    rows = [row for piece in pieces for row in piece]
    latest = list(dict.fromkeys(row for row in reversed(rows) if row))
    assert state.seen.tolist() == latest[:256][::-1]
    assert state.items.tolist() == rows
