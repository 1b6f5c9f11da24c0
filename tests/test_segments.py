"""Segments of targets against a plain loop over the events of each user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from caches import User, cache_of
from hiertcn.evaluation import evaluate_model, simple_model
from hiertcn.metrics import measure
from logs import BEGIN

GAP, ITEMS, HOUR = 1800, 12, 3600


def bucket(value: float, edges: Sequence[float], names: Sequence[str]) -> str:
    return names[sum(value >= edge for edge in edges)]


def segments_by_hand(users: Sequence[User], part: str) -> dict[str, list[str]]:
    """For each way, the segment of each target, one event after another."""
    out: dict[str, list[str]] = {}
    every = [event for _, *columns in users for event in zip(*columns, strict=True)]
    trained = Counter(item for item, _, where in every if where == "train" and item <= ITEMS)
    first = {item: min(time for other, time, _ in every if other == item) for item, _, _ in every}
    for _, items, times, parts in users:
        sessions, step, gap = 0, 0, -1.0
        for k, (item, time) in enumerate(zip(items, times, strict=True)):
            if k == 0 or time - times[k - 1] >= GAP:
                gap = time - times[k - 1] if k else -1.0
                sessions, step = sessions + 1, 0
            step += 1
            if parts[k] != part:
                continue
            found = {
                "event of the session": bucket(step, [2, 3, 6, 11], ["first", "2nd", "3–5", "6–10", "11+"]),
                "earlier sessions": bucket(sessions - 1, [1, 5, 20], ["0", "1–4", "5–19", "20+"]),
                "item": "seen before" if item in items[:k] else "new to the user",
                "train events of the item": bucket(trained[item], [1, 5, 50], ["none", "1–4", "5–49", "50+"]),
                "age of the item": bucket(
                    time - first[item],
                    [HOUR, 6 * HOUR, 24 * HOUR, 168 * HOUR],
                    ["< 1 h", "1–6 h", "6–24 h", "1–7 d", "≥ 7 d"],
                ),
                "gap before the session": bucket(
                    gap,
                    [0, 6 * HOUR, 24 * HOUR, 168 * HOUR],
                    ["no earlier session", "< 6 h", "6–24 h", "1–7 d", "≥ 7 d"],
                ),
            }
            for way, name in found.items():
                out.setdefault(way, []).append(name)
    return out


def test_segments_divide_the_targets_as_counted_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    waits = [0, 1, 5, 5, GAP - 1, GAP, 6 * HOUR - 1, 6 * HOUR, 24 * HOUR - 1, 24 * HOUR, 168 * HOUR - 1, 168 * HOUR]
    users: list[User] = []
    for user in range(25):
        count = int(rng.integers(1, 120))
        chance = np.where(np.array(waits) < GAP, 0.75 / 5, 0.25 / 7)
        times = BEGIN + np.cumsum(rng.choice(waits, count, p=chance))
        parts = rng.choice(["train", "test"], count)
        users.append((f"u{user:02}", rng.integers(1, ITEMS + 4, count).tolist(), times.tolist(), parts.tolist()))
    cache = cache_of(tmp_path / "cache", users, GAP, catalog_size=ITEMS, shards=2)
    found = evaluate_model(simple_model("last_items", cache.catalog), cache.catalog, cache, "test")
    expected = segments_by_hand(users, "test")
    assert list(found.segments) == list(expected)
    for way, names in expected.items():
        assert found.targets.segments()[way].tolist() == names
        assert set(found.segments[way]) == {n for n, ranked in zip(names, found.ranked, strict=True) if ranked}
        assert sum(table.targets for table in found.segments[way].values()) == found.ranked.sum()
        for name, table in found.segments[way].items():
            chosen = found.ranked & (np.array(names) == name)
            assert table == measure(found.ranks.ranks[chosen], found.targets.user[chosen], ITEMS, resamples=200)
    assert len(found.segments["gap before the session"]) == len(found.segments["event of the session"]) == 5
    assert len(found.segments["earlier sessions"]) == 4
