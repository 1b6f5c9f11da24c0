"""A log replayed into a store, in events a second: all of it anew, then again when everything is there; by store."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.online import ITEMS, write_model
from benchmarks.record import record, scratch
from benchmarks.states import connected, redis_server
from hiertcn.columns import Columns
from hiertcn.events import Events, read_events
from hiertcn.exported import Exported
from hiertcn.exporting import export
from hiertcn.recommender import Recommender
from hiertcn.replay import replay
from hiertcn.served import Served
from hiertcn.states import StateStore, open_states
from hiertcn.tables import Layout

USERS, SESSIONS, LENGTH = 40_000, 5.0, 4.0
ALONE = 3_000
"""Events that are told one by one beside it."""


def simulated(folder: Path, users: int) -> Path:
    """A log of `users`, of some 5 sessions of some 4 events on items drawn by popularity, written as Parquet."""
    random = np.random.default_rng(0)
    sessions = np.repeat(np.arange(users), random.geometric(1 / SESSIONS, users))
    begins = 1_700_000_000 + random.integers(0, 30 * 86_400, len(sessions))
    events = random.geometric(1 / LENGTH, len(sessions))
    places = np.arange(int(events.sum())) - np.repeat(np.cumsum(events) - events, events)
    items = (ITEMS * random.random(len(places)) ** 3).astype(np.int64) + 1
    path = folder / "log.parquet"
    log = {"user": np.repeat(sessions, events), "item": items, "time": np.repeat(begins, events) + 60 * places}
    pl.DataFrame(log).write_parquet(path)
    return path


def read(log: Path) -> Events:
    return read_events(str(log), Columns(), Layout())


def measured(model: Served, store: StateStore, events: Events) -> dict[str, float]:
    """Events a second of a first replay, and of one more."""
    found: dict[str, float] = {}
    for name in ("first", "again"):
        begun = time.perf_counter()
        replay(model, store, events)
        found[name] = events.frame.height / (time.perf_counter() - begun)
    sizes = np.array([len(value) for _, value in store.scan()])
    return found | {"mean_bytes": float(sizes.mean()), "p99_bytes": float(np.percentile(sizes, 99))}


def alone(model: Served, folder: Path, events: Events) -> float:
    """Events a second that are told one by one, each acknowledged."""
    frame = events.frame.sort("time").head(ALONE)
    users, items = events.user_ids.gather(frame["user"]), events.item_ids.gather(frame["item"])
    with Recommender(model, open_states(f"sqlite:///{folder / 'alone.db'}")) as rec:
        begun = time.perf_counter()
        for user, item, at in zip(users, items, (frame["time"] / 1e6).to_list(), strict=True):
            rec.observe(user, item, at, event_id=f"{user} {item} {at}")
        return frame.height / (time.perf_counter() - begun)


def run(users: int = USERS) -> None:
    figures: dict[str, Any] = {}
    with scratch() as folder, redis_server(folder) as redis:
        model = Exported(export(write_model(folder / "run", {})))
        log = simulated(folder, users)
        begun = time.perf_counter()
        events = read(log)
        figures["read"] = {"first": events.frame.height / (time.perf_counter() - begun)}
        for name, url in {"memory": "memory:", "SQLite": f"sqlite:///{folder / 'states.db'}", "Redis": redis}.items():
            with connected(url) as store:
                figures[name] = measured(model, store, events)
        figures["SQLite, one by one"] = {"first": alone(model, folder, events)}
    rows = [
        [
            name,
            *(f"{found[part]:,.0f}" if part in found else "" for part in ("first", "again", "mean_bytes", "p99_bytes")),
        ]
        for name, found in figures.items()
    ]
    record(
        "replay",
        {**figures, "settings": {"users": users, "events": events.frame.height, "items": ITEMS}},
        ["what", "events/s", "again", "bytes a user", "p99"],
        rows,
        [
            f"{events.frame.height:,} events of {users:,} users on {ITEMS:,} items, the preset `strong` exported, one "
            "thread. SQLite and Redis sync each transaction before the next one begins. Again: everything is there "
            "already. One by one: each event is synced alone."
        ],
    )
