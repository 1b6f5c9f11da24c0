"""Memory of preparing and training with 10 M items that come with 128-d vectors: how much of the table is in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.lib.format import open_memmap

from benchmarks.record import record, scratch

ITEMS, DIM = 10_000_000, 128
_BLOCK = 1 << 18
# RssAnon is memory of the process itself; RssFile are pages of mapped files, which the system takes back when it likes.
_CHILD = """
import json, sys, threading, time
from pathlib import Path

peaks, over = {}, threading.Event()

def watch():
    while not over.is_set():
        for line in open("/proc/self/status"):
            name, _, value = line.partition(":")
            if name in ("RssAnon", "RssFile"):
                peaks[name] = max(peaks.get(name, 0), int(value.split()[0]) * 1024)
        time.sleep(0.02)

folder = Path(sys.argv[2])
if sys.argv[1] == "prepare":
    from hiertcn.preparation import prepare
    job = lambda: prepare(folder / "log.parquet", folder / "cache", catalog=folder / "items.parquet",
                          vectors=folder / "vectors.npy")
else:
    from itertools import islice
    from benchmarks.vector_speed import ROWS, Trainer
    from hiertcn.batching import SessionBatches
    from hiertcn.cache import Cache
    from hiertcn.models import build
    from hiertcn.settings import read_settings
    from hiertcn.streams import known_rows

    def job():
        cache, (model, loss) = Cache(folder / "cache"), read_settings("pinterest")
        events = cache.catalog.train_events
        trainer = Trainer(build(model, events, 0, cache.vectors), loss, events)
        batches = SessionBatches(cache, "train", item_rows=known_rows(cache.catalog), rows=ROWS, sessions=10, chunk=20,
                                 shuffle=True)
        for number, batch in enumerate(islice(batches, 40)):
            trainer.step(batch, number)
threading.Thread(target=watch, daemon=True).start()
begun = time.perf_counter()
job()
seconds = time.perf_counter() - begun
over.set()
print(json.dumps({"seconds": seconds, **peaks}))
"""


def _inputs(folder: Path) -> None:
    """A log of 200,000 events on the items, their ids, and their vectors."""
    rng = np.random.default_rng(0)
    events = 200_000
    pl.DataFrame(
        {
            "user": rng.integers(0, 4000, events),
            "item": rng.integers(0, ITEMS, events),
            "ts": 1_700_000_000 + rng.integers(0, 30 * 86400, events),
        }
    ).write_parquet(folder / "log.parquet")
    pl.DataFrame({"item_id": np.arange(ITEMS)}).write_parquet(folder / "items.parquet")
    table = open_memmap(folder / "vectors.npy", mode="w+", dtype=np.float16, shape=(ITEMS, DIM))
    for begin in range(0, ITEMS, _BLOCK):
        block = table[begin : begin + _BLOCK]
        block[:] = rng.standard_normal(block.shape, dtype=np.float32)


def run() -> None:
    """Benchmark `vector_memory`."""
    figures: dict[str, Any] = {"table_bytes": ITEMS * DIM * 2}
    rows = []
    with scratch() as folder:
        _inputs(folder)
        for what in ("prepare", "train"):
            ran = subprocess.run(
                [sys.executable, "-c", _CHILD, what, str(folder)], capture_output=True, text=True, check=True
            )
            found = figures[what] = json.loads(ran.stdout.splitlines()[-1])
            rows.append(
                [what, *(f"{found[name] / 1e6:,.0f} MB" for name in ("RssAnon", "RssFile")), f"{found['seconds']:.0f}"]
            )
    notes = [
        f"{ITEMS:,} items with {DIM}-d vectors of 16 bits, {figures['table_bytes'] / 1e9:.2f} GB on disk; a log of "
        "200,000 events, none of it on the same items twice but by chance. Own memory holds ids, counts and weights; "
        "mapped files are pages that the system may take back. `train` is 40 steps of preset `pinterest`."
    ]
    record("vector_memory", figures, ["what", "own memory at most", "of mapped files at most", "seconds"], rows, notes)
