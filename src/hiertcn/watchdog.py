"""The end of a server that hangs: whatever restarts what ended (systemd, a container's policy) then brings it back.

What hangs can't be mended from within: a thread that waits for a disk or a lock can't be ended. Nothing acknowledged is
lost by it, as by any kill.
"""

from __future__ import annotations

__all__ = ["HUNG", "HUNG_CODE", "watch"]

import asyncio
import faulthandler
import os
import sys
import threading
import time
from contextlib import suppress

from hiertcn.service import Service

HUNG = 30
"""Seconds without getting on, after which it ends."""
HUNG_CODE = 70
"""The exit code then: sysexits' EX_SOFTWARE."""


def watch(service: Service, loop: asyncio.AbstractEventLoop) -> None:
    """End this process once what waits at `service`, or `loop`, has not got on for half a minute; stderr is told where
    each thread was. Until the loop is closed, and then until nothing waits."""
    threading.Thread(target=_watch, args=(service, loop), name="watchdog", daemon=True).start()


def _watch(service: Service, loop: asyncio.AbstractEventLoop) -> None:
    got_on = threading.Event()
    beat, still, silent = service.beat, 0, 0
    # By counting looks, not by the clock: a process that was halted as a whole does not hang.
    while still < HUNG and silent < HUNG:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(got_on.set)
        time.sleep(1)
        still = still + 1 if service.stuck and service.beat == beat else 0
        silent = 0 if got_on.is_set() or loop.is_closed() else silent + 1
        beat = service.beat
        got_on.clear()
    # Apart, since nobody may be left to read what it says.
    told = threading.Thread(target=_tell, args=("thread of batches" if still >= HUNG else "loop of requests",))
    told.start()
    told.join(5)
    os._exit(HUNG_CODE)


def _tell(what: str) -> None:
    with suppress(OSError, ValueError):
        sys.stderr.write(
            f"Error: the {what} has not got on for {HUNG} s, so the server ends itself with exit code {HUNG_CODE}. "
            "Nothing acknowledged is lost. Start it again (`Restart=always` does); where it was, the lines below say.\n"
        )
        faulthandler.dump_traceback(all_threads=True)
