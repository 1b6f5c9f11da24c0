"""Clocks that are ahead of the server's: their events count as of now, in their order, and once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults import Faults
from hiertcn.artifact import Run
from hiertcn.door import microseconds
from hiertcn.recommender import Recommender
from hiertcn.replay import replay
from hiertcn.served import served
from hiertcn.sessions import SECOND
from hiertcn.skew import SKEW, ahead_of, clamped, stated
from hiertcn.states import MemoryStates, Pick, UserState, mark_of
from people import START
from replays import log_of
from servers import Server

DAY = 86_400


@given(st.integers(1, 2**31), st.floats(0, 1, exclude_max=True), st.integers(-10_000, SKEW))
def test_what_is_ahead_counts_as_now_and_can_be_told(second: int, part: float, ahead: int) -> None:
    now = second + part
    # Their sum may be rounded up.
    second = int(now)
    time = max(1, second + ahead)
    taken = microseconds(clamped(time, now))
    assert taken <= min(time, now + SKEW / SECOND) * SECOND
    assert taken // SECOND == min(time, second)
    assert (stated(taken), ahead_of(taken)) == (time * SECOND, max(0, time - second))


@given(st.integers(1, 2**31), st.lists(st.integers(1, SKEW), min_size=2))
def test_those_that_are_ahead_keep_their_order(second: int, aheads: list[int]) -> None:
    taken = [microseconds(clamped(second + ahead, second)) for ahead in aheads]
    assert sorted(range(len(taken)), key=taken.__getitem__) == sorted(range(len(taken)), key=aheads.__getitem__)


@pytest.mark.parametrize("bulk", [True, False])
def test_an_event_told_again_is_known_whatever_the_clock_shows_by_then(bulk: bool) -> None:
    def told(state: UserState, now: float, time: int = START + 90) -> tuple[UserState, str]:
        pick = Pick("a", microseconds(clamped(time, now)), mark_of("e"))
        if not bulk:
            return state.followed_by(pick, str)
        after, (status,) = state.followed_by_all([pick], str)
        return after, status

    state, status = told(UserState(), START)
    assert status == "applied"
    for now in (START, START + 0.5, START - 30, START + 60, START + 90, START + DAY):
        after, status = told(state, now)
        assert (after.times, status) == (state.times, "duplicate")
        assert told(state, now, START + 89)[1] == "conflict"
    # And the other way round: told first when its time had come.
    late, _ = told(UserState(), START + 91)
    assert told(late, START)[1] == "duplicate"


def test_a_server_says_how_far_ahead_it_was_and_takes_it_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(tmp_path)
    for name, value in faults.environment.items():
        monkeypatch.setenv(name, value)

    def event(number: int, ahead: int, **more: Any) -> dict[str, Any]:
        return {"event_id": f"e{number}", "user_id": "u", "item_id": "ac"[number % 2], "time": now + ahead, **more}

    with Server(run.path, "--state", "memory:") as server:
        now = int(time.time())
        with faults.of("clock", -1_000):
            sent = [event(0, -1_060), event(1, -920), event(2, -919), event(3, -800), event(4, -920, consent=False)]
            said = server.post("/v1/events", {"events": sent}).body["results"]
            assert [one["status"] for one in said] == ["applied"] * 3 + ["invalid", "not_stored"]
            assert said[3]["error"]["code"] == "clock_skew"
            aheads = [one.get("ahead") for one in said]
            assert aheads[0] is aheads[3] is None
            assert 0 < aheads[1] == aheads[2] - 1 == aheads[4] <= SKEW
            kept = server.ask("GET", "/v1/export/u").body["events"]
            assert [one["item_id"] for one in kept] == ["a", "c", "a"]
            assert [int(one["time"]) for one in kept[1:]] == [now - 920 - aheads[1]] * 2
            again = server.post("/v1/observe", {"event": sent[1]}).body["result"]
            assert (again["status"], again["ahead"] <= aheads[1]) == ("duplicate", True)
        # By the right clock it is of long ago.
        again = server.post("/v1/events", {"events": sent[:3]}).body["results"]
        assert again == [{"event_id": f"e{n}", "status": "duplicate"} for n in range(3)]
        stated = server.ask("GET", "/openapi.json").body["components"]["schemas"]["Result"]["properties"]
        assert "ahead" in stated


def test_a_log_replayed_over_it_knows_it(run: Run) -> None:
    """By item and time as the log states them, since logs may lack ids."""
    states = MemoryStates()
    with Recommender.load(run, states) as rec:
        rec.observe("u", "a", clamped(START + 90, START), event_id="of a server")
        log = log_of([("u", "a", START + 90), ("u", "b", START + 91)])
        assert replay(served(run), states, log).statuses == {"duplicate": 1, "applied": 1}
