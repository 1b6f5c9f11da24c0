"""A connection over HTTP: uvicorn's, with an end to what clients may hold up, and little done for what is refused."""

from __future__ import annotations

__all__ = ["HEAD", "SLOW", "Connection"]

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hiertcn.messages import Fault
from hiertcn.problems import BUSY, problem

SLOW = 10.0
"""Seconds for a request line and headers, and for a body."""
HEAD = 64 << 10
"""Bytes of a request line and headers at most: they are put together piece by piece, which takes the square of it."""


def _raw(answer: Response, *more: bytes) -> bytes:
    """As it is written to a socket."""
    line = b"HTTP/1.1 %d %s" % (answer.status_code, HTTPStatus(answer.status_code).phrase.encode())
    return b"\r\n".join([line, *map(b": ".join, answer.raw_headers), *more, b"", bytes(answer.body)])


_CLOSE = b"connection: close"
_TOO_LONG = _raw(problem(431, Fault("head_too_long", f"The headers are longer than {HEAD >> 10} KiB.")), _CLOSE)
_TOO_SLOW = _raw(problem(408, Fault("too_slow", f"The body did not come within {SLOW:.0f} s.")), _CLOSE)
_BUSY, _LAST = _raw(BUSY), _raw(BUSY, _CLOSE)


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
        # It may come in one piece with one that was refused.
        self._unset_keepalive_if_required()
        self._wait()

    def on_headers_complete(self) -> None:
        self._wait()
        self._head = None
        self._refused = self._can_refuse() and self._refuses(self.parser.get_method(), self.url)
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
        last = self.parser.get_http_version() == "1.0" or not self.parser.should_keep_alive()
        self.transport.write(_LAST if last else _BUSY)
        if last:
            self.transport.close()
        self.on_response_complete()

    def _can_refuse(self) -> bool:
        """Unless an answer has to come first, or is not read, or more should be done than to refuse."""
        first = (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused
        most = self.limit_concurrency
        return first and not self.expect_100_continue and (most is None or len(self.connections) < most)

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
        if self.pipeline:
            # What is waited for is held back here, behind a slow answer.
            self._timer = None
            self._wait()
            return
        # Who was answered without the body is told no more.
        if self._head is None and (self._refused or not self.cycle.response_started):
            self.transport.write(_TOO_SLOW)
        self.transport.close()
