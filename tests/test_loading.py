"""Load on servers that are told how to behave: each request is sent when it is due, and what becomes of it is told."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from hiertcn.errors import InputError, StorageError
from hiertcn.loading import Latencies, Load, load

Answer = Callable[[int, Any], Awaitable[bytes | None]]


def said(status: int, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d x\r\ncontent-length: 2\r\n%s\r\nok" % (status, more)


async def put(answer: Answer, asked: Load, most: list[int] | None = None) -> Latencies:
    """Load on a server that answers the nth request by `answer`; None: it ends the connection. most: told how many
    connections were open at a time."""
    numbers, opened = iter(range(10**9)), 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        if most is not None:
            most.append(opened)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                body = json.loads(await reader.readexactly(length))
                if (found := await answer(next(numbers), body)) is None:
                    return
                writer.write(found)
        except asyncio.IncompleteReadError:
            pass
        finally:
            opened -= 1
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        return await load(f"http://127.0.0.1:{port}", asked, ["a", "b"])


def test_a_halt_is_felt_by_all_who_were_due_meanwhile() -> None:
    async def halting(number: int, _: Any) -> bytes:
        if number == 0:
            # As a server that is busy would: nobody else is answered.
            halted.set()
            await asyncio.sleep(0.5)
            halted.clear()
        while halted.is_set():
            await asyncio.sleep(0.01)
        return said(200)

    halted = asyncio.Event()
    found = asyncio.run(put(halting, Load(200, 1.0)))
    assert found.errors == 0
    assert len(found.seconds) == 200
    # Half of the requests were due in the halt; by waiting for each answer, only one would have met it.
    assert np.count_nonzero(found.seconds > 0.1) >= 70
    assert found.as_json()["milliseconds"]["p99"] > 400


def test_statuses_are_counted_and_only_answers_are_timed() -> None:
    async def answer(number: int, _: Any) -> bytes | None:
        return [said(200), said(503), said(200, b"connection: close\r\n"), None][number % 4]

    found = asyncio.run(put(answer, Load(400, 0.5)))
    assert dict(found.statuses) == {200: 100, 503: 50, 0: 50}
    assert (len(found.seconds), found.errors) == (100, 100)


def test_so_many_connections_are_open_at_most_and_all_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(_: int, __: Any) -> bytes:
        await asyncio.sleep(0.02)
        return said(200)

    most: list[int] = []
    found = asyncio.run(put(slow, Load(1_000, 0.1, connections=4), most))
    assert (len(found.seconds), max(most)) == (100, 4)


@pytest.mark.parametrize("kind", ["observe", "recommend", "events"])
def test_what_is_asked_is_what_a_server_takes(kind: str) -> None:
    bodies: list[Any] = []

    async def keep(_: int, body: Any) -> bytes:
        bodies.append(body)
        return said(200)

    asyncio.run(put(keep, Load(100, 0.2, kind, together=3)))
    assert len(bodies) == 20
    for body in bodies:
        events = body["events"] if kind == "events" else [body["event"]] if kind == "observe" else []
        assert len(events) == {"events": 3, "observe": 1, "recommend": 0}[kind]
        assert all(event.keys() == {"event_id", "user_id", "item_id", "time"} for event in events)
    ids = [event["event_id"] for body in bodies for event in body.get("events", [])]
    assert len(set(ids)) == len(ids)


def test_where_nobody_listens_it_ends_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    begun = time.monotonic()
    with pytest.raises(StorageError, match="Nobody answers") as raised:
        asyncio.run(load(url, Load(100, 30), ["a"]))
    assert isinstance(raised.value.__cause__, ConnectionRefusedError)
    assert time.monotonic() - begun < 10


def test_what_can_be_no_load_is_told() -> None:
    for url, asked, error in (
        ("https://x", Load(1, 1), InputError),
        ("x", Load(1, 1), InputError),
        ("http://127.0.0.1:1", Load(1, 1), StorageError),
        ("http://127.0.0.1:1", Load(1, 1, "write"), InputError),
    ):
        with pytest.raises(error):
            asyncio.run(load(url, asked, ["a"]))
