"""Requests that wait together: answered as one by one, shed when too many wait, told of a store that fails."""

from __future__ import annotations

import asyncio
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exports import CONFIGS, ITEMS
from hiertcn.answers import Recommendation
from hiertcn.artifact import Run
from hiertcn.crowd import Crowd
from hiertcn.door import Ask, Event
from hiertcn.errors import ArtifactError, StorageError
from hiertcn.exported import Exported
from hiertcn.exporting import export
from hiertcn.recommender import Recommender
from hiertcn.retrieval import ExactIndex
from hiertcn.scoring import Limits, Scorer, compared
from hiertcn.server import Server
from hiertcn.service import SHUT, SLOW, TURN, Overloaded, Service, Work
from hiertcn.states import MemoryStates, StateStore, Update
from people import FULL, START, assert_alike, catalog_of, run_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_of(tmp_path_factory.mktemp("runs") / "run", FULL, catalog_of("abcde"))


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


def named(work: Work) -> list[Recommendation]:
    return work.by.stock.named(*work.found)


def pick(number: int) -> Event:
    return Event(f"u{number % 5}", "abcdex"[number % 6], START + 40 * number, f"e{number}")


def service_of(run: Run, states: StateStore, **options: Any) -> Service:
    return Service(Recommender.load(run, states), **options)


def test_what_waits_together_is_answered_as_one_by_one(run: Run) -> None:
    alone, states = Recommender.load(run), Failing()

    async def ask_all(service: Service) -> list[Work]:
        states.open.clear()
        asked = []
        for number in range(40):
            asked.append(asyncio.ensure_future(service.do(Work([pick(number)], Ask(f"u{number % 5}", 5)))))
            # The first one is begun, and the others wait for it.
            await asyncio.sleep(0.001)
            while service.waiting != number:
                await asyncio.sleep(0.001)
        states.open.set()
        return list(await asyncio.gather(*asked))

    with service_of(run, states) as service:
        done = asyncio.run(ask_all(service))
    assert [work.statuses for work in done] == [[alone.observe_many([pick(n)])[0]] for n in range(40)]
    # All of one batch are taken in before any is answered.
    for number in range(35, 40):
        assert_alike(named(done[number]), alone.recommend(f"u{number % 5}", 5))


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


def damaged(run: Run, user: str, damage: Callable[[bytes], bytes]) -> MemoryStates:
    """A store of one user, whose state is damaged."""
    states = MemoryStates()
    Recommender.load(run, states).observe(user, "a", START)
    ((key, value),) = states.scan()
    states.update([key], lambda _: Update([damage(value)]))
    return states


async def ask_all(service: Service, *works: Work) -> list[Any]:
    return list(await asyncio.gather(*map(service.do, works), return_exceptions=True))


def test_what_one_cannot_have_the_others_get(run: Run) -> None:
    """Of three who ask at once, the state of one is of a format that is to come."""
    states = damaged(run, "v", lambda value: other_format(value))
    works = [Work([Event(user, "b", START + 9, f"{user}-b")], Ask(user, 3)) for user in "uvw"]
    with service_of(run, states) as service:
        found = asyncio.run(ask_all(service, *works))
        assert service.set_aside == 0
    assert isinstance(found[1], ArtifactError)
    assert [found[n].statuses for n in (0, 2)] == [["applied"]] * 2
    assert [len(named(found[n])) for n in (0, 2)] == [3, 3]


def other_format(value: bytes) -> bytes:
    body = value[:4] + (99).to_bytes(2, "little") + value[6:-4]
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize("asks", [True, False])
def test_whose_state_is_damaged_begins_anew_and_what_is_left_of_it_is_kept(run: Run, asks: bool) -> None:
    states = damaged(run, "v", lambda value: value[:-1])
    ((key, left),) = states.scan()
    clean = Recommender.load(run)
    with service_of(run, states) as service:
        if asks:
            (work,) = asyncio.run(ask_all(service, Work(ask=Ask("v", 3))))
            assert_alike(named(work), clean.recommend("v", 3))
        (work, other) = asyncio.run(
            ask_all(service, Work([Event("v", "b", START + 9, "b")], Ask("v", 3)), Work(ask=Ask("u", 3)))
        )
        assert service.set_aside == 1
        clean.observe("v", "b", START + 9, event_id="b")
        assert work.statuses == ["applied"]
        assert_alike(named(work), clean.recommend("v", 3))
        assert len(named(other)) == 3
        kept = dict(states.scan())
        assert sorted(kept) == [key, b"damaged/" + key] or sorted(kept) == [b"damaged/" + key, key]
        assert kept[b"damaged/" + key] == left
        service.recommender.delete("v")
        assert not list(states.scan())


