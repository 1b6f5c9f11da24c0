"""A service of a recommender, what is asked of it, and a store that fails it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from hiertcn.answers import Recommendation
from hiertcn.artifact import Run
from hiertcn.door import Event
from hiertcn.errors import StorageError
from hiertcn.recommender import Recommender
from hiertcn.service import Service, Work
from hiertcn.states import MemoryStates, StateStore
from people import START


class Failing(MemoryStates):
    """A store that can be told to fail, or to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.fails, self.open = False, threading.Event()
        self.open.set()

    def _check(self) -> None:
        self.open.wait(20)
        if self.fails:
            raise StorageError("the disk is full")

    def get(self, keys: Any) -> Any:
        self._check()
        return super().get(keys)

    def update(self, keys: Any, fn: Any) -> None:
        self._check()
        super().update(keys, fn)


def named(work: Work) -> list[Recommendation]:
    return work.by.stock.named(*work.found)


def pick(number: int) -> Event:
    return Event(f"u{number % 5}", "abcdex"[number % 6], START + 40 * number, f"e{number}")


def service_of(run: Run, states: StateStore, **options: Any) -> Service:
    return Service(Recommender.load(run, states), **options)


async def ask_all(service: Service, *works: Work) -> list[Any]:
    return list(await asyncio.gather(*map(service.do, works), return_exceptions=True))
