"""What waits for the service: in turns, not too much of it, and none of it for long."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from typing import Any

import pytest

from hiertcn import apart
from hiertcn.artifact import Run
from hiertcn.door import Ask
from hiertcn.service import NICE, TURN, Overloaded, Service, Work
from hiertcn.states import MemoryStates
from people import FULL, catalog_of, run_of
from services import Failing, ask_all, named, pick, service_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_of(tmp_path_factory.mktemp("runs") / "run", FULL, catalog_of("abcde"))


class Slow(MemoryStates):
    """A store whose every update takes so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def update(self, keys: Any, fn: Any) -> None:
        time.sleep(self._seconds)
        super().update(keys, fn)


async def shed_of(service: Service, many: int) -> int:
    """Of so many picks at once, how many are refused."""
    asked = [service.do(Work([pick(number)])) for number in range(many)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, Work | Overloaded) for one in found)
    return sum(isinstance(one, Overloaded) for one in found)


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux a thread has a niceness of its own")
def test_batches_give_way_to_who_asks_and_swaps_to_both(run: Run) -> None:
    found: list[int] = []
    with service_of(run, MemoryStates()) as service:
        asyncio.run(
            service.do(Work(act=lambda _: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))))
        )
    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert found == [min(mine + NICE, 19)]
    assert NICE < apart.NICE


def test_too_many_are_shed_at_once_and_then_it_goes_on(run: Run) -> None:
    states = Failing()

    async def overload(service: Service) -> tuple[int, int]:
        states.open.clear()
        asked = [asyncio.ensure_future(service.do(Work([pick(n)]))) for n in range(50)]
        await asyncio.sleep(0.05)
        shed = sum(one.done() and isinstance(one.exception(), Overloaded) for one in asked)
        states.open.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        await service.do(Work([pick(99)]))
        return shed, sum(isinstance(one, Work) for one in found)

    with service_of(run, states, waiting=8) as service:
        shed, done = asyncio.run(overload(service))
    assert (shed, done) in [(50 - 8 - taken, 8 + taken) for taken in (0, 1, 2, 3)]


def test_who_would_wait_for_long_is_refused_and_who_is_behind_one_batch_never(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hiertcn.service.TOGETHER", 4)
    monkeypatch.setattr("hiertcn.service.PATIENCE", 0.1)

    with service_of(run, Slow(0.05)) as service:
        # Nothing is known yet of how long it takes.
        assert asyncio.run(shed_of(service, 30)) == 0
        # Some 12 ms each: 8 of them are what somebody waits for.
        assert 20 <= asyncio.run(shed_of(service, 40)) <= 36
        assert asyncio.run(shed_of(service, 4)) == 0
        assert not service.full


def test_a_burst_of_what_a_few_batches_take_is_not_refused(run: Run) -> None:
    with service_of(run, Slow(0.01)) as service:
        # One at a time each takes a whole batch; together they don't.
        for number in range(20):
            asyncio.run(service.do(Work([pick(number)])))
        assert asyncio.run(shed_of(service, 300)) == 0


def test_what_is_done_to_the_recommender_is_not_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    with service_of(run, MemoryStates()) as service:
        monkeypatch.setattr(Service, "full", True)
        with pytest.raises(Overloaded):
            asyncio.run(service.do(Work(ask=Ask("u"))))
        asyncio.run(service.do(Work(act=done.append)))
    assert len(done) == 1


def test_each_batch_is_answered_before_the_next_begins(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiertcn.service.TOGETHER", 1)
    log: list[tuple[str, int]] = []

    async def ask(service: Service, number: int) -> None:
        await service.do(Work(act=lambda _: log.append(("begun", number))))
        log.append(("answered", number))
        if number == 2:
            # For longer than it is waited for; that is to be the only time.
            time.sleep(3 * TURN)

    async def ask_all(service: Service) -> None:
        # All of them wait before the first batch ends.
        hold = asyncio.ensure_future(service.do(Work(act=lambda _: time.sleep(0.05))))
        await asyncio.gather(hold, *(ask(service, number) for number in range(20)))

    with service_of(run, MemoryStates()) as service:
        asyncio.run(ask_all(service))
    begun = {number: log.index(("begun", number)) for number in range(20)}
    early = [n for n in range(19) if log.index(("answered", n)) > begun[n + 1]]
    assert set(early) <= {3, 4, 5, 6}


def test_a_loop_that_is_gone_does_not_end_the_thread_of_batches(run: Run) -> None:
    async def leave(service: Service) -> None:
        asked = asyncio.ensure_future(service.do(Work(act=lambda _: time.sleep(0.1))))
        await asyncio.sleep(0.01)
        asked.cancel()

    with service_of(run, MemoryStates()) as service:
        asyncio.run(leave(service))
        (work,) = asyncio.run(ask_all(service, Work(ask=Ask("u", 3))))
        assert len(named(work)) == 3
        service.close()
        service.close()
        assert (service.waiting, service.stuck) == (0, 0.0)


def test_of_many_events_no_batch_takes_so_many_that_it_seems_to_hang(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiertcn.service.EVENTS", 50)

    class Counting(Failing):
        def update(self, keys: Any, fn: Any) -> None:
            super().update(keys, fn)
            beats.add(service.beat)

    states, beats = Counting(), set[float]()
    works = [Work([pick(number)._replace(event_id=f"{one}-{number}") for number in range(50)]) for one in range(4)]

    async def ask_behind_one(service: Service) -> list[Any]:
        states.open.clear()
        first = asyncio.ensure_future(service.do(Work([pick(0)])))
        while service.waiting or not service.stuck:
            await asyncio.sleep(0.001)
        rest = [asyncio.ensure_future(service.do(work)) for work in works]
        await asyncio.sleep(0)
        states.open.set()
        return [await first, *await asyncio.gather(*rest)]

    with service_of(run, states) as service:
        done = asyncio.run(ask_behind_one(service))
        assert service.stuck == 0
    assert len(beats) == 1 + len(works)
    assert all(len(work.statuses) == 50 for work in done[1:])
