"""The model that answers, the one before it, and how another takes over while people are answered.

A model is opened and tried in a thread of its own. When all of that is done, one assignment between two batches makes
it the one that answers; until then, and whatever fails, the one before does.
"""

from __future__ import annotations

__all__ = ["Deployed", "Deployment", "NotSwapped"]

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from hiertcn.apart import Apart, give_way
from hiertcn.errors import HiertcnError, InputError, StorageError
from hiertcn.exported import Exported
from hiertcn.recommender import Recommender
from hiertcn.registry import Registry
from hiertcn.retrieval import Index, open_index
from hiertcn.scoring import compared
from hiertcn.served import exported_of
from hiertcn.service import Overloaded, Service, Work
from hiertcn.smoke import check_answers, check_catalog
from hiertcn.states import StateStore

# Seconds after which the model before hears what was told since: a rollback in a long time has little left to hear.
_KEEPING_UP = 5.0
_log = logging.getLogger(__name__)


class NotSwapped(Exception):
    """The model that answered before answers on. `code`: of the reason that the text tells."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, eq=False)
class Deployed:
    """A model that is ready to answer, by the name of its folder."""

    name: str
    model: Exported
    index: Index
    recommender: Recommender


class Deployment:
    """Of the models of a registry, on one store of states; `first`, named `name`, answers from the start. index: as
    `open_index` takes it. A context manager that closes the models, not the store.

    The model before the current one stays open, so that a rollback takes no loading. It is closed once the next one is
    found whole and big enough and before its index is opened, so two indexes are in memory at most; if that next one
    fails after all, the one before is opened again by a rollback.
    """

    def __init__(self, registry: Registry, name: str, first: Exported, index: str, states: StateStore) -> None:
        self._registry, self._index, self._states = registry, index, states
        self._swapping, self._apart = threading.Lock(), Apart("swap")
        self._spare: Deployed | None = None
        self.previous: str | None = None
        """The name of the model before the current one."""
        self.current = self._deployed(name, first, tried=False)
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep_up, name="previous", daemon=True)
        self._keeper.start()

    def names(self) -> list[str]:
        """Of all models that can be asked for."""
        return self._registry.names()

    async def swap(self, service: Service, name: str, allow_shrink: bool = False) -> None:
        """Let the model `name` answer what `service` is asked from now on. Raises NotSwapped."""
        with self._turn():
            found = await self._apart.do(lambda: self._opened(name, allow_shrink))
            # A client that asks again is to find the model before it where it was.
            if found is not self.current:
                await self._take_over(service, found)

    async def rollback(self, service: Service) -> None:
        """Let the model before the current one answer again. Raises NotSwapped."""
        with self._turn():
            await self._take_over(service, await self._apart.do(self._before))

    def _before(self) -> Deployed:
        if self.previous is None:
            raise NotSwapped("no_previous", "No model answered before this one. Swap to one by its name.")
        if self._spare is None:
            # It answered before, so how much it holds is no question.
            return self._opened(self.previous, allow_shrink=True)
        self._ready(self._spare)
        return self._spare

    def _opened(self, name: str, allow_shrink: bool) -> Deployed:
        """A model of the registry, found to be fit."""
        folder = self._registry.folder(name)
        model = exported_of(folder)
        if model is None:
            raise InputError(
                f"{folder} is a run that was not exported as it is now. Call `hiertcn export {folder}` where torch is "
                "installed, then swap."
            )
        now = self.current
        if (name, model.source, model.digest) == (now.name, now.model.source, now.model.digest):
            return now
        check_catalog(model, now.model, allow_shrink)
        self._release()
        found = self._deployed(name, model, tried=True)
        try:
            self._ready(found)
        except BaseException:
            found.index.close()
            raise
        return found

    def _deployed(self, name: str, model: Exported, tried: bool) -> Deployed:
        vectors = compared(model)
        index = open_index(self._index, vectors, cache=model.path / "index", biased=model.bias is not None)
        try:
            if tried:
                check_answers(model, vectors, index)
            recommender = Recommender(model, self._states, index=index)
        except BaseException:
            index.close()
            raise
        recommender.name = f"{name}-{model.digest.hex()}"
        return Deployed(name, model, index, recommender)

    def _ready(self, found: Deployed) -> None:
        """Let it hear what the store was told, and a server that starts begin with it."""
        found.recommender.listen()
        self._registry.serve(found.name)

    async def _take_over(self, service: Service, found: Deployed) -> None:
        def take_over(before: Recommender) -> None:
            # Between two batches, so that it knows what was withdrawn by the last of the one before.
            with suppress(StorageError):
                found.recommender.listen()
            service.recommender = found.recommender

        self._spare, self.previous, self.current = self.current, self.current.name, found
        await _surely(service, Work(act=take_over))
        _log.info("%s answers; before it, %s did", found.recommender.name, self._spare.recommender.name)
        # Behind this, no batch is left that the one before began, so it may be closed by the next swap.
        await _surely(service, Work())

    def _release(self) -> None:
        if self._spare is not None:
            self._spare.index.close()
            self._spare = None

    def _keep_up(self) -> None:
        give_way()
        while not self._over.wait(_KEEPING_UP):
            # Nothing here holds it while this waits: it may have left.
            _keep_up(self._spare)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One swap at a time; what it fails with, as NotSwapped."""
        if not self._swapping.acquire(blocking=False):
            raise NotSwapped("swap_under_way", "Another swap is under way. Come back when it has been answered.")
        try:
            yield
        except NotSwapped:
            raise
        except HiertcnError as error:
            raise NotSwapped("model_refused", str(error)) from error
        except Exception as error:
            _log.exception("A model could not be swapped to")
            told = f"{type(error).__name__}: {str(error)[:200]}"
            raise NotSwapped(
                "model_refused", f"It can't be served ({told}). The log of the server says more."
            ) from error
        finally:
            self._swapping.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._apart.close()
        self._keeper.join()
        self._release()
        self.current.index.close()


def _keep_up(spare: Deployed | None) -> None:
    if spare is None:
        return
    try:
        spare.recommender.listen()
    except StorageError:
        # It is told to who asks for something.
        pass
    except Exception:
        _log.exception("%s could not hear what others told", spare.name)


async def _surely(service: Service, work: Work) -> None:
    """Have it done, however much waits."""
    while True:
        try:
            with suppress(StorageError):
                await service.do(work)
            return
        except Overloaded:
            await asyncio.sleep(0.01)
