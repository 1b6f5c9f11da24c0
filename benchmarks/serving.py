"""How long answers of `hiertcn serve` take, open loop, beside a server that only echoes, in turns; with a million
items, too; and over many minutes.

The server has one core and who asks another; states in SQLite, each acknowledgement after a sync.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.record import record, scratch
from benchmarks.servers import process, server, write_models
from hiertcn.loading import Latencies, Load, load

ITEMS, MILLION, SECONDS, ROUNDS = 200_000, 1_000_000, 5.0, 3
# More than can be answered; so many times what is answered then is too much, from more connections than may wait.
MOST, TIMES, CROWD = 3_000.0, 3, 2_048
Asked = Sequence[tuple[str, float]]
"""What is asked, and how often a second."""
ASKED: Asked = (
    *(("observe", rate) for rate in (100.0, 300.0, 1_000.0, 2_000.0)),
    *(("recommend", rate) for rate in (1_000.0, 3_000.0)),
)
ASKED_OF_MILLION: Asked = (("observe", 300.0), ("observe", 1_200.0), ("recommend", 1_200.0))
# So many observe a second, for so long each.
LONG, MINUTES = (1_000.0, 2_000.0), 10.0
_SHARES = ("p50", "p90", "p99", "p99.9")
# Raw ASGI, with answers as long as those of 50 items.
_ECHO = """
import sys, uvicorn
async def app(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"3000")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b" " * 3000})
class Said(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(f":{self.servers[0].sockets[0].getsockname()[1]} serves", file=sys.stderr, flush=True)
options = {"loop": "uvloop", "http": "httptools", "lifespan": "off", "access_log": False, "log_level": "error"}
Said(uvicorn.Config(app, port=0, **options)).run()
"""


def run(items: int = ITEMS, seconds: float = SECONDS, rounds: int = ROUNDS) -> None:
    _measure("serving", ASKED, items, seconds, rounds)


def run_million(items: int = MILLION, seconds: float = SECONDS, rounds: int = ROUNDS) -> None:
    _measure("serving_million", ASKED_OF_MILLION, items, seconds, rounds)


def run_long(items: int = ITEMS, minutes: float = MINUTES) -> None:
    """Of people who go on: their running sessions grow, and so does the store."""
    ids, found = list(range(1, items + 1)), {}
    with scratch() as folder:
        model = write_models(folder, items) / "a"
        with server(model, "--state", f"sqlite:///{folder / 'states.db'}") as (port, served):
            url = f"http://127.0.0.1:{port}"
            asyncio.run(load(url, Load(50.0, SECONDS, seed=99), ids))
            for rate in LONG:
                asked = asyncio.run(load(url, Load(rate, 60 * minutes, seed=int(rate)), ids))
                memory = served.memory_info().rss / 1e6
                figures = {**asked.as_json()["milliseconds"], "errors": asked.errors, "rss_mb": memory}
                found[f"observe, {rate:,.0f}/s"] = figures
    rows = [
        [name, *(f"{one[part]:,.1f}" for part in _SHARES), str(one["errors"]), f"{one['rss_mb']:,.0f}"]
        for name, one in found.items()
    ]
    notes = [
        f"{minutes:g} minutes each, one after the other; {items:,} items of the preset `strong`, untrained; k = 50."
    ]
    columns = ["", *(f"{part} ms" for part in _SHARES), "not 200", "memory MB"]
    record("serving_long", {"items": items, "minutes": minutes, "asked": found}, columns, rows, notes)


def _measure(name: str, asked: Asked, items: int, seconds: float, rounds: int) -> None:
    with scratch() as folder:
        model = write_models(folder, items) / "a"
        begun = time.perf_counter()
        with server(model, "--state", "memory:"):
            built = time.perf_counter() - begun
        begun = time.perf_counter()
        with (
            server(model, "--state", f"sqlite:///{folder / 'states.db'}") as (port, served),
            process(_ECHO) as (echoing, _),
        ):
            ready = time.perf_counter() - begun
            found = asyncio.run(_measured(port, echoing, asked, items, seconds, rounds))
            memory = served.memory_info().rss / 1e6
    figures = {"items": items, "ready_s": ready, "built_s": built, "rss_mb": memory, **found}
    rows = [
        [what, *(f"{one[part]:,.1f}" for part in (*_SHARES, "echo_p50")), str(one["errors"])]
        for what, one in found["asked"].items()
    ]
    over = found["overload"]
    notes = [
        f"{items:,} items of the preset `strong`, untrained; k = 50; medians of {rounds} rounds of {seconds:g} s each.",
        f"At most {over['most']:,.0f}/s are answered. At {TIMES} times that, from {CROWD:,} connections: "
        f"{over['answered']:,.0f}/s answered (p99 {over['p99']:,.0f} ms), {over['shed']:,.0f}/s refused with 503 (p99 "
        f"{over['refused_p99']:,.0f} ms), where the echo answers {over['echo']:,.0f}/s (p99 {over['echo_p99']:,.0f} "
        f"ms): who asks has one core, too. p99 of 50/s before {over['before_p99']:,.0f} ms, right after "
        f"{over['after_p99']:,.0f} ms.",
        f"Ready after {ready:.1f} s with a kept index, {built:.1f} s with one to build; {memory:,.0f} MB of memory at "
        "the end.",
        f"Ten million additions in a loop of Python took {found['additions_s']:.2f} s on this core meanwhile.",
    ]
    columns = ["", *(f"{part} ms" for part in _SHARES), "echo p50 ms", "not 200"]
    record(name, figures, columns, rows, notes)


async def _measured(port: int, echoing: int, asking: Asked, items: int, seconds: float, rounds: int) -> dict[str, Any]:
    ids = list(range(1, items + 1))

    async def ask(port: int, kind: str, rate: float, seed: int, connections: int = 256) -> Latencies:
        asked = Load(rate, seconds, kind, seed=seed, connections=connections)
        return await load(f"http://127.0.0.1:{port}", asked, ids)

    await ask(port, "observe", 50.0, 99)
    asked: dict[str, list[dict[str, float]]] = {}
    additions, over = [], []
    for number in range(rounds):
        additions.append(_additions())
        for kind, rate in asking:
            mine, echo = await ask(port, kind, rate, number), await ask(echoing, kind, rate, number)
            figures = {**mine.as_json()["milliseconds"], "echo_p50": echo.as_json()["milliseconds"]["p50"]}
            asked.setdefault(f"{kind}, {rate:,.0f}/s", []).append({**figures, "errors": mine.errors})
        over.append(await _overloaded(ask, port, echoing, number))
    return {
        "asked": {name: _medians(each) for name, each in asked.items()},
        "overload": _medians(over),
        "additions_s": statistics.median(additions),
    }


async def _overloaded(
    ask: Callable[..., Awaitable[Latencies]], port: int, echoing: int, number: int
) -> dict[str, float]:
    most = await ask(port, "observe", MOST, number)
    rate = len(most.seconds) / most.took
    before = await ask(port, "observe", 50.0, 100 + number)
    # What who asks can do at all, by a server that has nothing to do.
    echo = await ask(echoing, "observe", TIMES * rate, 200 + number, CROWD)
    over = await ask(port, "observe", TIMES * rate, 200 + number, CROWD)
    after = await ask(port, "observe", 50.0, 300 + number)
    return {
        "most": rate,
        "echo": len(echo.seconds) / echo.took,
        "echo_p99": echo.as_json()["milliseconds"]["p99"],
        "answered": len(over.seconds) / over.took,
        "shed": over.statuses[503] / over.took,
        "p99": over.as_json()["milliseconds"]["p99"],
        "refused_p99": 1000 * float(np.percentile(over.refusals, 99)) if len(over.refusals) else 0.0,
        "before_p99": before.as_json()["milliseconds"]["p99"],
        "after_p99": after.as_json()["milliseconds"]["p99"],
    }


def _medians(each: list[dict[str, float]]) -> dict[str, float]:
    found = {name: statistics.median(one[name] for one in each) for name in each[0]}
    return {**found, **({"errors": sum(one["errors"] for one in each)} if "errors" in found else {})}


def _additions() -> float:
    """Seconds that say how fast this machine is just now."""
    begun, total = time.perf_counter(), 0
    for number in range(10_000_000):
        total += number
    return time.perf_counter() - begun
