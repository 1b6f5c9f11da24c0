"""Small logs made for tests."""

from __future__ import annotations

import numpy as np
import polars as pl

BEGIN = 1_700_000_000


def make_log(users: int = 20, items: int = 12, events: int = 400, seed: int = 0) -> pl.DataFrame:
    """A log with columns user_id, item_id, ts (seconds), in which no (user, item, time) comes twice."""
    rng = np.random.default_rng(seed)
    user = rng.permutation(np.arange(events) % users)
    return pl.DataFrame(
        {
            "user_id": [f"u{number:03d}" for number in user],
            "item_id": [f"i{number:03d}" for number in rng.integers(0, items, events)],
            "ts": BEGIN + np.arange(events) * 700 + rng.integers(0, 600, events),
        }
    )
