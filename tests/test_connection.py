"""What a connection does by itself: requests that can't be done now are refused unread, in order, and it goes on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hiertcn.artifact import Run
from servers import Server

BODY = json.dumps({"user_id": "u", "k": 1}).encode()
HEAD = b"POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
ASKED = HEAD % len(BODY) + b"\r\n" + BODY
LIVE = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this file is, too much waits."""
    return tmp_path_factory.mktemp("full") / "full"


@pytest.fixture(scope="module")
def server(run: Run, full: Path) -> Iterator[Server]:
    class Filled(Server):
        PROGRAM = (
            "import os, hiertcn.service as s; "
            f"s.Service.full = property(lambda _: os.path.exists({str(full)!r})); {Server.PROGRAM}"
        )

    with Filled(run.path, "--state", "memory:") as started:
        yield started


def answers(on: socket.socket, count: int) -> list[tuple[int, dict[str, str], bytes]]:
    """Status, headers and body of so many answers."""
    found, file = [], on.makefile("rb")
    for _ in range(count):
        status = int(file.readline().split()[1])
        headers = {}
        while (line := file.readline().strip()) != b"":
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        found.append((status, headers, file.read(int(headers["content-length"]))))
    return found


def refused(server: Server) -> float:
    """How many were, by its own count."""
    text = server.ask("GET", "/metrics").body.decode()
    lines = [line for line in text.splitlines() if "requests_total" in line and '/v1/recommend"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines if 'status="503"' in line)


def test_what_is_refused_is_told_so_and_counted_and_the_connection_goes_on(server: Server, full: Path) -> None:
    before = refused(server)
    with server.open() as on:
        full.touch()
        # In pieces, as it may come.
        for part in (ASKED[:20], ASKED[20:-5], ASKED[-5:]):
            on.sendall(part)
        ((status, headers, body),) = answers(on, 1)
        assert (status, headers["retry-after"], headers["content-type"]) == (503, "1", "application/json")
        assert json.loads(body)["error"]["code"] == "overloaded"
        full.unlink()
        on.sendall(ASKED)
        assert [one[0] for one in answers(on, 1)] == [200]
    assert refused(server) == before + 1


def test_answers_come_in_the_order_of_requests(server: Server, full: Path) -> None:
    full.touch()
    try:
        with server.open() as on:
            on.sendall(LIVE + ASKED + ASKED + LIVE + ASKED)
            assert [one[0] for one in answers(on, 5)] == [200, 503, 503, 200, 503]
    finally:
        full.unlink()


def test_other_paths_are_answered_while_it_is_full(server: Server, full: Path) -> None:
    full.touch()
    try:
        assert [server.ask("GET", path).status for path in ("/livez", "/readyz", "/v1/model")] == [200, 200, 200]
        with server.open() as on:
            on.sendall(ASKED.replace(b"host: localhost\r\n", b"host: localhost\r\nconnection: close\r\n"))
            assert [one[0] for one in answers(on, 1)] == [503]
            assert on.recv(1) == b""
    finally:
        full.unlink()


def test_who_waits_for_leave_to_send_the_body_is_answered_too(server: Server, full: Path) -> None:
    full.touch()
    try:
        with server.open() as on:
            on.sendall(HEAD % len(BODY) + b"expect: 100-continue\r\n\r\n")
            assert on.recv(4096).startswith(b"HTTP/1.1 100")
            on.sendall(BODY)
            assert [one[0] for one in answers(on, 1)] == [503]
    finally:
        full.unlink()
