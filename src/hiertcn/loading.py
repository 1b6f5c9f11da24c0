"""Load on a server, open loop: requests go out when they are due, whatever has come back, and a latency counts from
when its request was due. Else a server that halts would be asked less just then, and look quick (coordinated omission).
"""

from __future__ import annotations

__all__ = ["Latencies", "Load", "load"]

import asyncio
import gc
import json
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from hiertcn.errors import InputError, StorageError

PERCENTILES = (50, 90, 99, 99.9)
# A loop sleeps by milliseconds, and so much longer than it is told to; for the rest it is asked again and again.
_LATE = 0.002


@dataclass(frozen=True)
class Load:
    """rate: requests a second. users: drawn among so many, the first ones often. kind: "observe", "recommend", or
    "events", of `together` events each. connections: so many requests at most are under way; more wait for one."""

    rate: float
    seconds: float
    kind: str = "observe"
    users: int = 100_000
    k: int = 50
    together: int = 100
    connections: int = 256
    seed: int = 0


@dataclass
class Latencies:
    """Seconds of each request that was answered, from when it was due, and of each that was not, from when it was
    sent; answers by HTTP status, 0 for none."""

    load: Load
    seconds: npt.NDArray[np.float64]
    statuses: Counter[int] = field(default_factory=Counter)
    took: float = 0.0
    refusals: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @property
    def errors(self) -> int:
        """Requests that got no answer of 200."""
        return sum(count for status, count in self.statuses.items() if status != 200)

    def as_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`; latencies in milliseconds."""
        found = np.percentile(self.seconds, PERCENTILES) if len(self.seconds) else [float("nan")] * len(PERCENTILES)
        return {
            "kind": self.load.kind,
            "rate": self.load.rate,
            "answered_per_second": len(self.seconds) / self.took,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "milliseconds": {f"p{p:g}": 1000 * float(v) for p, v in zip(PERCENTILES, found, strict=True)},
        }

    def __str__(self) -> str:
        found = self.as_json()
        times = ", ".join(f"{name} {value:.1f} ms" for name, value in found["milliseconds"].items())
        answers = ", ".join(f"{count:,} × {status}" for status, count in found["statuses"].items())
        rates = f"{self.load.rate:,.0f}/s asked, {found['answered_per_second']:,.0f}/s answered"
        return f"{self.load.kind}, {rates}: {times}; answers: {answers}"


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.answered: asyncio.Future[int] | None = None
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        place = head.find(b"content-length:")
        length = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
        if len(self._buffer) < end + 4 + length:
            return
        del self._buffer[: end + 4 + length]
        if b"connection: close" in head:
            self.transport.close()
        self._answer(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._answer(0)

    def _answer(self, status: int) -> None:
        if self.answered is not None and not self.answered.done():
            self.answered.set_result(status)


async def load(url: str, load: Load, items: Sequence[str | int], key: str | None = None) -> Latencies:
    """Ask the server at `url`, about people that pick `items`. key: an API key.

    Raises InputError for a url that can't be, StorageError where nobody listens.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise InputError(f"{url[:80]!r} is no address of a server; expected http://HOST:PORT. Give one.")
    requests = _requests(load, items, parts.netloc, key)
    free: deque[_Connection] = deque()
    loop, host, port = asyncio.get_running_loop(), parts.hostname, parts.port or 80
    room = asyncio.Semaphore(load.connections)
    seconds: list[float] = []
    refusals: list[float] = []
    statuses: Counter[int] = Counter()

    async def connection() -> _Connection:
        while free:
            if not (found := free.popleft()).transport.is_closing():
                return found
        try:
            return (await loop.create_connection(_Connection, host, port))[1]
        except OSError as error:
            raise StorageError(f"Nobody answers at {url}: {error}. Start `hiertcn serve RUN`.") from error

    async def ask(body: bytes, due: float) -> None:
        async with room:
            try:
                on = await connection()
            except StorageError:
                statuses[0] += 1
                if not seconds:
                    raise
                return
            on.answered = loop.create_future()
            sent = time.perf_counter()
            on.transport.write(body)
            status = await on.answered
            free.append(on)
        statuses[status] += 1
        if status == 200:
            seconds.append(time.perf_counter() - due)
        else:
            refusals.append(time.perf_counter() - sent)

    # What is held already would be looked through again and again, for a tenth of a second each time.
    gc.collect()
    gc.freeze()
    try:
        begun = time.perf_counter()
        # It holds only those that run: of all there were, the collector would make ever longer pauses.
        async with asyncio.TaskGroup() as asked:
            for number, body in enumerate(requests):
                due = begun + number / load.rate
                while (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(max(wait - _LATE, 0.0))
                asked.create_task(ask(body, due))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed.exceptions[0].__cause__
    finally:
        gc.unfreeze()
    return Latencies(load, np.array(seconds), statuses, time.perf_counter() - begun, np.array(refusals))


def _requests(load: Load, items: Sequence[str | int], host: str, key: str | None) -> list[bytes]:
    random, count = np.random.default_rng(load.seed), int(load.rate * load.seconds)
    each = load.together if load.kind == "events" else 1
    # The busiest hundredth of people does a tenth, the busiest tenth a third of all; in a log of news 6% and 39%.
    users = (load.users * random.random(count * each) ** 2).astype(int)
    picked = [items[place] for place in random.integers(0, len(items), count * each)]
    now, run = int(time.time()), random.integers(0, 2**62)
    path = {"observe": "/v1/observe", "recommend": "/v1/recommend", "events": "/v1/events"}.get(load.kind)
    if path is None:
        raise InputError(f"The kind of load is {load.kind[:80]!r}; expected observe, recommend or events.")
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    head += f"authorization: Bearer {key}\r\n" if key else ""

    def event(at: int) -> dict[str, Any]:
        moment = now + int(at / each / load.rate)
        return {"event_id": f"{run}-{at}", "user_id": f"u{users[at]}", "item_id": picked[at], "time": moment}

    out = []
    for number in range(count):
        body: dict[str, Any] = {"user_id": f"u{users[number]}", "k": load.k}
        if load.kind == "observe":
            body = {"event": event(number), "k": load.k}
        elif load.kind == "events":
            body = {"events": [event(number * each + place) for place in range(each)]}
        data = json.dumps(body).encode()
        out.append(head.encode() + f"content-length: {len(data)}\r\n\r\n".encode() + data)
    return out
