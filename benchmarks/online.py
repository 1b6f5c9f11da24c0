"""One step of people online: torch, and the exported model, on one thread, of 1, 16 and 64 people at once.

Each has a state and a running session of some events, and is asked for one more: from a stream to queries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch

from hiertcn.artifact import Run, write_run
from hiertcn.catalog import Catalog
from hiertcn.crowd import Crowd
from hiertcn.exported import Exported
from hiertcn.exporting import export
from hiertcn.models import Model, build
from hiertcn.models.hiertcn import HierTCN
from hiertcn.sessions import PARTS, SECOND, Sessions
from hiertcn.settings import read_settings
from hiertcn.streams import Stream
from hiertcn.wholes import whole_batch

ITEMS, EVENTS, GAP = 20_000, 8, 1800.0
USERS, REPEATS = (1, 16, 64), 300


def run(repeats: int = REPEATS) -> dict[str, Any]:
    """Microseconds a person, medians of `repeats` steps; torch and exported in turn."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with TemporaryDirectory() as folder:
            return _measured(Path(folder) / "run", repeats)
    finally:
        torch.set_num_threads(before)


def _measured(folder: Path, repeats: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for name, changes in {"strong": {}, "without boosts": {"trends": [], "follows": [], "repeats": 0}}.items():
        opened = write_model(folder / name.replace(" ", "-"), changes)
        model, exported = opened.model, Exported(export(opened))
        rows = random.integers(1, ITEMS + 1, (2, 20_000))
        times = 1.7e9 + random.uniform(-9e4, 0, 20_000)
        crowd = Crowd.of(model.horizons, ITEMS, *rows, times) if any(model.horizons) else None
        for users in USERS:
            found[f"{name}, {users} users"] = _compared(model, exported, crowd, _stream(random, users), repeats)
    return found


def _compared(model: Model, exported: Exported, crowd: Crowd | None, stream: Stream, repeats: int) -> dict[str, float]:
    users = len(stream.user_offsets) - 1
    state = exported.zero_state(users)
    initial = torch.from_numpy(state)

    def by_torch() -> None:
        with torch.inference_mode():
            model(whole_batch(stream, crowd), initial)

    def heard() -> None:
        if crowd is not None:
            crowd.at(stream.seen[stream.positions], stream.items[stream.positions - 1])

    steps = [lambda: exported.encode(stream, state, crowd), by_torch, heard]
    ours, theirs, asked = (figure / users for figure in _medians(steps, repeats))
    return {
        "torch_us": round(theirs, 1),
        "exported_us": round(ours, 1),
        "of_which_crowd_us": round(asked, 1),
        "ratio": round(theirs / ours, 2),
    }


def _medians(steps: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Microseconds of each, taken in turn, so that what else the machine does falls on all."""
    spent = np.zeros((repeats + 10, len(steps)))
    for repeat in range(len(spent)):
        for number, step in enumerate(steps):
            begin = time.perf_counter()
            step()
            spent[repeat, number] = time.perf_counter() - begin
    medians: list[float] = (np.median(spent[10:], axis=0) * 1e6).tolist()
    return medians


def write_model(folder: Path, changes: dict[str, Any]) -> Run:
    """The preset `strong`, but for `changes`, untrained, over ITEMS items."""
    config, _ = read_settings("strong", None, changes, {})
    folder.mkdir(parents=True)
    items = pl.DataFrame(
        {
            "item_id": np.arange(1, ITEMS + 1),
            "title": pl.Series([None] * ITEMS, dtype=pl.String),
            "link": pl.Series([None] * ITEMS, dtype=pl.String),
            "train_events": np.arange(ITEMS, 0, -1),
        }
    )
    catalog = Catalog(items, ITEMS)
    model = build(config, catalog.train_events, 0)
    assert isinstance(model, HierTCN)
    rule = {"session_gap": GAP, "max_session_events": 200, "validation": {}, "history": []}
    write_run(folder, model, config, catalog, {"cache": {"path": "none", "fingerprint": "none"}, **rule})
    return Run(folder)


def _stream(random: np.random.Generator, users: int) -> Stream:
    """People in the middle of a session of EVENTS events, each asked for the next one."""
    offsets = np.arange(users + 1) * (EVENTS + 1)
    items = random.integers(1, ITEMS + 1, users * (EVENTS + 1)).astype(np.int32)
    parts = np.zeros(len(items), dtype=np.uint8)
    items[offsets[1:] - 1], parts[offsets[1:] - 1] = 0, PARTS.index("test")
    times = (1_700_000_000 + 60 * np.tile(np.arange(EVENTS + 1), users)) * SECOND
    whole = Sessions(items, times, parts, offsets, np.arange(users + 1))
    return Stream.of(whole, np.arange(ITEMS + 1), "test", GAP, 200)
