"""Clients that are slow, too many, or leave: they are ended, and hold up nobody."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import psutil

from hiertcn.artifact import Run
from servers import HEAD, Server, event, is_answered


class Hasty(Server):
    """Gives a request a second and a half, and has room for some hundred connections."""

    PROGRAM = (
        "import hiertcn.connection as c; c.SLOW = 1.5; import hiertcn.serving as s; s.CONNECTIONS = 60; "
        f"{Server.PROGRAM}"
    )


def until(true: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_slow_ones_are_ended_and_hold_up_nobody(run: Run) -> None:
    with Server(run.path, "--state", "memory:") as server, ExitStack() as stack:
        kinds = [b"", b"POST /v1/ev", HEAD % b"events", HEAD % b"events" + b"content-length: 50\r\n\r\n{"]
        slow = [stack.enter_context(server.open(kinds[n % 4])) for n in range(500)]
        took = []
        for _ in range(40):
            begun = time.perf_counter()
            assert is_answered(server)
            took.append(time.perf_counter() - begun)
        assert sorted(took)[20] < 0.25
        assert len(slow) == 500


def test_who_does_not_get_on_is_ended(run: Run) -> None:
    with Hasty(run.path, "--state", "memory:") as server:
        begun = time.monotonic()
        silent, heads = server.open(), server.open(b"POST /v1/events HTTP/1.1\r\nhost")
        body = server.open(HEAD % b"events" + b"content-length: 50\r\n\r\n{")
        assert body.recv(4096).startswith(b"HTTP/1.1 408")
        assert (silent.recv(4096), heads.recv(4096)) == (b"", b"")
        assert 1 < time.monotonic() - begun < 6
        counted = b'hiertcn_requests_total{route="/v1/events",status="408"} 1.0'
        assert until(lambda: counted in server.ask("GET", "/metrics").body)
        for one in (silent, heads, body):
            one.close()


def test_who_was_answered_before_a_body_that_never_comes_is_ended(run: Run) -> None:
    heads = [
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\n",
        b"POST /nothing HTTP/1.1\r\nhost: localhost\r\n",
        b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n",
        b"POST /v1/events HTTP/1.1\r\nhost: other.test\r\n",
    ]
    with Hasty(run.path, "--state", "memory:") as server, ExitStack() as stack:
        opened = [stack.enter_context(server.open(head + b"content-length: 1000000\r\n\r\n")) for head in heads]
        for one in opened:
            one.settimeout(20)
            while one.recv(4096):
                pass
        assert is_answered(server)


def test_connections_beyond_the_cap_are_refused_until_others_go(run: Run) -> None:
    with Hasty(run.path, "--state", "memory:") as server:
        with ExitStack() as stack:
            for _ in range(80):
                stack.enter_context(server.open(HEAD % b"events"))
            assert until(lambda: server.post("/v1/recommend", {"user_id": "u"}).status == 503, 1)
        assert until(lambda: is_answered(server))
        assert server.end() == 0


def test_no_more_files_to_open_is_no_end(run: Run) -> None:
    class Poor(Server):
        PROGRAM = f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (100, 100)); {Server.PROGRAM}"

    with Poor(run.path, "--state", "memory:") as server:
        with ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(server.open(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n"))
            assert server.process.poll() is None

        def answered() -> bool:
            try:
                return is_answered(server)
            except OSError:
                return False

        assert until(answered)


def test_clients_that_leave_take_nothing_with_them(run: Run) -> None:
    with Server(run.path, "--state", "memory:") as server:
        process = psutil.Process(server.process.pid)
        assert is_answered(server)
        fds, threads = process.num_fds(), process.num_threads()
        for number in range(1000):
            body = json.dumps({"event": event(f"leaver{number}", "a")}).encode()
            sent = HEAD % b"observe" + b"content-length: %d\r\n\r\n" % len(body) + body
            with socket.create_connection(("127.0.0.1", server.port)) as opened:
                # Every other one leaves in the middle of what it says.
                opened.sendall(sent if number % 2 else sent[: len(sent) * (number % 97) // 97])
        assert until(lambda: process.num_fds() <= fds)
        assert process.num_threads() == threads
        # Who left in the middle of a body was answered by nobody.
        counts = server.ask("GET", "/metrics").body
        counted = dict(re.findall(rb'requests_total{route="/v1/observe",status="(\d+)"} (\d+)', counts))
        assert int(counted[b"408"]) > 100
        assert b"400" not in counted
        # What they said whole is done all the same, after what is asked since.
        assert until(lambda: b"hiertcn_waiting 0.0" in server.ask("GET", "/metrics").body)
        kept = [server.ask("GET", f"/v1/users/leaver{n}").status for n in range(0, 1000, 7)]
        assert {status for n, status in zip(range(0, 1000, 7), kept, strict=True) if not n % 2} == {404}
        again = [server.post("/v1/observe", {"event": event(f"leaver{n}", "a")}) for n in range(1, 1000, 70)]
        assert {said.body["result"]["status"] for said in again} <= {"applied", "duplicate"}
        assert {server.ask("GET", f"/v1/users/leaver{n}").body["events"] for n in range(1, 1000, 70)} == {1}
