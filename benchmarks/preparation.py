"""Events/s of `prepare` from Parquet to the cache on disk, and its peak memory, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.record import real_log, record, scratch

COPIES = (6, 24)
PASSES = 3
_CHILD = """
import json, sys, time
from hiertcn.preparation import prepare

# Not ru_maxrss: a process inherits that of the one that started it.
def peak_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak_kb()
begun = time.perf_counter()
cache = prepare(sys.argv[1], sys.argv[2], min_item_events=5)
seconds = time.perf_counter() - begun
print(json.dumps({"seconds": seconds, "peak_kb": peak_kb(), "import_kb": before, "bytes": cache.bytes}))
"""


def _copies(log: Path, out: Path, copies: int) -> int:
    """A log of `copies` times the users and items of `log`, each copy's users moved in time as a whole."""
    events = pl.read_parquet(log, columns=["user_id", "item_id", "ts"]).with_columns(pl.all().cast(pl.Int64))
    user, item = (events[name].rank("dense").cast(pl.Int64) - 1 for name in ("user_id", "item_id"))
    rng = np.random.default_rng(0)
    parts = []
    for copy in range(copies):
        moved = rng.integers(-3 * 86400, 3 * 86400, user.n_unique())[user.to_numpy()]
        parts.append(
            pl.DataFrame(
                {
                    "user_id": user + copy * user.n_unique(),
                    "item_id": item + copy * item.n_unique(),
                    "ts": events["ts"] + moved,
                }
            )
        )
    whole = pl.concat(parts).sample(fraction=1.0, shuffle=True, seed=0)
    whole.write_parquet(out)
    return whole.height


def run() -> None:
    figures, rows = {}, []
    with scratch() as folder:
        for copies in COPIES:
            log = folder / f"log{copies}.parquet"
            events = _copies(real_log(), log, copies)
            passes = []
            for number in range(PASSES):
                out = folder / f"cache{copies}-{number}"
                ran = subprocess.run(
                    [sys.executable, "-c", _CHILD, str(log), str(out)], capture_output=True, text=True, check=True
                )
                passes.append(json.loads(ran.stdout))
            rates = sorted(events / one["seconds"] for one in passes)
            peak = max(one["peak_kb"] - one["import_kb"] for one in passes) * 1024
            figures[str(events)] = {
                "events_per_second": rates[PASSES // 2],
                "of_each_pass": rates,
                "peak_bytes_per_event": peak / events,
                "cache_bytes_per_event": passes[0]["bytes"] / events,
            }
            rows.append(
                [
                    f"{events:,}",
                    f"{rates[PASSES // 2]:,.0f}",
                    f"{peak / 1e6:,.0f} MB ({peak / events:.0f} bytes an event)",
                    f"{passes[0]['bytes'] / events:.1f} bytes an event",
                ]
            )
    record(
        "preparation",
        figures,
        ["events of the log", "events/s (median pass)", "peak memory above the imports", "cache on disk"],
        rows,
        ["Copies of a real log with users and items of their own, rows in random order; Parquet to cache, filters on."],
    )
