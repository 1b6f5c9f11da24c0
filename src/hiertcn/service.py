"""Requests of many people, answered together: a bounded queue, and one thread that takes what waits as one batch.

A batch is one transaction of the store and one pass of the model, so what a request costs falls as more come. An answer
is given when its event is stored.
"""

from __future__ import annotations

__all__ = ["Overloaded", "Service", "Work"]

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import NamedTuple, Self

from hiertcn.answers import Chosen
from hiertcn.apart import give_way
from hiertcn.aside import set_aside
from hiertcn.door import Ask, Event, key_of
from hiertcn.errors import StorageError
from hiertcn.recommender import Recommender
from hiertcn.states import Status, UserState
from hiertcn.states.state import DamagedState

_log = logging.getLogger(__name__)
TOGETHER = 64
# Of so many events one after another, a batch takes what nobody should wait for longer.
EVENTS = 2_000
WAITING = 512
# Seconds that a request would wait, by how long the last batches took, from which on it is refused: who asks again a
# second later is answered sooner than who waits with all others. Behind a single batch nobody is refused.
PATIENCE = 0.25
_WEIGHT = 0.2
# Seconds after which it is asked what others who share the store were told.
LISTENING = 1.0
# A store that takes so many seconds to fail is not asked again for so many.
SLOW, SHUT = 0.02, 0.5
# Two threads take turns at Python here, that of requests and that of batches. After a batch the first one answers, and
# reads who asks next, for so many seconds at most, before the second goes on: else they would halt each other.
TURN = 0.05
# On one core, who asks is heard first: to be refused is nothing to wait for. Swaps wait for both, by `apart.NICE`.
NICE = 5


class Overloaded(Exception):
    """So much waits that this would come too late."""


@dataclass(eq=False)
class Work:
    """What to do before the next batch; events to take in, then what to ask; and what came of it, by the recommender
    that did it."""

    events: Sequence[Event] = ()
    ask: Ask | None = None
    act: Callable[[Recommender], None] | None = None
    statuses: Sequence[Status] = ()
    found: Chosen = field(init=False, repr=False)
    by: Recommender = field(init=False, repr=False)
    failed: Exception | None = None
    done: asyncio.Future[None] | None = None


class _Shut(NamedTuple):
    """What is not tried until then, and why."""

    until: float
    error: StorageError


_Step = Callable[[Recommender, Sequence[Work], dict[bytes, UserState]], None]


