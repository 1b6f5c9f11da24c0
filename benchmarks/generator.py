"""Events/s of the mini-batch generator alone: from the memory-mapped cache to batches ready for a model."""

from __future__ import annotations

import time

from benchmarks.record import real_log, record, scratch
from hiertcn.batching import SessionBatches
from hiertcn.preparation import prepare
from hiertcn.streams import known_rows

SETTINGS = ((32, 10), (128, 10), (256, 10))
PASSES = 5


def run() -> None:
    with scratch() as folder:
        cache = prepare(real_log(), folder / "cache", min_item_events=5)
        rates: dict[str, list[float]] = {}
        for rows, sessions in SETTINGS:
            batches = SessionBatches(
                cache,
                "train",
                item_rows=known_rows(cache.catalog),
                rows=rows,
                sessions=sessions,
                chunk=20,
                shuffle=True,
            )
            for _ in range(PASSES):
                begun = time.perf_counter()
                seen = sum(len(batch.targets) for batch in batches)
                rates.setdefault(f"{rows} rows × {sessions} chunks", []).append(seen / (time.perf_counter() - begun))
            assert seen == cache.manifest.parts["train"]["events"]
    best = {name: sorted(values)[len(values) // 2] for name, values in rates.items()}
    record(
        "generator",
        {"events_per_second": best, "of_each_pass": rates, "events": seen},
        ["batch", "events/s (median pass)"],
        [[name, f"{value:,.0f}"] for name, value in best.items()],
        [
            f"{PASSES} passes over {seen:,} training events of a real log, each seen exactly once a pass; one thread "
            "prepares batches ahead."
        ],
    )
