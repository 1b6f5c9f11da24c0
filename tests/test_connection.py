"""What a connection does by itself: requests that can't be done now are refused unread, in order, and it goes on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hiertcn.artifact import Run
from servers import Server

BODY = json.dumps({"user_id": "u", "k": 1}).encode()
HEAD = b"POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
ASKED = HEAD % len(BODY) + b"\r\n" + BODY
# If anybody read it, it would be answered by 415.
UNREAD = b"POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\nnone"
LIVE = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this file is, too much waits."""
    return tmp_path_factory.mktemp("full") / "full"


@pytest.fixture(scope="module")
def server(run: Run, full: Path) -> Iterator[Server]:
    class Filled(Server):
        """Gives a request a second and a half; an answer that is no refusal takes three."""

        PROGRAM = f"""
import asyncio, os
import hiertcn.connection as c, hiertcn.service as s
c.SLOW, do = 1.5, s.Service.do
async def slowly(self, work):
    await asyncio.sleep(3)
    return await do(self, work)
s.Service.do = slowly
s.Service.full = property(lambda _: os.path.exists({str(full)!r}))
{Server.PROGRAM}"""

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


@pytest.fixture
def filled(full: Path) -> Iterator[Path]:
    full.touch()
    yield full
    full.unlink(missing_ok=True)


def test_what_is_refused_is_told_so_and_counted_and_the_connection_goes_on(server: Server, filled: Path) -> None:
    before = refused(server)
    with server.open() as on:
        # In pieces, as it may come.
        for part in (UNREAD[:20], UNREAD[20:-2], UNREAD[-2:]):
            on.sendall(part)
        ((status, headers, body),) = answers(on, 1)
        assert (status, headers["retry-after"], headers["content-type"]) == (503, "1", "application/json")
        assert json.loads(body)["error"]["code"] == "overloaded"
        filled.unlink()
        on.sendall(ASKED)
        assert [one[0] for one in answers(on, 1)] == [200]
    assert refused(server) == before + 1


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (UNREAD + LIVE + UNREAD, [503, 200, 415]),
        (LIVE + UNREAD + LIVE, [200, 415, 200]),
        (UNREAD + UNREAD, [503, 503]),
    ],
)
def test_answers_come_in_the_order_of_requests(server: Server, filled: Path, sent: bytes, expected: list[int]) -> None:
    """What stands behind an answer that is still to come is read."""
    with server.open(sent) as on:
        assert [one[0] for one in answers(on, len(expected))] == expected


def test_other_paths_are_answered_while_it_is_full(server: Server, filled: Path) -> None:
    assert [server.ask("GET", path).status for path in ("/livez", "/readyz", "/docs")] == [200, 200, 200]


@pytest.mark.parametrize(
    "sent",
    [
        UNREAD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"),
        UNREAD.replace(b"1.1", b"1.0").replace(b"\r\n\r\n", b"\r\nconnection: keep-alive\r\n\r\n"),
    ],
)
def test_a_last_request_is_refused_and_the_connection_closed(server: Server, filled: Path, sent: bytes) -> None:
    begun = time.monotonic()
    with server.open(sent) as on:
        ((status, headers, _),) = answers(on, 1)
        assert (status, headers["connection"], on.recv(1)) == (503, "close", b"")
    assert time.monotonic() - begun < 1


def test_who_waits_for_leave_to_send_the_body_is_answered_too(server: Server, filled: Path) -> None:
    with server.open(HEAD % len(BODY) + b"expect: 100-continue\r\n\r\n") as on:
        assert on.recv(4096).startswith(b"HTTP/1.1 100")
        filled.unlink()
        on.sendall(BODY)
        assert [one[0] for one in answers(on, 1)] == [200]


def test_a_body_that_does_not_come_is_told_so_even_where_it_would_be_refused(server: Server, filled: Path) -> None:
    with server.open(UNREAD[:-2]) as on:
        assert [one[0] for one in answers(on, 1)] == [408]
        assert on.recv(1) == b""


def test_a_request_behind_a_slow_answer_is_not_taken_for_slow(server: Server) -> None:
    with server.open(ASKED + ASKED[:-2]) as on:
        time.sleep(0.1)
        on.sendall(ASKED[-2:])
        assert [one[0] for one in answers(on, 2)] == [200, 200]


def test_who_reads_no_answers_is_read_no_further(server: Server, filled: Path) -> None:
    block, sent, last = UNREAD * 1000, 0, time.monotonic()
    with server.open() as on:
        on.setblocking(False)
        while time.monotonic() - last < 1 and sent < 1 << 26:
            with suppress(BlockingIOError):
                sent += on.send(block[sent % len(UNREAD) :])
                last = time.monotonic()
            time.sleep(0.001)
    assert sent < 1 << 25
