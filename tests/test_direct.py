"""Plain paths are answered past the routes, by the same endpoints and in the same shapes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from hiertcn.direct import Direct


async def fails(request: Request) -> Response:
    raise KeyError("why")


async def told(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"failed: {error}", 500)


async def named(request: Request) -> Response:
    return PlainTextResponse("direct")


async def others(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("routed")(scope, receive, send)


def answer(method: str, path: str) -> tuple[int, bytes, BaseException | None]:
    app, sent = (
        Direct({("GET", "/a"): named, ("GET", "/{b}"): named, ("GET", "/fails"): fails}, others, told),
        list[Any](),
    )

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    async def ask() -> BaseException | None:
        try:
            await app({"type": "http", "method": method, "path": path, "headers": []}, receive, send)
        except KeyError as error:
            return error
        return None

    failed = asyncio.run(ask())
    return sent[0]["status"], sent[1]["body"], failed


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", "/a", b"direct"), ("POST", "/a", b"routed"), ("GET", "/{b}", b"routed"), ("GET", "/c", b"routed")],
)
def test_only_a_plain_path_with_its_method_is_direct(method: str, path: str, body: bytes) -> None:
    assert answer(method, path) == (200, body, None)


def test_what_fails_is_answered_and_then_raised_for_the_log() -> None:
    status, body, failed = answer("GET", "/fails")
    assert (status, body) == (500, b"failed: 'why'")
    assert isinstance(failed, KeyError)
