"""A server on a socket: uvicorn, with an end to what clients may hold up."""

from __future__ import annotations

__all__ = ["check_bind", "online_form", "serve"]

import asyncio
import gc
import ipaddress
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hiertcn.errors import InputError
from hiertcn.exported import FOLDER, Exported
from hiertcn.served import exported_of
from hiertcn.server import Server
from hiertcn.watchdog import watch

CONNECTIONS = 4096
# Of a stop: load balancers see that it is not ready, then what is under way may end.
GRACE, ENDING = 0.5, 7
_OFTEN = 10_000, 20, 20
SLOW = 10.0
"""Seconds for a request line and headers, and for a body."""
HEAD = 64 << 10
"""Bytes of a request line and headers at most: they are put together piece by piece, which takes the square of it."""
_TOO_LONG = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: 84\r\n\r\n"
    b'{"error":{"code":"head_too_long","message":"The headers are longer than 64 KiB."}}\r\n'
)
_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 76\r\n\r\n"
    b'{"error":{"code":"too_slow","message":"The body did not come within 10 s."}}'
)


class Protocol(HttpToolsProtocol):
    """HTTP whose requests have to state themselves within some seconds and bytes."""

    _deadline: asyncio.TimerHandle | None = None
    # Bytes of a request that is not stated yet, None of one that is; and whether what came last began with another.
    _head: int | None = 0
    _mixed = False

    def data_received(self, data: bytes) -> None:
        self._mixed = False
        super().data_received(data)
        if self._head is None or self._mixed:
            return
        self._head += len(data)
        if self._head > HEAD and not self.transport.is_closing():
            self.transport.write(_TOO_LONG)
            self.transport.close()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait()

    def on_headers_complete(self) -> None:
        self._wait()
        self._head = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_waiting()
        self._head, self._mixed = 0, True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(SLOW, self._end)

    def _end(self) -> None:
        # Who was answered without the body is told no more.
        if self._head is None and not self.cycle.response_started:
            self.transport.write(_TOO_SLOW)
        self.transport.close()

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Process(uvicorn.Server):
    """The first signal ends readiness at once and the server after a grace; the second one ends it now."""

    def __init__(self, config: uvicorn.Config, server: Server, started: Callable[[int], None]) -> None:
        super().__init__(config)
        self._server, self._started = server, started

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        watch(self._server.service, asyncio.get_running_loop())
        if self.started:
            self._started(self.servers[0].sockets[0].getsockname()[1])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Not uvicorn's own, which ends the process by the signal once all is done.
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self._server.ready:
            self.should_exit = self.force_exit = True
            return
        self._server.ready = False
        asyncio.get_running_loop().call_later(GRACE, self._leave)

    def _leave(self) -> None:
        self.should_exit = True


def check_bind(host: str, keys: bool, openly: bool) -> None:
    """Raises InputError for an address that others can reach, where everybody could do everything."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not (loopback or keys or openly):
        raise InputError(
            f"{host[:80]} can be reached from elsewhere, and there are no keys, so anybody could do anything. Give "
            "--keys FILE (see `hiertcn key`), or bind 127.0.0.1, or choose --open if that is meant."
        )


def online_form(run: Path, say: Callable[[str], None]) -> Exported:
    """What `hiertcn export` wrote as `run`, or of the run `run`; where that was not exported as it is now, it is first,
    by torch."""
    if (found := exported_of(run)) is not None:
        return found
    say(f"{run} is exported to {run / FOLDER}, so that it is served without torch")
    from hiertcn.exporting import export

    return Exported(export(run))


def serve(server: Server, host: str, port: int, started: Callable[[int], None]) -> None:
    """Answer at `port` (0: any that is free; `started` is told which) until a signal comes. What was acknowledged is
    stored; what is under way has some seconds to end. A server that hangs ends its process, see `watchdog`."""
    config = uvicorn.Config(
        server.app,
        host=host,
        port=port,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        # Who asked is read nowhere, so no proxy needs to be believed.
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=ENDING,
    )
    with _undisturbed():
        _Process(config, server, started).run()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A catalog is a million objects, which the collector would look through again and again; a batch of answers is
    some thousand more, none of them part of a cycle."""
    often = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_OFTEN)
    try:
        yield
    finally:
        gc.set_threshold(*often)
        gc.unfreeze()
