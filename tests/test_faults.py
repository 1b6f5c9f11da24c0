"""Faults of the machine and of the store, done to a running server: what it answers meanwhile, and that it heals by
itself when they are gone, with everything that it acknowledged."""

from __future__ import annotations

import errno
import http.client
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import psutil
import pytest

from faults import Faults
from hiertcn.artifact import Run
from servers import JSON, Said, Server
from stores import RedisServer, free_port, until

HOUR, DAY = 3_600, 86_400


class Impatient(Server):
    """What has not got on for a second is stuck."""

    PROGRAM = f"import hiertcn.server as server; server.STUCK = 1.0; {Server.PROGRAM}"


@dataclass
class Place:
    """A server, what can be done to it, and what it acknowledged."""

    server: Server
    faults: Faults | None = None
    redis: RedisServer | None = None
    disk: Path | None = None
    acknowledged: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kept = self._connected(20)

    def _connected(self, timeout: float) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=timeout)
        connection.connect()
        return connection

    def ask(self, method: str, path: str, body: Any = None) -> Said:
        """On a connection that was there before the fault."""
        data = None if body is None else json.dumps(body)
        try:
            self.kept.request(method, path, data, JSON if data else {})
            answer = self.kept.getresponse()
        except (http.client.HTTPException, ConnectionError):
            # A machine that was busy for ten seconds let it end.
            self.kept = self._connected(20)
            self.kept.request(method, path, data, JSON if data else {})
            answer = self.kept.getresponse()
        text = answer.read()
        return Said(answer.status, json.loads(text) if text[:1] == b"{" else answer.headers.get("retry-after"))

    def tell(self) -> str:
        """One more event of now; what became of it, by its status or, of a refused request, that of HTTP."""
        number = len(self.acknowledged) + 1000 * int(time.monotonic() * 1000)
        event = {"event_id": f"e{number}", "user_id": "u", "item_id": "abcde"[number % 5], "time": int(time.time())}
        said = self.ask("POST", "/v1/events", {"events": [event]})
        if said.status != 200:
            return str(said.status)
        (result,) = said.body["results"]
        if result["status"] == "applied":
            self.acknowledged.append(event)
        return str(result.get("error", {}).get("code", result["status"]))

    def source(self) -> str:
        said = self.ask("POST", "/v1/recommend", {"user_id": "u", "k": 3})
        assert (said.status, len(said.body["items"])) == (200, 3), said
        return str(said.body["source"])

    def ready(self) -> str:
        return str(self.ask("GET", "/readyz").body["status"])

    def is_well(self) -> bool:
        return (self.tell(), self.source(), self.ready(), self.ask("GET", "/livez").status) == (
            *("applied", "model", "ready"),
            200,
        )


class Fault(NamedTuple):
    """place: where it is done; meanwhile: what becomes of events, where recommendations come from, readiness."""

    place: str
    begun: Callable[[Place], AbstractContextManager[None]]
    meanwhile: tuple[str, str, str]


def _system(name: str, value: int) -> Callable[[Place], AbstractContextManager[None]]:
    def begun(place: Place) -> AbstractContextManager[None]:
        assert place.faults is not None
        return place.faults.of(name, value)

    return begun


@contextmanager
def _full(place: Place) -> Iterator[None]:
    assert place.disk is not None
    filler = place.disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            pass
    # What was left of the last page of the log.
    with suppress(AssertionError):
        until(lambda: place.tell() == "503", 10)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def _no_files(place: Place) -> Iterator[None]:
    process = psutil.Process(place.server.process.pid)
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds(), before[1]))
    try:
        with suppress(OSError):
            other = place._connected(1)
            other.request("GET", "/livez")
            assert other.getresponse().status != 200
        yield
    finally:
        process.rlimit(psutil.RLIMIT_NOFILE, before)


@contextmanager
def _hung(place: Place) -> Iterator[None]:
    """The thread of batches waits for the disk, with one request in hand and no other behind it."""
    assert place.faults is not None
    other = Place(place.server)
    with place.faults.of("delay", 4_000):
        thread = Thread(target=other.tell)
        thread.start()
        until(lambda: place.ask("GET", "/livez").status == 503, 10)
    thread.join()
    assert len(other.acknowledged) == 1
    place.acknowledged += other.acknowledged
    yield


@contextmanager
def _halted(place: Place) -> Iterator[None]:
    process = psutil.Process(place.server.process.pid)
    process.suspend()
    time.sleep(2)
    process.resume()
    yield


