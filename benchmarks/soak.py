"""Whether a server stays as it is: memory, open files, the write-ahead log and latencies, by windows of a long load.

Open loop at one rate, with people who are mostly new: states in SQLite, each acknowledgement after a sync. Minutes by
`make bench ARGS=soak`; `python -m benchmarks.soak HOURS RATE` for as long as it takes.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.record import record, scratch
from benchmarks.servers import largest, server, write_models
from hiertcn.loading import Load, load

ITEMS, USERS, HOURS, RATE = 20_000, 5_000_000, 5 / 60, 100.0
WINDOWS = 20
# Of the windows, what fills before all is as it stays: pages of the store, tables of popular items, code.
WARM = 0.25


@dataclass
class Window:
    """Bytes, counts and milliseconds, at the end of a window or, of the log, at most; refused: not answered by 200."""

    hours: float
    rss: int
    fds: int
    threads: int
    wal: int
    p50: float
    p99: float
    refused: int


def run(hours: float = HOURS, rate: float = RATE, items: int = ITEMS, users: int = USERS) -> None:
    command = "make bench ARGS=soak"
    if (hours, rate) != (HOURS, RATE):
        command = f"python -m benchmarks.soak {hours:g} {rate:g}"
    with scratch() as folder:
        model = write_models(folder, items) / "a"
        states = folder / "states.db"
        options = ("--state", f"sqlite:///{states}", "--user-limit", 6_000)
        with server(model, *options) as (port, process):
            windows = asyncio.run(_windows(port, process, states, items, hours, rate, users))
        people, size = _people(states), states.stat().st_size
    figures = {"items": items, "rate": rate, "people": people, "store_bytes": size, **_slopes(windows, rate)}
    rows = [
        [
            f"{60 * one.hours:.1f}",
            f"{one.rss / 1e6:.1f}",
            *(str(number) for number in (one.fds, one.threads)),
            f"{one.wal / 1e6:.1f}",
            *(f"{number:.1f}" for number in (one.p50, one.p99)),
            str(one.refused),
        ]
        for one in windows
    ]
    notes = [
        f"{rate:g} observe/s for {60 * hours:g} minutes, {people:,} people at the end in {size / 1e6:,.0f} MB; "
        f"{items:,} items of the preset `strong`, k = 50; {WINDOWS} windows. From the {int(WARM * WINDOWS) + 1}th on:",
        f"memory {figures['rss_mb_per_hour']:+.1f} MB/h ({figures['rss_percent_per_hour']:+.1f} %/h), "
        f"{figures['rss_mb_per_million_requests']:+.1f} MB for a million requests; open files "
        f"{figures['fds_per_hour']:+.1f}/h; write-ahead log {figures['wal_mb']:.1f} MB at most; p99 of the last third "
        f"/ of the first {figures['p99_drift']:.2f}; {figures['refused']:,} not answered by 200.",
        "Memory that is bounded still grows until its bound: 100,000 users whose writes are counted, 100,000 picks.",
    ]
    columns = ["minutes", "memory MB", "open files", "threads", "log MB", "p50 ms", "p99 ms", "not 200"]
    record("soak", {**figures, "windows": [asdict(one) for one in windows]}, columns, rows, notes, command)


async def _windows(
    port: int, process: psutil.Process, states: Path, items: int, hours: float, rate: float, users: int
) -> list[Window]:
    url, ids, seconds = f"http://127.0.0.1:{port}", list(range(1, items + 1)), 3600 * hours / WINDOWS
    found: list[Window] = []
    begun = time.monotonic()
    log = states.with_name(states.name + "-wal")
    for number in range(WINDOWS):
        with largest(lambda: log.stat().st_size if log.exists() else 0) as wal:
            window = await load(url, Load(rate, seconds, users=users, seed=number), ids)
        milliseconds = window.as_json()["milliseconds"]
        found.append(
            Window(
                (time.monotonic() - begun) / 3600,
                process.memory_info().rss,
                process.num_fds(),
                process.num_threads(),
                wal[0],
                milliseconds["p50"],
                milliseconds["p99"],
                window.errors,
            )
        )
        sys.stderr.write(f"{number + 1} of {WINDOWS}: {found[-1]}\n")
    return found


def _slopes(windows: list[Window], rate: float) -> dict[str, Any]:
    """Of straight lines through what came after the warm-up."""
    warm = windows[int(WARM * len(windows)) :]
    hours = np.array([one.hours for one in warm])
    rss, fds = (np.array([getattr(one, name) for one in warm], dtype=float) for name in ("rss", "fds"))
    each = float(np.polyfit(hours, rss, 1)[0])
    third = max(1, len(warm) // 3)
    p99 = [one.p99 for one in warm]
    return {
        "rss_mb_per_hour": each / 1e6,
        "rss_percent_per_hour": 100 * each / float(np.mean(rss)),
        "rss_mb_per_million_requests": each / (3600 * rate),
        "fds_per_hour": float(np.polyfit(hours, fds, 1)[0]),
        "wal_mb": max(one.wal for one in windows) / 1e6,
        "p99_drift": float(np.median(p99[-third:]) / np.median(p99[:third])),
        "refused": sum(one.refused for one in windows),
    }


def _people(states: Path) -> int:
    connection = sqlite3.connect(states)
    try:
        found: int = connection.execute("SELECT count(*) FROM states WHERE length(key) = 16").fetchone()[0]
        return found
    finally:
        connection.close()


if __name__ == "__main__":
    run(*map(float, sys.argv[1:3]))
