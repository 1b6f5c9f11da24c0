"""Queries/s and recall of every index in this process, on one thread, in turns; building, loading, memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from benchmarks.record import record, scratch
from hiertcn.retrieval import open_index

SIZES, DIM, BEST, QUERIES, ROUNDS = (200_000, 1_000_000), 128, 50, 500, 5
KINDS = ("exact", "int8", "faiss:hnsw", "faiss:ivf", "faiss:ivfpq")
# Each in a process of its own, so that its memory is told: opened by the kept file, with what else the process needs.
_CHILD = """
import json, sys, time
from pathlib import Path
import psutil
from numpy.lib.format import open_memmap
from hiertcn.retrieval import open_index
vectors, queries = (open_memmap(Path(sys.argv[1]) / name, mode="r") for name in ("vectors.npy", "queries.npy"))
begun = time.perf_counter()
index = open_index(sys.argv[2], vectors, cache=Path(sys.argv[1]) / "cache")
seconds = time.perf_counter() - begun
index.search(queries[:50], 50)
own = psutil.Process().memory_full_info().uss
print(json.dumps({"open_seconds": seconds, "own_memory": own}))
"""


def vectors_like_learned_ones(path: Path, items: int, seed: int = 0) -> Any:
    """float32 [items + 1, DIM], by memory map: clusters of unequal sizes, few directions that matter most, norms
    that differ by item (log-normal, 0.4), as they do where a loss compares items with popular ones."""
    rng = np.random.default_rng(seed)
    scales = np.arange(1, DIM + 1, dtype=np.float32) ** -0.5
    centres = rng.standard_normal((items // 500, DIM), dtype=np.float32)
    sizes = 1 / np.arange(1, len(centres) + 1)
    table = open_memmap(path, mode="w+", dtype=np.float32, shape=(items + 1, DIM))
    for begin in range(1, items + 1, 1 << 16):
        block = table[begin : begin + (1 << 16)]
        noise = rng.standard_normal(block.shape, dtype=np.float32)
        found = (centres[rng.choice(len(centres), len(block), p=sizes / sizes.sum())] + noise) * scales
        norms = 3 * rng.lognormal(0, 0.4, (len(block), 1)) / np.linalg.norm(found, axis=1, keepdims=True)
        block[:] = found * norms
    return table


def queries_near(vectors: Any, count: int, seed: int = 1) -> Any:
    """float32 [count, DIM]: directions of items, turned by noise."""
    rng = np.random.default_rng(seed)
    near = vectors[np.sort(rng.integers(1, len(vectors), count))]
    noise = rng.standard_normal(near.shape, dtype=np.float32) * np.arange(1, DIM + 1, dtype=np.float32) ** -0.5
    return sum(part / np.linalg.norm(part, axis=1, keepdims=True) * size for part, size in ((near, 3), (noise, 2)))


def _measure(items: int, folder: Path) -> dict[str, dict[str, float]]:
    vectors = vectors_like_learned_ones(folder / "vectors.npy", items)
    queries = queries_near(vectors, QUERIES)
    np.save(folder / "queries.npy", queries)
    found: dict[str, dict[str, float]] = {}
    indexes = {}
    for kind in KINDS:
        begun = time.perf_counter()
        indexes[kind] = open_index(kind, vectors, cache=folder / "cache")
        found[kind] = {"build_seconds": time.perf_counter() - begun}
    best = indexes["exact"].search(queries, BEST)[0]
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    alone: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for at in range(ROUNDS):
        part = queries[at * (QUERIES // ROUNDS) : (at + 1) * (QUERIES // ROUNDS)]
        for kind, index in indexes.items():
            begun = time.perf_counter()
            for batch in np.array_split(part, max(1, len(part) // 32)):
                index.search(batch, BEST)
            seconds[kind].append((time.perf_counter() - begun) / len(part))
            begun = time.perf_counter()
            for query in part[:20]:
                index.search(query[None], BEST)
            alone[kind].append((time.perf_counter() - begun) / 20)
    for kind, index in indexes.items():
        rows = index.search(queries, BEST)[0]
        shares = [len(set(a) & set(b)) / BEST for a, b in zip(rows.tolist(), best.tolist(), strict=True)]
        found[kind] |= {
            "recall": float(np.mean(shares)),
            "queries_per_second": float(1 / np.median(seconds[kind])),
            "queries_per_second_alone": float(1 / np.median(alone[kind])),
            "ratio_to_exact": float(np.median(np.divide(seconds["exact"], seconds[kind]))),
            "ratio_to_exact_alone": float(np.median(np.divide(alone["exact"], alone[kind]))),
        }
        index.close()
    indexes.clear()
    for kind in KINDS:
        child = [sys.executable, "-c", _CHILD, str(folder), kind]
        found[kind] |= json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
    return found


def run(sizes: tuple[int, ...] = SIZES) -> None:
    """Benchmark `index`."""
    if os.environ.get("OMP_NUM_THREADS") != "1":
        # The threads of NumPy's products are settled when it is loaded.
        code = "from benchmarks.index import run; run()"
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return
    figures: dict[str, Any] = {}
    rows = []
    for items in sizes:
        with scratch() as folder:
            figures[str(items)] = _measure(items, folder)
        for kind, found in figures[str(items)].items():
            rates = [
                f"{found['queries_per_second' + how]:,.0f} ({found['ratio_to_exact' + how]:.1f}×)"
                for how in ("", "_alone")
            ]
            rows.append(
                [
                    f"{items:,}",
                    kind,
                    f"{found['recall']:.4f}",
                    *rates,
                    *(f"{found[name]:.1f}" for name in ("build_seconds", "open_seconds")),
                    f"{found['own_memory'] / 1e6:,.0f} MB",
                ]
            )
    columns = ["items", "index", f"recall@{BEST}", "queries/s, 32 at a time", "one at a time", "build, s"]
    record(
        "index",
        figures,
        [*columns, "open the kept file, s", "own memory"],
        rows,
        [
            f"Vectors of {DIM} numbers with clusters, unequal directions and unequal norms; one thread each; in "
            f"parentheses the median over {ROUNDS} rounds of the ratio to exact search, all in turns. Own memory "
            "is that of a process that opened the index from its kept file; the vectors themselves are a mapped file."
        ],
    )