class Service:
    """Of the recommender that is current when a batch begins. A context manager that ends its thread.

    beat:      when the thread got on last, by time.monotonic
    set_aside: of how many users what was stored was found damaged
    failing:   what the store refused when it was asked last
    """

    def __init__(self, recommender: Recommender, waiting: int = WAITING) -> None:
        self.recommender = recommender
        # None, behind all others, ends the thread.
        self._most, self._queue = waiting, SimpleQueue[Work | None]()
        self._putting, self._closing, self._listened = threading.Lock(), False, float("-inf")
        self.beat, self.set_aside, self._begun = time.monotonic(), 0, 0
        self._took = 0.0
        self.failing: set[_Step] = set()
        # By step, since a store that takes nothing in may still be read.
        self._shut: dict[_Step, _Shut] = {}
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that are not begun."""
        return self._queue.qsize()

    @property
    def stuck(self) -> float:
        """Seconds for which nothing got on; 0 where nobody asked for anything."""
        return time.monotonic() - self.beat if self._begun or self.waiting else 0.0

    @property
    def full(self) -> bool:
        """Whether what is asked now would be refused."""
        waiting = self.waiting
        late = waiting >= TOGETHER and (waiting // TOGETHER + 1) * self._took > PATIENCE
        return late or waiting >= self._most

    async def do(self, work: Work) -> Work:
        """The work when it is done. Raises Overloaded if too much waits, and what it failed with."""
        loop = asyncio.get_running_loop()
        work.done = loop.create_future()
        with self._putting:
            # What is to be done to the recommender itself is rare, and done already as far as others can see.
            if self._closing or (work.act is None and self.full):
                raise Overloaded
            self._queue.put(work)
        await work.done
        if work.failed is not None:
            raise work.failed
        return work

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End when all that waits is done."""
        with self._putting:
            if not self._closing:
                self._queue.put(None)
            self._closing = True
        self._thread.join()

    def _run(self) -> None:
        give_way(NICE)
        while (batch := self._next()) is not None:
            self.beat, self._begun = time.monotonic(), len(batch)
            if self.beat - self._listened > LISTENING:
                self._listen()
            if batch:
                self._follow(batch)
                self._begun = 0
                loop: asyncio.AbstractEventLoop = batch[0].done.get_loop()  # type: ignore[union-attr]
                turn = SimpleQueue[None]()
                # A loop that was closed has nobody left to tell; one that is busy is not waited for.
                with suppress(RuntimeError, Empty):
                    # One call for a whole batch: each wakes the loop.
                    loop.call_soon_threadsafe(_tell, loop, batch, turn)
                    turn.get(timeout=TURN)
                self._took += _WEIGHT * (time.monotonic() - self.beat - self._took)

    def _next(self) -> list[Work] | None:
        """What waits, once something does; nothing, if for long nothing did; None at the end."""
        try:
            work = self._queue.get(timeout=LISTENING)
        except Empty:
            return []
        batch: list[Work] = []
        events = 0
        while work is not None:
            batch.append(work)
            events += len(work.events)
            if len(batch) == TOGETHER or events >= EVENTS or not self.waiting:
                return batch
            work = self._queue.get()
        if batch:
            self._queue.put(None)
        return batch or None

    def _listen(self) -> None:
        self._listened = self.beat
        try:
            self.recommender.listen()
        except StorageError:
            # It is told to who asks for something.
            pass
        except Exception:
            # Whatever it is, those who wait have another answer than silence.
            _log.exception("What others told could not be heard")

    def _follow(self, batch: Sequence[Work]) -> None:
        recommender = self.recommender
        for work in batch:
            work.by = recommender
            if work.act is not None:
                try:
                    work.act(recommender)
                except Exception as error:
                    work.failed = error
        known: dict[bytes, UserState] = {}
        for step, works in ((_take_in, [w for w in batch if w.events]), (_answer, [w for w in batch if w.ask])):
            left = [work for work in works if work.failed is None]
            if (shut := self._shut.get(step)) is not None and self.beat < shut.until:
                for work in left:
                    work.failed = shut.error
            elif left:
                self._take(step, left, known)

    def _take(self, step: _Step, works: Sequence[Work], known: dict[bytes, UserState]) -> None:
        begun, recommender = time.monotonic(), works[0].by
        try:
            self._surely(step, recommender, works, known)
            self.failing.discard(step)
        except StorageError as error:
            if step not in self.failing:
                _log.warning("%s", error)
            self.failing.add(step)
            for work in works:
                work.failed = error
            if (now := time.monotonic()) - begun > SLOW:
                self._shut[step] = _Shut(now + SHUT, error)
        except Exception:
            # What one of them can't have is no reason to give the others nothing.
            for work in works:
                try:
                    self._surely(step, recommender, [work], known)
                except Exception as error:
                    work.failed = error

    def _surely(
        self, step: _Step, recommender: Recommender, works: Sequence[Work], known: dict[bytes, UserState]
    ) -> None:
        """A step; whose stored state is damaged begins anew."""
        while True:
            try:
                return step(recommender, works, known)
            except DamagedState as damage:
                users = [event.user for work in works for event in work.events]
                users += [work.ask.user for work in works if work.ask is not None]
                found = set_aside(recommender.states, list(dict.fromkeys(map(key_of, users))), damage.value)
                if not found:
                    raise
                self.set_aside += found


def _take_in(recommender: Recommender, batch: Sequence[Work], known: dict[bytes, UserState]) -> None:
    """known: told what becomes of the users."""
    followed = recommender.follow([event for work in batch for event in work.events])
    known.update(followed.states)
    statuses = iter(followed.statuses)
    for work in batch:
        work.statuses = [next(statuses) for _ in work.events]


def _answer(recommender: Recommender, batch: Sequence[Work], known: dict[bytes, UserState]) -> None:
    asking = [(work, work.ask) for work in batch if work.ask is not None]
    found_all = recommender.find_many([ask for _, ask in asking], known)
    for (work, _), found in zip(asking, found_all, strict=True):
        work.found = found


def _tell(loop: asyncio.AbstractEventLoop, batch: Sequence[Work], turn: SimpleQueue[None]) -> None:
    for work in batch:
        # Who asked may have gone.
        if work.done is not None and not work.done.done():
            work.done.set_result(None)
    # Once they are answered.
    loop.call_soon(turn.put, None)
