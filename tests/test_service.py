"""Requests that wait together: answered as one by one, each as the store and its own state allow."""

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
from hiertcn.service import SHUT, SLOW, Service, Work
from hiertcn.states import MemoryStates, Update
from people import FULL, START, assert_alike, catalog_of, run_of
from services import Failing, ask_all, named, pick, service_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_of(tmp_path_factory.mktemp("runs") / "run", FULL, catalog_of("abcde"))


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


def damaged(run: Run, user: str, damage: Callable[[bytes], bytes]) -> MemoryStates:
    """A store of one user, whose state is damaged."""
    states = MemoryStates()
    Recommender.load(run, states).observe(user, "a", START)
    ((key, value),) = states.scan()
    states.update([key], lambda _: Update([damage(value)]))
    return states


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
