"""A server on a socket: uvicorn, which stops as it should."""

from __future__ import annotations

__all__ = ["check_bind", "online_form", "serve"]

import asyncio
import gc
import ipaddress
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import uvicorn

from hiertcn.connection import Connection
from hiertcn.errors import InputError
from hiertcn.exported import FOLDER, Exported
from hiertcn.served import exported_of
from hiertcn.server import Server
from hiertcn.watchdog import watch

CONNECTIONS = 4096
# Of a stop: load balancers see that it is not ready, then what is under way may end.
GRACE, ENDING = 0.5, 7
_OFTEN = 10_000, 20, 20


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
        http=cast(Any, partial(Connection, server.refuses)),
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
