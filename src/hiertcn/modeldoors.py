"""The doors over HTTP to the models that a server may serve: which one answers, another one, the one before."""

from __future__ import annotations

__all__ = ["model", "rollback", "swap"]

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from starlette.requests import Request

from hiertcn import messages as m
from hiertcn.deployment import Deployment, NotSwapped
from hiertcn.service import Service


class _Serving(Protocol):
    service: Service
    deployment: Deployment | None
    ready: bool


async def model(server: _Serving, _: None, __: Request) -> m.ModelAnswer:
    """Which model answers, and which others could."""
    deployment = _deployed(server)
    names = await asyncio.to_thread(deployment.names)
    return m.ModelAnswer(deployment.current.name, server.service.recommender.name, deployment.previous, names)


async def swap(server: _Serving, given: m.SwapRequest, request: Request) -> m.ModelAnswer:
    """Let another model answer; the one that does answers on until then, or if it can't."""
    await _while_ready(server, _deployed(server).swap(server.service, given.model, given.allow_shrink))
    return await model(server, None, request)


async def rollback(server: _Serving, _: None, request: Request) -> m.ModelAnswer:
    """Let the model before the current one answer again."""
    await _while_ready(server, _deployed(server).rollback(server.service))
    return await model(server, None, request)


async def _while_ready(server: _Serving, swapping: Coroutine[Any, Any, None]) -> None:
    """Opening a model may take minutes, for which a stop does not wait."""
    task = asyncio.ensure_future(swapping)
    while not (await asyncio.wait({task}, timeout=0.2))[0]:
        if not server.ready:
            task.cancel()
            raise m.Refused(503, "stopping", "The server stops. When it is back, GET /v1/model says which one answers.")
    try:
        await task
    except NotSwapped as kept:
        raise m.Refused(409, kept.code, str(kept)) from None


def _deployed(server: _Serving) -> Deployment:
    if server.deployment is None:
        raise m.Refused(
            409, "no_models", "This server was started on one model as it is. Start it on a folder of models."
        )
    return server.deployment
