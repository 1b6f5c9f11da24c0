"""What comes in with a request, before it is known to be one: bytes, and ids out of a path or of what is no event."""

from __future__ import annotations

__all__ = ["body_of", "decoded_apart", "event_id_in", "headers_of", "id_in_path"]

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec
from starlette.requests import Request

from hiertcn.decoding import decoded
from hiertcn.door import LONGEST_ID
from hiertcn.messages import Refused
from hiertcn.openapi import JSON

_AT_ONCE = 1 << 20


def headers_of(request: Request) -> dict[str, str]:
    """By their names in lower case; of one that is there twice the first. Starlette looks through all for each."""
    given = reversed(list(request.scope["headers"]))
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in given}


async def body_of(request: Request, headers: Mapping[str, str], most: int) -> bytes:
    """Of a request that states it right, no longer than it may be. Raises Refused for any other. That it comes in time
    is seen to by who serves."""
    kind = headers.get("content-type", "")
    if kind != JSON and (kind := kind.partition(";")[0].strip().lower()) != JSON:
        raise Refused(415, "content_type", f"The content type is {kind[:80]!r}; expected {JSON}.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "content_encoding", "Compressed bodies are not taken. Send it as it is.")
    if int(headers.get("content-length", "0")) > most:
        raise _too_long(most)
    body, more = bytearray(), True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            # It is only counted: who left reads nothing, and who was too slow was told by the connection.
            raise Refused(408, "gone", "The connection ended before the body.")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most:
            raise _too_long(most)
    return bytes(body)


def _too_long(most: int) -> Refused:
    return Refused(413, "too_long", f"The body is longer than {most:,} bytes. Send less at once.")


async def decoded_apart(body: bytes, kind: type[Any]) -> Any:
    """A request; where it is long, by a thread of its own: all others would wait for it. Raises what `decoded` does."""
    return decoded(body, kind) if len(body) <= _AT_ONCE else await asyncio.to_thread(decoded, body, kind)


def id_in_path(request: Request, name: str) -> str:
    """The id that the path holds as `name`; it may hold slashes. Raises Refused for one that is no UTF-8."""
    try:
        unquote(request.scope["raw_path"], errors="strict")
    except UnicodeDecodeError:
        raise Refused(
            422, "invalid_text", "The path holds an id that is no UTF-8. Send UTF-8, percent-encoded."
        ) from None
    found: str = request.path_params[name]
    return found


def event_id_in(raw: Any) -> str | None:
    """Of an event that is none, if it can be told."""
    try:
        found = msgspec.json.decode(raw).get("event_id")
    except (msgspec.DecodeError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) and len(found) <= LONGEST_ID else None
