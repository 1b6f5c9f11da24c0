"""Killed at any moment, a store has all that it acknowledged, once; any history of calls leaves what a dict would."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from hiertcn.errors import StorageError
from hiertcn.states import StateStore, Update, open_states
from stores import STORES, RedisServer, url_of

KEYS = [b"a", b"b", b"c", b"d"]


def counted(store: StateStore, number: int) -> None:
    """Note a number at the end of two keys' values and in the journal."""
    pair = [KEYS[number % 4], KEYS[(number + 1) % 4]]
    noted = b"%d " % number

    def note(found: list[bytes | None]) -> Update:
        return Update([(value or b"") + noted for value in found], [noted])

    store.update(pair, note)


def write_until_killed(url: str, begin: int, acknowledged: int) -> None:
    """In a child: numbers from `begin` on, each told to the pipe when it is acknowledged."""
    store = open_states(url)
    number = begin
    while True:
        os.write(acknowledged, b"?%d\n" % number)
        counted(store, number)
        os.write(acknowledged, b"!%d\n" % number)
        number += 1


def life(url: str, begin: int, after: int) -> tuple[int, int]:
    """(the last number tried, the last one acknowledged) by a child that is killed after so many lines."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            write_until_killed(url, begin, writing)
        finally:
            os._exit(1)
    os.close(writing)
    tried, sure = begin - 1, begin - 1
    with os.fdopen(reading, "rb") as lines:
        for count, line in enumerate(lines):
            tried, sure = (int(line[1:]), sure) if line.startswith(b"?") else (tried, int(line[1:]))
            if count == after:
                os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    return tried, sure


def check(store: StateStore, sure: set[int], tried: set[int]) -> None:
    """All that is sure is there, nothing was never tried, nothing is twice, and no update is there in part."""
    noted = [int(entry) for _, entry in store.journal(0)]
    assert len(noted) == len(set(noted))
    assert sure <= set(noted) <= tried
    for at, value in enumerate(store.get(KEYS)):
        assert [int(number) for number in (value or b"").split()] == [n for n in noted if at in (n % 4, (n + 1) % 4)]


@pytest.mark.parametrize("kind", STORES[1:])
def test_killed_writers_lose_nothing_and_double_nothing(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url, rng = url_of(kind, request, tmp_path), random.Random(7)
    sure: set[int] = set()
    end = 0
    for _ in range(20):
        tried, last = life(url, end + 1, rng.randrange(2, 40))
        sure |= set(range(end + 1, last + 1))
        end = tried
        with open_states(url) as store:
            check(store, sure, set(range(1, end + 1)))
    assert len(sure) > 100


def test_a_killed_redis_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    rng, sure, tried = random.Random(8), set(), set()
    with RedisServer(tmp_path) as own, open_states(own.url()) as store:
        number = 0
        for _ in range(10):

            def write() -> None:
                nonlocal number
                while True:
                    number += 1
                    tried.add(number)
                    try:
                        counted(store, number)
                    except StorageError:
                        return
                    sure.add(number)

            writer = Thread(target=write)
            writer.start()
            writer.join(rng.random() * 0.2)
            own.kill()
            writer.join()
            own.start()
            check(store, sure, tried)
    assert len(sure) > 10


class Histories(RuleBasedStateMachine):
    """Any calls on a store, beside a dict, a list and another dict."""

    url: Callable[[], str]
    lasting: bool

    def __init__(self) -> None:
        super().__init__()
        self.place = type(self).url()
        self.store = open_states(self.place, "os")
        self.values: dict[bytes, bytes] = {}
        self.entries: list[bytes] = []
        self.named: dict[str, bytes] = {}
        self.heard: list[tuple[int, bytes]] = []
        self.dropped = 0

    keys = st.lists(st.sampled_from(KEYS), unique=True, max_size=3)
    some = st.binary(max_size=12)

    @rule(keys=keys, new=st.lists(st.none() | some, min_size=3, max_size=3), journal=st.lists(some, max_size=3))
    def update(self, keys: list[bytes], new: list[bytes | None], journal: list[bytes]) -> None:
        def fn(found: list[bytes | None]) -> Update:
            assert found == [self.values.get(key) for key in keys]
            return Update(new[: len(keys)], journal)

        self.store.update(keys, fn)
        for key, value in zip(keys, new, strict=False):
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value
        self.entries += journal

    @rule(key=st.sampled_from(KEYS))
    def forget(self, key: bytes) -> None:
        self.store.forget(key)
        self.values.pop(key, None)

    @rule(keys=st.lists(st.sampled_from(KEYS)))
    def delete(self, keys: list[bytes]) -> None:
        self.store.delete(keys)
        for key in keys:
            self.values.pop(key, None)

    @rule(keys=st.lists(st.sampled_from(KEYS)))
    def get(self, keys: list[bytes]) -> None:
        assert self.store.get(keys) == [self.values.get(key) for key in keys]
        assert dict(self.store.scan()) == self.values

    @rule()
    def journal(self) -> None:
        found = self.store.journal(0)
        assert [entry for _, entry in found] == self.entries[self.dropped :]
        # A position once heard stays what it was.
        positions = dict(self.heard)
        assert all(positions.get(position, entry) == entry for position, entry in found)
        self.heard = [*((p, e) for p, e in self.heard if p not in dict(found)), *found]
        assert self.heard == sorted(self.heard, key=lambda pair: pair[0])

    @precondition(lambda self: self.heard)
    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        upto, _ = data.draw(st.sampled_from(self.heard))
        left = [position for position, _ in self.store.journal(0) if position > upto]
        self.store.trim(upto)
        assert [position for position, _ in self.store.journal(0)] == left
        self.dropped = len(self.entries) - len(left)

    @rule(name=st.sampled_from(["x", "y"]), value=some)
    def put(self, name: str, value: bytes) -> None:
        self.store.put(name, value)
        self.named[name] = value

    @rule(name=st.sampled_from(["x", "y"]))
    def value(self, name: str) -> None:
        assert self.store.value(name) == self.named.get(name)

    @precondition(lambda self: self.lasting)
    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = open_states(self.place, "os")

    def teardown(self) -> None:
        self.get(KEYS)
        self.journal()
        self.store.close()


@pytest.mark.parametrize("kind", STORES)
def test_any_history_leaves_what_a_dict_would(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    numbers: Iterator[int] = iter(range(10**6))

    class Machine(Histories):
        url = staticmethod(lambda: url_of(kind, request, _made(tmp_path / str(next(numbers)))))
        lasting = kind != "memory"

    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=checks),
    )


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
