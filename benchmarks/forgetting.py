"""How long it takes until a person is forgotten: DELETE over HTTP, of a large store, while others are answered."""

from __future__ import annotations

import asyncio
import http.client
import time
from pathlib import Path

import numpy as np

from benchmarks.record import record, scratch
from benchmarks.servers import server, write_models
from hiertcn.door import key_of
from hiertcn.loading import Load, load
from hiertcn.served import served
from hiertcn.states import Update, UserState, mark_of, open_states

ITEMS, USERS, EVENTS, DELETIONS, RATE = 20_000, 100_000, 12, 300, 50.0
_TOGETHER = 2_000


def run(items: int = ITEMS, users: int = USERS, deletions: int = DELETIONS, rate: float = RATE) -> None:
    figures: dict[str, float] = {"items": items, "users": users, "deletions": deletions, "rate": rate}
    with scratch() as folder:
        model = write_models(folder, items) / "a"
        states = folder / "states.db"
        _fill(model, states, users, items)
        figures["store_mb"] = states.stat().st_size / 1e6
        rows = []
        with server(model, "--state", f"sqlite:///{states}") as (port, _):
            for name, beside in (("alone", 0.0), (f"beside {rate:g} observe/s", rate)):
                spent = asyncio.run(_deleted(port, deletions, users, items, beside))
                found = {f"p{p}": float(np.percentile(spent, p)) for p in (50, 90, 99, 100)}
                figures |= {f"{name}, {part}": value for part, value in found.items()}
                rows.append([name, *(f"{value:.1f}" for value in found.values())])
        files = b"".join(file.read_bytes() for file in folder.glob("states.db*"))
        figures["left"] = sum(f"item-of-u{number}-".encode() in files for number in range(2 * deletions))
    note = (
        f"{users:,} people with {EVENTS} events each, {figures['store_mb']:,.0f} MB of SQLite; {deletions} deletions "
        f"one after another, each synced, and no byte of what was stored in any file after: of {2 * deletions} people, "
        f"{figures['left']:g} are found there."
    )
    record("forgetting", figures, ["", "p50 ms", "p90 ms", "p99 ms", "max ms"], rows, [note])


def _fill(model: Path, states: Path, users: int, items: int) -> None:
    """Each person's first item is known by a name of its own, to be looked for afterwards."""
    digest, now, random = served(model).digest, int(time.time() * 1e6), np.random.default_rng(0)
    times = [now - (EVENTS - n) * 60_000_000 for n in range(EVENTS)]
    with open_states(f"sqlite:///{states}", "os") as store:
        for begin in range(0, users, _TOGETHER):
            values = []
            for number in range(begin, begin + _TOGETHER):
                picked = [f"item-of-u{number}-", *map(str, random.integers(1, items + 1, EVENTS - 1).tolist())]
                marks = [mark_of(f"{number}-{place}") for place in range(EVENTS)]
                values.append(UserState(picked, times, marks, [], EVENTS).to_bytes(digest))
            keys = [key_of(f"u{number}") for number in range(begin, begin + _TOGETHER)]
            store.update(keys, lambda _, values=values: Update(values))


async def _deleted(port: int, deletions: int, users: int, items: int, rate: float) -> list[float]:
    """Milliseconds of each deletion; beside others, of the next people."""
    first = deletions if rate else 0
    task = asyncio.to_thread(_spent, port, range(first, first + deletions))
    if not rate:
        return await task
    asked = Load(rate, deletions * 0.05, users=users, seed=1)
    spent, _ = await asyncio.gather(task, load(f"http://127.0.0.1:{port}", asked, list(range(1, items + 1))))
    return spent


def _spent(port: int, people: range) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    spent = []
    for number in people:
        begun = time.perf_counter()
        connection.request("DELETE", f"/v1/users/u{number}")
        answer = connection.getresponse()
        answer.read()
        spent.append(1000 * (time.perf_counter() - begun))
        assert answer.status == 204, answer.status
    connection.close()
    return spent
