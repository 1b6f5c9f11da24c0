"""A connection over HTTP: uvicorn's, with an end to what clients may hold up, and little done for what is refused."""

from __future__ import annotations

__all__ = ["HEAD", "SLOW", "Connection"]

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hiertcn.server import BUSY

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
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\n%s\r\n%s" % (
    b"".join(b"%s: %s\r\n" % header for header in BUSY.raw_headers),
    BUSY.body,
)


class Connection(HttpToolsProtocol):
    """HTTP whose requests have to state themselves within some seconds and bytes.

    refuses: of a method and a path, whether that is not done now; then nothing more of the request is looked at
    """

    # One timer of a connection, which looks when it rings whether what is waited for is due.
    _timer: asyncio.TimerHandle | None = None
    _due = float("inf")
    # Bytes of a request that is not stated yet, None of one that is; and whether what came last began with another.
    _head: int | None = 0
    _mixed = False

    def __init__(self, refuses: Callable[[bytes, bytes], bool], *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._refuses, self._refused = refuses, False

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
        # Answers come in the order of requests.
        first = self.cycle is None or self.cycle.response_complete
        self._refused = first and not self.expect_100_continue and self._refuses(self.parser.get_method(), self.url)
        if not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._due = float("inf")
        self._head, self._mixed = 0, True
        if not self._refused:
            super().on_message_complete()
            return
        self.transport.write(_BUSY)
        if not self.parser.should_keep_alive():
            self.transport.close()
        self.on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._due = self.loop.time() + SLOW
        if self._timer is None:
            self._timer = self.loop.call_at(self._due, self._ring)

    def _ring(self) -> None:
        if self.loop.time() < self._due:
            self._timer = None if self._due == float("inf") else self.loop.call_at(self._due, self._ring)
            return
        # Who was answered without the body is told no more.
        if self._head is None and not self._refused and not self.cycle.response_started:
            self.transport.write(_TOO_SLOW)
        self.transport.close()
