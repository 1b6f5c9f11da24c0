"""The doors over HTTP to what is stored of one user: shown, exported, forgotten."""

from __future__ import annotations

__all__ = ["export", "forget", "user"]

import asyncio
from collections.abc import Callable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from hiertcn import messages as m
from hiertcn.incoming import id_in_path
from hiertcn.service import Service
from hiertcn.userdata import UserData, stored_of

_NOBODY = 404, "unknown_user", "Nothing is kept of this user."


class _Serving(Protocol):
    service: Service
    now: Callable[[], float]


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
