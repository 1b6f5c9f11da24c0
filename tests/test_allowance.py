"""How much one user may write: no more in any minute, all of it again after one, and others as if nobody was there."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiertcn.allowance import Allowance
from hiertcn.exporting import export
from people import FULL, catalog_of, run_of
from servers import Server

SECOND = 10**9


class Clock:
    def __init__(self) -> None:
        self.at = 5 * SECOND

    def __call__(self) -> int:
        return self.at


@given(st.integers(1, 200), st.lists(st.integers(0, 90 * SECOND), max_size=300))
def test_what_is_taken_is_bounded_and_a_wait_is_long_enough(per_minute: int, waits: list[int]) -> None:
    clock = Clock()
    allowance = Allowance(per_minute, now=clock)
    begun, taken = clock.at, 0
    for wait in waits:
        clock.at += wait // 20
        if not (told := allowance.take("u")):
            taken += 1
            # All at once, and what came back since.
            assert taken <= per_minute * (1 + (clock.at - begun) / (60 * SECOND)) + 1e-6
        else:
            assert 1 <= told <= 60
            clock.at += told * SECOND
            assert allowance.take("u") == 0
            taken += 1


def test_a_whole_minutes_worth_may_come_at_once_and_again_after_it() -> None:
    clock = Clock()
    allowance = Allowance(600, now=clock)
    assert [allowance.take("u") for _ in range(601)] == [0] * 600 + [1]
    assert allowance.take("v") == 0
    clock.at += 60 * SECOND
    assert [allowance.take("u") for _ in range(601)] == [0] * 600 + [1]


def test_only_so_many_users_are_remembered() -> None:
    allowance = Allowance(1, users=3, now=Clock())
    assert [allowance.take(user) for user in "abcda"] == [0] * 5
    assert len(allowance) == 3
    assert allowance.take("d") == 60


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run_of(tmp_path_factory.mktemp("runs") / "shop", FULL, catalog_of("abcde")))


def test_a_server_tells_who_writes_too_much_to_wait(exported: Path) -> None:
    now = int(time.time())

    def event(user: str, number: int) -> dict[str, object]:
        return {"event_id": f"{number}", "user_id": user, "item_id": "a", "time": now}

    with Server(exported, "--state", "memory:", "--user-limit", 5) as server:
        said = server.post("/v1/events", {"events": [event("u", n) for n in range(8)] + [event("v", 0)]})
        assert [one["status"] for one in said.body["results"]] == ["applied"] * 5 + ["limited"] * 3 + ["applied"]
        assert "Send it again in" in said.body["results"][5]["error"]["message"]
        assert server.ask("GET", "/v1/users/u").body["events"] == 5
        body = json.dumps({"event": event("u", 9)}).encode()
        head = (
            b"POST /v1/observe HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
        )
        with server.open(head + b"content-length: %d\r\n\r\n" % len(body) + body) as opened:
            head = opened.recv(4096)
        assert head.startswith(b"HTTP/1.1 429")
        assert b"retry-after: 12" in head.lower() or b"retry-after: 11" in head.lower()
        assert server.post("/v1/recommend", {"user_id": "u"}).status == 200
        # What is not stored costs none of it.
        passing = [{**event("w", n), "consent": False} for n in range(8)]
        passing += [{**event("w", n), "time": now - 500 * 86_400} for n in range(8)]
        said = server.post("/v1/events", {"events": [*passing, *(event("w", n) for n in range(6))]})
        found = ["not_stored"] * 8 + ["expired"] * 8 + ["applied"] * 5 + ["limited"]
        assert [one["status"] for one in said.body["results"]] == found
        assert b'hiertcn_events_total{status="limited"} 4.0' in server.ask("GET", "/metrics").body
    with Server(exported, "--state", "memory:", "--user-limit", 0) as server:
        said = server.post("/v1/events", {"events": [event("u", n) for n in range(1000)]})
        assert {one["status"] for one in said.body["results"]} == {"applied"}
