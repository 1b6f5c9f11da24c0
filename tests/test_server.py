"""The door over HTTP: what it takes in, what it answers, what it refuses, and that it loses nothing."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil
import pytest

from hiertcn.artifact import Run
from hiertcn.errors import InputError
from hiertcn.keys import new_key
from hiertcn.recommender import Recommender
from hiertcn.serving import check_bind
from servers import Said, Server

NOW = int(time.time())


def event(user: str, item: str, number: int, wait: int = 0) -> dict[str, Any]:
    return {"event_id": f"{user}-{number}", "user_id": user, "item_id": item, "time": NOW + wait}


def statuses(said: Said) -> list[str]:
    assert said.status == 200, said
    return [result["status"] for result in said.body["results"]]


def test_events_change_what_is_recommended_as_in_python(server: Server, run: Run) -> None:
    events = [("a", -9000), ("b", -8950), ("c", -60), ("e", -30)]
    sent = [event("like-python", item, n, wait) for n, (item, wait) in enumerate(events)]
    assert statuses(server.post("/v1/events", {"events": sent})) == ["applied"] * 4
    said = server.post("/v1/recommend", {"user_id": "like-python", "k": 3, "exclude_seen": True, "as_of": NOW})
    with Recommender.load(run) as rec:
        for item, wait in events:
            rec.observe("u", item, NOW + wait)
        (best,) = rec.recommend("u", 3, exclude_seen=True, time=NOW)
    assert said.body["items"] == [{"item_id": "d", "score": pytest.approx(best.score, abs=1e-5)}]
    assert (said.status, said.body["source"], said.body["user_id"]) == (200, "model", "like-python")
    assert best.item == "d"
    seen = server.ask("GET", "/v1/users/like-python").body
    assert [session["items"] for session in seen["sessions"]] == [["a", "b"], ["c", "e"]]
    assert seen["events"] == 4
    assert 100 < seen["bytes"] < 2000


def test_one_call_takes_an_event_in_and_answers(server: Server) -> None:
    said = server.post("/v1/observe", {"event": event("one-call", "a", 0), "k": 5})
    again = server.post("/v1/observe", {"event": event("one-call", "a", 0), "k": 5})
    assert said.body["result"] == {"event_id": "one-call-0", "status": "applied"}
    assert again.body["result"]["status"] == "duplicate"
    assert said.body["items"] == again.body["items"]
    assert [one["item_id"] for one in said.body["items"]].count("a") == 1
    other = server.post("/v1/observe", {"event": event("one-call", "b", 0)})
    assert (other.status, other.body["error"]["code"]) == (409, "conflict")


def test_each_event_of_many_is_judged_by_itself(server: Server) -> None:
    events = [event("many", "abcde"[n % 5], n, n) for n in range(100)]
    events[7]["time"] = "5"
    events[8] = {"event_id": "lost"}
    events[9]["time"] = NOW + 9999
    events[10]["item_id"] = "never heard of"
    events[11] = events[12]
    found = server.post("/v1/events", {"events": events}).body["results"]
    expected = ["applied"] * 100
    expected[7:10], expected[10], expected[12] = ["invalid"] * 3, "unknown_item", "duplicate"
    assert [one["status"] for one in found] == expected
    assert [one["event_id"] for one in found] == [one["event_id"] for one in events]
    assert found[7]["error"]["field"] == "time"
    assert found[9]["error"]["code"] == "clock_skew"
    # Sent again, nothing changes.
    before = server.ask("GET", "/v1/users/many").body
    again = statuses(server.post("/v1/events", {"events": events}))
    assert set(again) == {"duplicate", "invalid"}
    assert server.ask("GET", "/v1/users/many").body["sessions"] == before["sessions"]
    assert statuses(server.post("/v1/events", {"events": []})) == []
    assert server.post("/v1/events", {"events": [event("many", "a", n) for n in range(1001)]}).status == 422


def test_nobody_is_known_and_gets_what_is_popular(server: Server) -> None:
    said = server.post("/v1/recommend", {"user_id": "nobody", "k": 2})
    assert (said.body["source"], [one["item_id"] for one in said.body["items"]]) == ("cold", ["a", "b"])
    assert said.body["items"][0]["title"] == "Apple"
    assert server.ask("GET", "/v1/users/nobody").status == 404


def test_candidates_are_chosen_of(server: Server) -> None:
    server.post("/v1/events", {"events": [event("chooser", "a", 0)]})
    said = server.post("/v1/recommend", {"user_id": "chooser", "candidates": ["e", "b", "nothing"]})
    assert {one["item_id"] for one in said.body["items"]} == {"e", "b"}
    nothing = server.post("/v1/recommend", {"user_id": "chooser", "candidates": ["nothing"]})
    assert (nothing.status, nothing.body["items"]) == (200, [])


def test_who_is_forgotten_is_unknown(server: Server) -> None:
    server.post("/v1/events", {"events": [event("gone", "a", 0)]})
    assert server.ask("DELETE", "/v1/users/gone").status == 204
    assert server.ask("GET", "/v1/users/gone").body["events"] == 0
    assert statuses(server.post("/v1/events", {"events": [event("gone", "a", 1)]})) == ["expired"]
    assert server.post("/v1/recommend", {"user_id": "gone"}).body["source"] == "cold"


BAD: list[tuple[bytes, int, str]] = [
    (b"", 400, "invalid_json"),
    (b"{", 400, "invalid_json"),
    (b'{"user_id": NaN}', 400, "invalid_json"),
    (b'{"user_id": "u", "user_id": "v"}', 400, "duplicate_key"),
    (b'{"user_id": "u", "as\\u005fof": 1, "as_of": 2}', 400, "duplicate_key"),
    (b'{"user_id": "\\ud800"}', 422, "invalid_text"),
    (b'{"user_id": "\xff"}', 422, "invalid_text"),
    (b'{"user_id": "a\\u0000"}', 422, "invalid"),
    (b'{"user_id": ""}', 422, "invalid"),
    (b'{"user_id": "' + b"a" * 300 + b'"}', 422, "invalid"),
    (b'{"user_id": true}', 422, "invalid"),
    (b'{"user_id": 1.0}', 422, "invalid"),
    (b'{"user_id": "u", "k": 0}', 422, "invalid"),
    (b'{"user_id": "u", "k": 501}', 422, "invalid"),
    (b'{"user_id": "u", "k": 1e400}', 422, "invalid"),
    (b'{"user_id": "u", "kk": 1}', 422, "invalid"),
    (b'{"user_id": "u", "x - at `$.foo": 1}', 422, "invalid"),
    (b'{"user_id": "u", "x - at `$.user_id": 1}', 422, "invalid"),
    (b'{"user_id": "u", "extensions": {"x": "y", ":a": 1, ":a": 2}}', 400, "duplicate_key"),
    (b'{"user_id": "u", "extensions": 1}', 422, "invalid"),
    (b'{"user_id": "u", "extensions": {"a": ' + b"[" * 100_000, 400, "invalid_json"),
    (b'{"user_id": "u", "extensions": {"a": {"b": 1, "b": 2}}}', 400, "duplicate_key"),
    (b'{"user_id": "u", "as_of": 1.0}', 422, "invalid"),
    (b'{"user_id": "u", "as_of": ' + b"9" * 1_000_000 + b"}", 422, "invalid"),
    (b'{"user_id": "u", "candidates": ' + b"[" * 100_000, 422, "invalid"),
    (b'{"user_id": "u", "filter": "1=1; DROP TABLE"}', 422, "invalid"),
]


@pytest.mark.parametrize(("body", "status", "code"), BAD, ids=lambda given: str(given)[:40])
def test_a_bad_request_is_told_what_is_wrong(server: Server, body: bytes, status: int, code: str) -> None:
    process = psutil.Process(server.process.pid)
    before = sum(process.cpu_times()[:2])
    said = server.post("/v1/recommend", body)
    assert (said.status, said.body["error"]["code"]) == (status, code), said
    assert 10 < len(said.body["error"]["message"]) < 600
    assert sum(process.cpu_times()[:2]) - before < 0.5
    assert server.post("/v1/recommend", {"user_id": "u"}).status == 200


def test_a_mistyped_field_is_told_those_that_there_are(server: Server) -> None:
    said = server.post("/v1/observe", {"event": {"event_id": "e", "user": "u"}})
    assert said.body["error"]["field"] == "event"
    assert "`user`. It may have event_id, user_id, item_id, time, shown, consent" in said.body["error"]["message"]
    odd = event("mistyped", "a", 0) | {"x - at `$.time": NOW}
    said = server.post("/v1/events", {"events": [event("u", "a", 0) | {"Time": NOW}, odd, event("mistyped", "a", 1)]})
    assert "`Time`. It may have event_id," in said.body["results"][0]["error"]["message"]
    assert [one["status"] for one in said.body["results"]] == ["invalid", "invalid", "applied"]


def test_what_the_user_had_is_left_out_whatever_came_first(server: Server) -> None:
    for number, item in enumerate("dbe"):
        assert server.post("/v1/observe", {"event": event("had", item, number)}).status == 200
    found = server.post("/v1/recommend", {"user_id": "had", "k": 5, "exclude_seen": True}).body["items"]
    assert {one["item_id"] for one in found} == {"a", "c"}


def test_what_a_client_adds_apart_is_not_read(server: Server) -> None:
    added = {"extensions": {"trace": ["a", 1, {"k": None}]}}
    given = event("extended", "a", 0)
    said = server.post("/v1/observe", {"event": given | added} | added)
    assert (said.status, said.body["result"]["status"]) == (200, "applied")
    assert server.post("/v1/events", {"events": [given]}).body["results"][0]["status"] == "duplicate"
    assert "trace" not in json.dumps(server.ask("GET", "/v1/export/extended").body)


def test_what_is_no_json_is_not_read(server: Server) -> None:
    body = {"user_id": "u"}
    assert server.post("/v1/recommend", body, **{"content-type": "text/plain"}).status == 415
    assert server.post("/v1/recommend", body, **{"content-encoding": "gzip"}).status == 415
    assert server.post("/v1/recommend", b" " * (1 << 20) + b"{}").status == 413
    assert server.ask("GET", "/v1/events").status == 405
    for path in ("/nothing", "/v1/../etc/passwd", "/v1/users/", "//v1/events", "/v1/users/%00"):
        assert server.ask("GET", path).status in (400, 404, 422), path


def test_two_lengths_and_other_tricks_are_refused(server: Server) -> None:
    head = b"POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n"
    tricks = (
        head + b"content-length: 6\r\n\r\n{}   ",
        head + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    )
    for trick in tricks:
        with server.open(trick) as opened:
            assert opened.recv(4096).startswith(b"HTTP/1.1 400")
            assert opened.recv(4096) == b""


def test_a_body_that_is_longer_than_it_may_be_is_not_waited_for(server: Server) -> None:
    head = b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += b"transfer-encoding: chunked\r\n\r\n"
    with server.open(head) as opened:
        try:
            for _ in range(40):
                opened.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        except OSError:
            pass
        assert opened.recv(4096).startswith(b"HTTP/1.1 413")


def test_many_clients_of_one_user_lose_nothing(server: Server) -> None:
    def send(number: int) -> str:
        said = server.post("/v1/events", {"events": [event("hammered", "abcde"[number % 5], number, number % 50)]})
        return statuses(said)[0]

    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(send, range(120))) == {"applied"}
    assert server.ask("GET", "/v1/users/hammered").body["events"] == 120


def test_it_counts_what_it_does_and_names_nobody(server: Server) -> None:
    server.post("/v1/observe", {"event": event("measured-user", "a", 0)})
    text = server.ask("GET", "/metrics").body.decode()
    assert 'hiertcn_requests_total{route="/v1/observe",status="200"}' in text
    assert 'hiertcn_events_total{status="applied"}' in text
    assert "measured-user" not in text
    assert server.ask("GET", "/livez").status == server.ask("GET", "/readyz").status == 200


def test_keys_open_what_their_role_may(run: Run, tmp_path: Path) -> None:
    made = {role: new_key() for role in ("read", "write", "admin")}
    path = tmp_path / "keys.toml"
    expired, line = new_key()
    lines = {role: [digest, f"{line} until 2020-02-29"] for role, (_, digest) in made.items()}
    path.write_text("".join(f"{role} = {json.dumps(digests)}\n" for role, digests in lines.items()))
    ask, body = {"user_id": "u"}, {"events": [event("u", "a", 0)]}
    with Server(run.path, "--state", "memory:", "--keys", path) as server:
        found = {}
        for role, (key, _) in {**made, "none": ("", ""), "wrong": ("x" * 43, "")}.items():
            headers = {"authorization": f"Bearer {key}"} if key else {}
            found[role] = [
                server.post("/v1/recommend", ask, **headers).status,
                server.post("/v1/events", body, **headers).status,
                server.ask("DELETE", "/v1/users/u", **headers).status,
                server.ask("GET", "/livez", **headers).status,
            ]
        assert server.post(f"/v1/recommend?key={made['read'][0]}", ask).status == 401
        assert server.post("/v1/recommend", ask, authorization=f"Bearer {expired}").status == 401
    assert found == {
        "read": [200, 403, 403, 200],
        "write": [403, 200, 403, 200],
        "admin": [200, 200, 204, 200],
        "none": [401, 401, 401, 200],
        "wrong": [401, 401, 401, 200],
    }


def test_without_keys_only_this_machine_is_served() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        check_bind(host, keys=False, openly=False)
    for host in ("0.0.0.0", "192.168.1.5", "example.org", "::"):
        with pytest.raises(InputError, match="can be reached from elsewhere"):
            check_bind(host, keys=False, openly=False)
        check_bind(host, keys=True, openly=False)
        check_bind(host, keys=False, openly=True)


def test_what_was_acknowledged_outlives_kills(run: Run, tmp_path: Path) -> None:
    """Killed in the middle of writing, again and again; told everything again after, each event is there once."""

    def picked(number: int) -> dict[str, Any]:
        return event(f"k{number % 40}", "abcde"[number % 5], number)

    state, acknowledged, sent = f"sqlite:///{tmp_path}/states.db", set(), 0
    for life in range(4):
        with Server(run.path, "--state", state) as server, ThreadPoolExecutor(8) as threads:

            def send(number: int, server: Server = server) -> int | None:
                try:
                    said = server.post("/v1/events", {"events": [picked(number)]})
                except (OSError, HTTPException):
                    return None
                return number if statuses(said) == ["applied"] else None

            waiting = [threads.submit(send, sent + n) for n in range(300)]
            while sum(one.done() for one in waiting) < 30 + 20 * life:
                time.sleep(0.002)
            server.kill()
            acknowledged |= {one.result() for one in waiting} - {None}
            sent += 300
    assert len(acknowledged) >= 4 * 30
    with Server(run.path, "--state", state) as server:
        found = [
            status
            for begin in range(0, sent, 600)
            for status in statuses(server.post("/v1/events", {"events": [picked(begin + n) for n in range(600)]}))
        ]
        assert {found[number] for number in acknowledged} == {"duplicate"}
        assert set(found) == {"duplicate", "applied"}
        kept = [server.ask("GET", f"/v1/users/k{user}").body["events"] for user in range(40)]
        assert kept == [sent // 40] * 40
        assert server.end() == 0


def test_a_stop_waits_for_what_is_under_way_and_for_no_idler(run: Run) -> None:
    with Server(run.path, "--state", "memory:") as server:
        idle = [server.open(b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\n") for _ in range(20)]
        body = json.dumps({"user_id": "u"}).encode()
        head = b"POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        slow = server.open(head + f"content-length: {len(body)}\r\n\r\n".encode() + body[:5])
        time.sleep(0.3)
        server.process.terminate()
        time.sleep(0.2)
        assert server.ask("GET", "/readyz").status == 503
        slow.sendall(body[5:])
        assert slow.recv(4096).startswith(b"HTTP/1.1 200")
        begun = time.monotonic()
        assert server.process.wait(15) == 0
        assert time.monotonic() - begun < 10
        for one in (*idle, slow):
            one.close()


def test_a_second_server_on_one_store_is_told(run: Run, tmp_path: Path) -> None:
    state = f"sqlite:///{tmp_path}/states.db"
    with Server(run.path, "--state", state), pytest.raises(AssertionError, match="locked"):
        Server(run.path, "--state", state)


def test_serving_needs_no_torch(run: Run) -> None:
    import subprocess
    import sys

    program = (
        "import sys; from hiertcn.serving import online_form; from pathlib import Path\n"
        "from hiertcn.recommender import Recommender; from hiertcn.service import Service; import hiertcn.server\n"
        "from hiertcn.states import MemoryStates\n"
        f"rec = Recommender(online_form(Path({str(run.path)!r}), print), MemoryStates())\n"
        "rec.observe('u', 'a', 1.7e9); print(rec.recommend('u', 1)[0].source, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["model", "False"]
