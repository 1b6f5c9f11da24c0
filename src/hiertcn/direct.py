"""Requests to a path that is one text find what answers them in a table; all others go through Starlette's routes.

Starlette tries its routes one after another, behind three layers of its own: a sixth of what a short request costs.
"""

from __future__ import annotations

__all__ = ["Direct", "JSONAnswer"]

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hiertcn.openapi import JSON

_JSON = b"content-type", JSON.encode()
Endpoint = Callable[[Request], Awaitable[Response]]


class JSONAnswer(Response):
    """200 with a body of JSON, whose headers need no putting together."""

    def __init__(self, body: bytes) -> None:
        self.status_code, self.body, self.background = 200, body, None
        self.raw_headers = [(b"content-length", b"%d" % len(body)), _JSON]


class Direct:
    """An ASGI application. endpoints: by method and path; others: answers all but plain ones of them; failed: answers
    where an endpoint raised what it should not, which is then raised on, so that the log tells it."""

    def __init__(
        self,
        endpoints: Mapping[tuple[str, str], Endpoint],
        others: ASGIApp,
        failed: Callable[[Request, Exception], Awaitable[Response]],
    ) -> None:
        self._plain = {place: endpoint for place, endpoint in endpoints.items() if "{" not in place[1]}
        self._others, self._failed = others, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._plain.get((scope.get("method", ""), scope.get("path", "")))
        if endpoint is None:
            return await self._others(scope, receive, send)
        request = Request(scope, receive, send)
        try:
            answer = await endpoint(request)
        except Exception as error:
            answer = await self._failed(request, error)
            await answer(scope, receive, send)
            raise
        await answer(scope, receive, send)
