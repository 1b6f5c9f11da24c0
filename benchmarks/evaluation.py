"""Ranked events/s of exact evaluation at 5,000 items, and that the block bounds its memory."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.record import real_log, record, scratch
from hiertcn.models import HierTCNConfig, build
from hiertcn.preparation import prepare
from hiertcn.ranking import BLOCK_SCORES, rank, ranking_batches
from hiertcn.streams import known_rows

BLOCKS = (BLOCK_SCORES, BLOCK_SCORES // 8)
PASSES = 3


def run() -> None:
    with scratch() as folder:
        # Items of any number of events, most of the log as test: about 5,000 candidates, 300,000 targets.
        cache = prepare(real_log(), folder / "cache", split="users", fractions=(0.1, 0.0, 0.9), catalog=_items(folder))
        items = cache.manifest.items
        model = build(HierTCNConfig(), cache.catalog.train_events, 0)
        rates: dict[int, list[float]] = {block: [] for block in BLOCKS}
        ranks = {}
        for _ in range(PASSES):
            for block in BLOCKS:
                batches = ranking_batches(cache, "test", known_rows(cache.catalog))
                begun = time.perf_counter()
                found = rank(model, batches, batches.rows, block=block)
                rates[block].append(len(found.ranks) / (time.perf_counter() - begun))
                ranks[block] = found.ranks
        assert all(np.array_equal(values, ranks[BLOCK_SCORES], equal_nan=True) for values in ranks.values())
    middle = {block: sorted(values)[PASSES // 2] for block, values in rates.items()}
    record(
        "evaluation",
        {
            "ranked_events_per_second": {str(block): value for block, value in middle.items()},
            "of_each_pass": {str(block): values for block, values in rates.items()},
            "items": items,
            "targets": len(found.ranks),
            "threads": torch.get_num_threads(),
        },
        ["largest block of scores", "its size", "ranked events/s (median pass)"],
        [[f"{block:,}", f"{block * 4 / 1e6:,.0f} MB", f"{value:,.0f}"] for block, value in middle.items()],
        [
            f"{len(found.ranks):,} targets of a real log, each ranked exactly among {items:,} items by HierTCN, 128-d, "
            "the encoding of every earlier event included. Both blocks give the same ranks."
        ],
    )


def _items(folder: Path) -> Path:
    """A catalog file with every item of the log, so that all of them are candidates."""
    path = folder / "items.parquet"
    pl.read_parquet(real_log()).select(pl.col("item_id").unique()).write_parquet(path)
    return path
