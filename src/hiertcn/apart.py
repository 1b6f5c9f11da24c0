"""A thread for what takes long beside a server that answers people: it gives way to them."""

from __future__ import annotations

__all__ = ["Apart", "give_way"]

import asyncio
import os
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

# More than the thread of batches.
NICE = 15
_NICEST = 19
# How long it keeps others from Python at a time.
_SWITCH = 0.0005
T = TypeVar("T")
_Task = tuple[Callable[[], Any], "Future[Any]"]


class Apart:
    """One thread for all that it is given, one after another. A thread for each would leave a heap of its own behind,
    from which what was freed does not return: by a hundred swaps of models a server grew to three times its size. A
    process that ends does not wait for it."""

    def __init__(self, name: str) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def do(self, work: Callable[[], T]) -> T:
        """What `work` gives, when all that was given before is done."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        self._tasks.put((work, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the thread when all that was given is done; does not wait for it."""
        self._tasks.put(None)

    def _run(self) -> None:
        give_way()
        while (task := self._tasks.get()) is not None:
            self._follow(*task)
            # What it holds is to leave the memory before the next one comes.
            del task

    @staticmethod
    def _follow(work: Callable[[], Any], future: Future[Any]) -> None:
        before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH)
        try:
            future.set_result(work())
        except BaseException as error:
            _forget(error)
            future.set_exception(error)
        finally:
            sys.setswitchinterval(before)


def _forget(error: BaseException | None) -> None:
    """Let go of all that was held where it was raised, and where those before it were: who is told keeps it for long,
    and a model that was refused would stay in the memory with it."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def give_way(nice: int = NICE) -> None:
    """Let this thread have what the others leave, the more so the larger `nice` is. On Linux a niceness is a thread's
    own, and that of who started it is added to; elsewhere, nothing changes."""
    if sys.platform == "linux":
        with suppress(OSError):
            me = os.PRIO_PROCESS, threading.get_native_id()
            os.setpriority(*me, min(os.getpriority(*me) + nice, _NICEST))
