"""The doors over HTTP to what is stored of one user: shown, exported, forgotten."""

from __future__ import annotations

__all__ = ["ForgottenAnswer", "export", "forget", "forgotten", "user"]

import asyncio
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from hiertcn import messages as m
from hiertcn.forgotten import forgotten_of
from hiertcn.incoming import id_in_path
from hiertcn.service import Service
from hiertcn.userdata import UserData, stored_of

_NOBODY = 404, "unknown_user", "Nothing is kept of this user."


class _Serving(Protocol):
    service: Service
    now: Callable[[], float]


class Forgotten(Struct):
    """digest: of a user's id, 16 bytes of BLAKE2b in hexadecimal; until: seconds since 1970 UTC, the last moment of
    what is forgotten."""

    digest: str
    until: float


class ForgottenAnswer(Struct):
    """Who was forgotten, in no order: for `hiertcn prepare --forgotten`, so that no model is trained on it again."""

    forgotten: list[Forgotten]


async def user(server: _Serving, _: None, request: Request) -> m.UserAnswer:
    """What is kept of a user."""
    recommender, user_id = server.service.recommender, id_in_path(request, "user_id")
    kept = await asyncio.to_thread(recommender.kept_of, user_id)
    if kept is None:
        raise m.Refused(*_NOBODY)
    clock = recommender.clock
    idle = None if clock is None or not kept.sessions else max(0.0, clock - kept.sessions[-1][1][-1])
    sessions = [m.SessionAnswer(items, times) for items, times in kept.sessions]
    return m.UserAnswer(user_id, sessions, sum(len(s.items) for s in sessions), kept.size, idle)


async def export(server: _Serving, _: None, request: Request) -> UserData:
    """All that is stored of a user, in full."""
    recommender, user_id = server.service.recommender, id_in_path(request, "user_id")
    found = await asyncio.to_thread(stored_of, recommender.states, user_id, recommender.stock.catalog.typed)
    if found is None:
        raise m.Refused(*_NOBODY)
    return found


async def forget(server: _Serving, _: None, request: Request) -> Response:
    """Forget a user: nothing is kept, and events up to now that come later are not taken in."""
    await asyncio.to_thread(server.service.recommender.delete, id_in_path(request, "user_id"), server.now())
    return Response(status_code=204)


async def forgotten(server: _Serving, _: None, __: Request) -> ForgottenAnswer:
    """Who was forgotten, and until when."""
    states = server.service.recommender.states
    return ForgottenAnswer(await asyncio.to_thread(lambda: [Forgotten(*one) for one in forgotten_of(states)]))
