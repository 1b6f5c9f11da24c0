"""Each idea of the preset `strong`, taken out or exchanged: its effect on the validation part of a real log.

All are trained alike, for fewer passes than the preset has; differences to `strong` are paired, with intervals by
bootstrap over users. The test part is not looked at.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import real_log, record, scratch
from hiertcn.cache import Cache
from hiertcn.embedding import cooccurrence, svd_vectors, write_items
from hiertcn.evaluation import Evaluation, evaluate
from hiertcn.metrics import difference
from hiertcn.preparation import prepare
from hiertcn.progress import Progress
from hiertcn.settings import read_settings
from hiertcn.training import train

PASSES = 4
PREPARED: dict[str, Any] = {"session_gap": 1800, "min_item_events": 5, "split": "last"}
# What is changed, in the [model] and the [train] table.
IDEAS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "strong": ({}, {}),
    "no trends": ({"trends": ()}, {}),
    "no follows": ({"follows": ()}, {}),
    "no repeats": ({"repeats": 0}, {}),
    "no boosts at all": ({"trends": (), "follows": (), "repeats": 0}, {}),
    "one trend, 6 minutes": ({"trends": (0.1,)}, {}),
    "no clock": ({"clock": False}, {}),
    "no normalisation": ({"norm": False}, {}),
    "no dropout": ({"dropout": 0.0}, {}),
    "weights not averaged": ({}, {"averaging": 0.0}),
    "constant rate": ({}, {"decay_epochs": 0}),
    "192 wide, three blocks": ({"dim": 192, "units": 192, "channels": (192, 192, 192), "kernel": 3}, {}),
    "output vectors of its own": ({"head": "softmax"}, {}),
    "sampled softmax": ({}, {"loss": "sampled_softmax"}),
    "AGG by maximum": ({"aggregate": "max"}, {}),
    "learned decay of the state": ({"gap_decay": "learned"}, {}),
    "a GRU within the session": ({"low": "gru"}, {}),
    "gradient through 20 sessions": ({}, {"sessions": 20, "rows": 16}),
    "co-visitation vectors beside learned ones": ({"vectors": "both"}, {}),
}
METRICS = ("recall@10", "mrr")


def run() -> None:
    found: dict[str, Evaluation] = {}
    seconds: dict[str, float] = {}
    with scratch() as folder:
        plain = prepare(real_log(), folder / "cache", **PREPARED)
        for name, (model, settings) in IDEAS.items():
            sys.stderr.write(f"{name}\n")
            cache = _with_vectors(plain, folder) if "vectors" in model else plain
            begun = time.perf_counter()
            configs = read_settings("strong", model=model, train={"epochs": PASSES, **settings})
            run = train(cache, *configs, folder / name, progress=Progress())
            seconds[name] = time.perf_counter() - begun
            found[name] = evaluate(run, cache, "valid")
    base = found["strong"]
    tables = {name: _difference(one, base) for name, one in found.items() if name != "strong"}
    rows = [
        [
            name,
            *(f"{one.table.event[metric]:.4f}" for metric in METRICS),
            *(_signed(tables[name][metric]) if name in tables else "" for metric in METRICS),
            f"{seconds[name]:.0f}",
        ]
        for name, one in found.items()
    ]
    figures = {
        "passes": PASSES,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "validation": {name: {metric: one.table.event[metric] for metric in METRICS} for name, one in found.items()},
        "minus_strong": tables,
    }
    notes = [
        f"EB-NeRD demo, split `last`, gap 1800 s, items with at least 5 events: {base.table.targets:,} validation "
        f"targets of {base.table.users:,} users ranked among {plain.manifest.items:,} items. {PASSES} passes, one "
        "seed, the rate falling over them; all else as in the preset. Differences are to `strong`, per event, with 95% "
        "intervals by bootstrap over users; they say nothing of how much another seed would change."
    ]
    columns = ["idea", *METRICS, *(f"{metric} − strong" for metric in METRICS), "seconds"]
    record("ablation", figures, columns, rows, notes)


def _with_vectors(cache: Cache, folder: Path) -> Cache:
    vectors = svd_vectors(cooccurrence(cache, 5), 64, 0)
    # An item that was never near another would leave the catalog, and the targets would not be the same.
    alone = 1 + np.flatnonzero(~vectors[1:].any(axis=1))
    vectors[alone] = np.random.default_rng(0).normal(0, 0.1, (len(alone), 64))
    write_items(folder / "items.parquet", cache.catalog, vectors, cache.manifest.split)
    return prepare(real_log(), folder / "cache-vectors", **PREPARED, catalog=folder / "items.parquet")


def _difference(one: Evaluation, base: Evaluation) -> dict[str, dict[str, Any]]:
    kept = base.ranked
    table = difference(one.ranks.ranks[kept], base.ranks.ranks[kept], base.targets.user[kept], base.catalog.size)
    return {name: {"mean": table.event[name], "interval": table.event_interval[name]} for name in METRICS}


def _signed(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['mean']:+.4f} ({low:+.4f}…{high:+.4f})"