@contextmanager
def _down(place: Place) -> Iterator[None]:
    assert place.redis is not None
    place.redis.kill()
    try:
        yield
    finally:
        place.redis.start()


@contextmanager
def _slow(place: Place) -> Iterator[None]:
    assert place.redis is not None
    process = psutil.Process(place.redis.process.pid)
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@contextmanager
def _replica(place: Place) -> Iterator[None]:
    assert place.redis is not None
    client = place.redis.client()
    client.execute_command(f"REPLICAOF 127.0.0.1 {free_port()}")
    try:
        yield
    finally:
        client.execute_command("REPLICAOF NO ONE")


@contextmanager
def _no_memory(place: Place) -> Iterator[None]:
    assert place.redis is not None
    client = place.redis.client()
    client.config_set("maxmemory", "1")
    try:
        yield
    finally:
        client.config_set("maxmemory", "0")


REFUSED, LOST, WELL = ("503", "model", "degraded"), ("503", "degraded", "degraded"), ("applied", "model", "ready")
FAULTS = {
    "writes fail": Fault("file", _system("write", errno.EIO), REFUSED),
    "writes find no space": Fault("file", _system("write", errno.ENOSPC), REFUSED),
    "writes are not allowed": Fault("file", _system("write", errno.EROFS), REFUSED),
    "syncs fail": Fault("file", _system("sync", errno.EIO), REFUSED),
    "syncs are slow": Fault("file", _system("delay", 300), WELL),
    "the worker hangs": Fault("file", _hung, WELL),
    "the process is halted": Fault("file", _halted, WELL),
    "the clock is an hour ahead": Fault("file", _system("clock", HOUR), WELL),
    "the clock is an hour behind": Fault("file", _system("clock", -HOUR), ("clock_skew", "model", "ready")),
    "the clock is a day ahead": Fault("file", _system("clock", DAY), WELL),
    "the clock is a day behind": Fault("file", _system("clock", -DAY), ("clock_skew", "model", "ready")),
    "no more files can be opened": Fault("file", _no_files, WELL),
    "the disk is full": Fault("disk", _full, REFUSED),
    "the Redis is down": Fault("redis", _down, LOST),
    "the Redis hangs": Fault("redis", _slow, LOST),
    "the Redis is a replica": Fault("redis", _replica, REFUSED),
    "the Redis has no memory": Fault("redis", _no_memory, REFUSED),
}


@pytest.fixture(scope="module")
def places(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Place]]:
    """By where states are, a server that suffers one fault after another."""
    found: dict[str, Place] = {}
    with ExitStack() as stack:

        def opened(name: str) -> Place:
            folder = tmp_path_factory.mktemp(name)
            if name == "redis":
                redis = stack.enter_context(RedisServer(folder))
                return Place(stack.enter_context(Impatient(run.path, "--state", redis.url("faults", 0.5))), redis=redis)
            if name == "disk":
                mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "hiertcn-test", str(folder)]
                if subprocess.run(mount, capture_output=True, check=False).returncode:
                    pytest.skip("a small disk can't be mounted here")
                stack.callback(subprocess.run, ["umount", str(folder)], check=True)
                server = stack.enter_context(Impatient(run.path, "--state", f"sqlite:///{folder}/states.db"))
                return Place(server, disk=folder)
            faults = Faults(folder)
            with pytest.MonkeyPatch.context() as patch:
                for variable, value in faults.environment.items():
                    patch.setenv(variable, value)
                server = stack.enter_context(Impatient(run.path, "--state", f"sqlite:///{folder}/states.db"))
            return Place(server, faults=faults)

        def place(name: str) -> Place:
            if name not in found:
                found[name] = opened(name)
            return found[name]

        yield place


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_costs_what_is_said_and_heals_by_itself(places: Callable[[str], Place], what: str) -> None:
    fault = FAULTS[what]
    place = places(fault.place)
    until(place.is_well, 20)
    with fault.begun(place):
        for _ in range(3):
            assert (place.tell(), place.source(), place.ready()) == fault.meanwhile
        assert place.ask("GET", "/livez").status == 200
    # 10 s, and twice of it, as the machine has other things to do.
    until(place.is_well, 20)
    again = place.ask("POST", "/v1/events", {"events": place.acknowledged[-100:]})
    assert {one["status"] for one in again.body["results"]} == {"duplicate"}
