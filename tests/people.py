"""Runs on disk without training, for recommending to people: every kind of model over a catalog of a few items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from hiertcn.answers import Recommendation
from hiertcn.artifact import Run, write_run
from hiertcn.catalog import Catalog
from hiertcn.models import CONFIGS, HierTCNConfig, MemoryModel, Model, ModelConfig, build
from hiertcn.recommender import Recommender

GAP = 1800
START = 1_714_521_600  # 2024-05-01 UTC, seconds

SIZES = {"dim": 8, "units": 6, "channels": (7, 7)}
FULL = HierTCNConfig(**SIZES, gap_decay="fixed", norm=True, clock=True, dropout=0.2)
_SMALL: dict[str, dict[str, Any]] = {
    "hiertcn": {"dim": 8},
    "hrnn": {"dim": 8, "units": 6},
    "gru": {"dim": 8, "units": 6},
    "tcn": {"dim": 8, "channels": (7, 6), "kernel": 2},
    "sasrec": {"dim": 8, "window": 3, "heads": 2},
    "var": {"dim": 8, "window": 3},
    "moving_average": {"dim": 8, "window": 3},
    "most_frequent": {"window": 4},
    "last_items": {"window": 4},
    "popularity": {},
    "trending": {},
    "item_knn": {"window": 3},
    "sequential_rules": {"window": 3},
    "sknn": {"window": 3, "extend": 4},
}
KINDS: dict[str, ModelConfig] = {name: CONFIGS[name](**sizes) for name, sizes in _SMALL.items()} | {
    "full": FULL,
    "learned decay, max": HierTCNConfig(**SIZES, gap_decay="learned", aggregate="max"),
    "repeats": HierTCNConfig(**SIZES, clock=True, repeats=5),
    "hier_gru": HierTCNConfig(**SIZES, low="gru"),
    "hier_mv": HierTCNConfig(**SIZES, low="mean"),
    "moving average by gaps": CONFIGS["moving_average"](dim=8, window=3, decay="gap"),
    "softmax head, four layers": HierTCNConfig(dim=8, units=6, channels=(7, 7, 7, 7), head="softmax"),
}


def filled(model: Model, seed: int = 0) -> Model:
    """The model, with 40 sessions in its memory if it has one."""
    if isinstance(model, MemoryModel):
        random = np.random.default_rng(seed)
        lengths = random.integers(1, 6, 40)
        items = random.integers(1, model.items_in_catalog + 1, int(lengths.sum())).astype(np.int32)
        ends = START + np.sort(random.integers(0, 500_000, 40)).astype(np.float64)
        model.memorise(*map(torch.from_numpy, (items, np.append(0, np.cumsum(lengths)), ends)))
    return model


def catalog_of(ids: Sequence[str | int]) -> Catalog:
    """Items of 3 · (n − k) train events; the first and the fifth have titles."""
    titles = ["Apple", None, None, None, "Elder", *[None] * len(ids)][: len(ids)]
    return Catalog(
        pl.DataFrame(
            {
                "item_id": pl.Series(list(ids)),
                "title": pl.Series(titles, dtype=pl.String),
                "link": pl.Series([None] * len(ids), dtype=pl.String),
                "train_events": [3 * (len(ids) - k) for k in range(len(ids))],
            }
        ),
        len(ids),
    )


COLOURS, YEARS = ["red", "red", "blue", None, "1=1; DROP"], [2020, 2021, 2021, 2021, None]


def shop() -> Catalog:
    """Five items, a to e, that can be filtered by colour and year."""
    kept = {"colour": pl.Series(COLOURS, dtype=pl.String), "year": pl.Series(YEARS, dtype=pl.Int64)}
    plain = catalog_of("abcde")
    return Catalog(plain.items.with_columns(**kept), plain.size)


def run_of(
    path: Path, config: ModelConfig, catalog: Catalog, gap: float = GAP, seed: int = 0, longest: int = 1000
) -> Run:
    """An untrained model of `config`, written as a run."""
    path.mkdir()
    model = filled(build(config, catalog.train_events, seed))
    origin = {"path": str(path), "fingerprint": "none"}
    rule = {"session_gap": float(gap), "max_session_events": longest}
    facts = {"cache": origin, **rule, "validation": {}, "history": []}
    write_run(path, model, config, catalog, facts)
    return Run(path)


def five_items(path: Path) -> Recommender:
    return Recommender.load(run_of(path, FULL, catalog_of("abcde")))


def assert_alike(found: Sequence[Recommendation], expected: Sequence[Recommendation]) -> None:
    """The same items with the same scores to 1e-5; the order of what nearly ties is free."""
    ours, theirs = ({r.item: r for r in one} for one in (found, expected))
    assert ours.keys() == theirs.keys()
    for item, one in ours.items():
        assert (one.title, one.source) == (theirs[item].title, theirs[item].source)
        np.testing.assert_allclose(one.score, theirs[item].score, atol=1e-5)