def test_a_store_that_hangs_is_left_alone_for_a_while(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    states, tried = MemoryStates(), list[float]()

    def hang(*_: Any) -> None:
        tried.append(time.monotonic())
        time.sleep(2 * SLOW)
        raise StorageError("It hangs.")

    monkeypatch.setattr(states, "update", hang)
    with service_of(run, states) as service:
        for number in range(5):
            (found,) = asyncio.run(ask_all(service, Work([pick(number)])))
            assert isinstance(found, StorageError)
        assert len(tried) == 1
        # What is only read is not held up by that.
        (work,) = asyncio.run(ask_all(service, Work(ask=Ask("u", 3))))
        assert len(named(work)) == 3
        monkeypatch.undo()
        while time.monotonic() < tried[0] + 2 * SLOW + SHUT + 0.1:
            time.sleep(0.05)
        (work,) = asyncio.run(ask_all(service, Work([pick(0)])))
        assert work.statuses == ["applied"]


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


def test_a_store_that_fails_is_told_and_answers_are_marked(run: Run) -> None:
    states = Failing()
    body = {"event_id": "e", "user_id": "u", "item_id": "a", "time": START}

    async def ask(server: Server, path: str, given: Any) -> tuple[int, Any, dict[bytes, bytes]]:
        import json

        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": json.dumps(given).encode(), "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "http_version": "1.1"}
        scope |= {"headers": [(b"content-type", b"application/json")], "root_path": "", "scheme": "http"}
        await server.app(scope, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"]), dict(sent[0]["headers"])

    async def all_of_it(server: Server) -> None:
        assert (await ask(server, "/v1/events", {"events": [body]}))[1]["results"][0]["status"] == "applied"
        states.fails = True
        status, said, headers = await ask(server, "/v1/events", {"events": [body | {"event_id": "f"}]})
        assert (status, said["error"]["code"], headers[b"retry-after"]) == (503, "store_unavailable", b"1")
        status, said, _ = await ask(server, "/v1/recommend", {"user_id": "u", "k": 2})
        assert (status, said["source"], [one["item_id"] for one in said["items"]]) == (200, "degraded", ["a", "b"])
        states.fails = False
        status, said, _ = await ask(server, "/v1/events", {"events": [body | {"event_id": "f", "time": START + 1}]})
        assert said["results"][0]["status"] == "applied"
        assert (await ask(server, "/v1/recommend", {"user_id": "u"}))[1]["source"] == "model"

    with service_of(run, states) as service:
        asyncio.run(all_of_it(Server(service, now=lambda: START + 60.0)))


def test_a_server_that_takes_no_events_hears_of_others(run: Run, tmp_path: Path) -> None:
    config = CONFIGS["crowd"]
    hearing = run_of(tmp_path / "hearing", config, catalog_of([f"i{n}" for n in range(ITEMS)]))
    shared = MemoryStates()
    other = Recommender.load(hearing, shared)
    with service_of(hearing, shared) as service:
        for number in range(20):
            other.observe("u", f"i{number % 3}", START + 30 * number)
        deadline = time.monotonic() + 20
        while service.recommender.clock != START + 30 * 19 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert service.recommender.clock == START + 30 * 19


def test_a_journal_that_cannot_be_heard_ends_no_server(run: Run) -> None:
    """Its thread lives on, and goes on to hear and to answer."""

    class Deaf(MemoryStates):
        failed = False

        def journal(self, after: int, most: int = 10_000) -> Any:
            if threading.current_thread().name == "batches" and not self.failed:
                self.failed = True
                raise ArtifactError("a page of it is damaged")
            return super().journal(after, most)

    async def observed(service: Service) -> Work:
        return await asyncio.wait_for(service.do(Work([pick(0)], Ask("u0"))), 20)

    states = Deaf()
    with service_of(run, states) as service:
        deadline = time.monotonic() + 20
        while not states.failed and time.monotonic() < deadline:
            time.sleep(0.01)
        assert states.failed
        assert asyncio.run(observed(service)).statuses == ["applied"]


@pytest.fixture(scope="module", params=["crowd", "repeats", "softmax, crowd", "impressions, l2", "unit, short field"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    path = tmp_path_factory.mktemp("exported") / "run"
    return Exported(export(run_of(path, CONFIGS[request.param], catalog_of([f"i{n}" for n in range(ITEMS)]))))


rows = st.lists(st.integers(1, ITEMS), unique=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), rows, st.none() | rows, st.integers(1, ITEMS + 3))
def test_an_exact_index_finds_what_all_scores_tell(
    exported: Exported, seed: int, hidden: list[int], among: list[int] | None, k: int
) -> None:
    random = np.random.default_rng(seed)
    crowd = (
        None
        if not any(exported.horizons)
        else Crowd.of(
            exported.horizons,
            ITEMS,
            random.integers(1, ITEMS + 1, 50),
            random.integers(0, ITEMS + 1, 50),
            START + random.uniform(0, 500, 50),
        )
    )
    rec = Recommender(exported, MemoryStates(), crowd)
    for number in range(int(random.integers(1, 6))):
        rec.observe("u", f"i{random.integers(ITEMS)}", START + 500 + 7 * number)
    queries = rec._query("u", START + 600)
    limits = [
        Limits(k, np.array(sorted(hidden), np.int64), None if among is None else np.array(sorted(among), np.int64))
    ]
    (dense,) = Scorer(exported).best(queries, limits)
    with ExactIndex(compared(exported)) as index:
        (searched,) = Scorer(exported, index).best(queries, limits)
    np.testing.assert_allclose(searched.scores, dense.scores, atol=1e-5)
    apart = np.abs(np.diff(dense.scores)) > 1e-4
    if apart.all():
        assert searched.rows.tolist() == dense.rows.tolist()


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
