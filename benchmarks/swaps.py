"""Models swapped while people are answered: what requests get meanwhile, and how long a swap and a rollback take.

Two models of one shape and of other weights, over one catalog, behind `hiertcn serve FOLDER` with SQLite. Open loop:
first without swaps, then at the same rate with swaps all the while, each as soon as it is due. Every swap makes the
states of all people those of another model, so each person's next event is read with all that came before it.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from typing import Any

import numpy as np
import psutil

from benchmarks.record import record, scratch
from benchmarks.servers import largest, server, write_models
from hiertcn.loading import Latencies, Load, load

ITEMS, RATE, SWAPS, EVERY, ROLLBACKS, USERS = 200_000, 1_000.0, 100, 1.5, 10, 100_000


def run(
    items: int = ITEMS,
    rate: float = RATE,
    swaps: int = SWAPS,
    every: float = EVERY,
    rollbacks: int = ROLLBACKS,
    users: int = USERS,
) -> None:
    with scratch() as folder:
        models = write_models(folder, items, "ab")
        with server(models, "--model", "a", "--state", f"sqlite:///{folder / 'states.db'}") as (port, process):
            figures = asyncio.run(_measured(port, process, items, rate, swaps, every, rollbacks, users))
    figures = {"items": items, "rate": rate, "users": users, **figures}
    rows = [
        [
            name,
            *(f"{figures[name]['milliseconds'][p]:.1f}" for p in ("p50", "p99", "p99.9")),
            str(figures[name]["errors"]),
        ]
        for name in ("steady", "swapping")
    ]
    ratio = figures["swapping"]["milliseconds"]["p99"] / figures["steady"]["milliseconds"]["p99"]
    notes = [
        f"{items:,} items, {rate:,.0f} observe/s of {users:,} people, a few of them often; a swap every {every:g} s.",
        f"{figures['swaps']['done']} of {figures['swaps']['asked']} swaps done, median "
        f"{figures['swaps']['median_s']:.2f} s, longest {figures['swaps']['longest_s']:.2f} s; the first, which builds "
        f"the index, {figures['first_swap_s']:.1f} s. Rollbacks: {figures['rollbacks']['done']} of "
        f"{figures['rollbacks']['asked']}, longest {figures['rollbacks']['longest_s']:.3f} s.",
        f"p99 while swapping / steady: {ratio:.1f}. Memory: {figures['rss_one_mb']:.0f} MB with one model, "
        f"{figures['rss_two_mb']:.0f} MB with the one before, {figures['rss_peak_mb']:.0f} MB at most.",
    ]
    record("swaps", figures, ["", "p50 ms", "p99 ms", "p99.9 ms", "not 200"], rows, notes)


async def _measured(
    port: int, process: psutil.Process, items: int, rate: float, swaps: int, every: float, rollbacks: int, users: int
) -> dict[str, Any]:
    url, ids, seconds = f"http://127.0.0.1:{port}", list(range(1, items + 1)), swaps * every
    one = process.memory_info().rss / 1e6
    first = (await _changed(port, ["b"], 0.0))["longest_s"]
    back = (await _changed(port, ["a"], 0.0))["longest_s"]
    two = process.memory_info().rss / 1e6
    await load(url, Load(rate, min(seconds, 10.0), users=users, seed=1), ids)
    steady = await load(url, Load(rate, seconds, users=users, seed=2), ids)
    with largest(lambda: process.memory_info().rss) as peak:
        swapping, changed = await asyncio.gather(
            load(url, Load(rate, seconds, users=users, seed=3), ids),
            _changed(port, ["ba"[number % 2] for number in range(swaps)], every),
        )
    rolled, _ = await asyncio.gather(
        _changed(port, [None] * rollbacks, 1.0), load(url, Load(rate, rollbacks, users=users, seed=4), ids)
    )
    return {
        "first_swap_s": first,
        "cached_swap_s": back,
        "steady": _figures(steady),
        "swapping": _figures(swapping),
        "swaps": changed,
        "rollbacks": rolled,
        "rss_one_mb": one,
        "rss_two_mb": two,
        "rss_peak_mb": peak[0] / 1e6,
    }


def _figures(found: Latencies) -> dict[str, Any]:
    return {**found.as_json(), "errors": found.errors}


async def _changed(port: int, names: list[str | None], every: float) -> dict[str, Any]:
    """Of a swap to each of `names`, None for a rollback, one every so many seconds."""
    begun, spent, done = time.monotonic(), [], 0
    for number, name in enumerate(names):
        await asyncio.sleep(max(0.0, begun + number * every - time.monotonic()))
        at = time.monotonic()
        done += await asyncio.to_thread(_asked, port, name) == 200
        spent.append(time.monotonic() - at)
    return {"asked": len(names), "done": done, "median_s": float(np.median(spent)), "longest_s": max(spent)}


def _asked(port: int, name: str | None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        if name is None:
            connection.request("POST", "/v1/model/rollback")
        else:
            body = json.dumps({"model": name})
            connection.request("POST", "/v1/model", body, {"content-type": "application/json"})
        return connection.getresponse().status
    finally:
        connection.close()
