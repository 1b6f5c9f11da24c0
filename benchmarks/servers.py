"""Servers on a core of their own, and untrained models for them, as benchmarks of serving share them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import polars as pl
import psutil
import torch

from benchmarks.index import vectors_like_learned_ones
from hiertcn.artifact import Run, write_run
from hiertcn.catalog import Catalog
from hiertcn.crowd import Crowd
from hiertcn.exporting import export
from hiertcn.models import Model, build
from hiertcn.models.hiertcn import HierTCN
from hiertcn.sessions import PARTS, SECOND, Sessions
from hiertcn.settings import read_settings
from hiertcn.streams import Stream
from hiertcn.wholes import whole_batch

# The server on one core, who asks on another.
_CORES = (0, 1)
# Norms of trained vectors are some 1.2; those of the benchmark of indexes some 3.
_SCALE = 0.4
# When a session is over: after so many seconds, or events.
_RULE = 1800.0, 200
# People and picks that are enough to learn a head of.
_TAUGHT, _NOW = (4_000, 4), 1_700_000_000


@contextmanager
def server(run: Path, *options: Any) -> Iterator[tuple[int, psutil.Process]]:
    """The port of `hiertcn serve`, with no limit for users, and its process."""
    asked = ["serve", run, "--port", 0, "--user-limit", 0, *options]
    with process("from hiertcn.cli import main; main()", *asked) as found:
        yield found


@contextmanager
def process(code: str, *arguments: Any) -> Iterator[tuple[int, psutil.Process]]:
    """A Python process that says `:PORT serves` on stderr; its port."""
    cores = sorted(os.sched_getaffinity(0))
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as started:
        try:
            if len(cores) > 1:
                os.sched_setaffinity(started.pid, {cores[_CORES[0]]})
                os.sched_setaffinity(0, {cores[_CORES[1]]})
            assert started.stderr is not None
            lines = iter(started.stderr.readline, "")
            port = next(int(found[1]) for line in lines if (found := re.search(r":(\d+) serves", line)))
            # Nobody reads what it says later, and a full pipe would halt it.
            Thread(target=deque, args=(lines, 0), daemon=True).start()
            yield port, psutil.Process(started.pid)
        finally:
            os.sched_setaffinity(0, cores)
            started.terminate()


@contextmanager
def largest(measure: Callable[[], int]) -> Iterator[list[int]]:
    """The most that `measure` gave meanwhile, asked 20 times a second."""
    found, over = [0], Event()

    def watch() -> None:
        while not over.wait(0.05):
            found[0] = max(found[0], measure())

    thread = Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def write_models(folder: Path, items: int, names: str = "a") -> Path:
    """`folder`/models: for each letter of `names` a model of the default preset, exported. It is untrained, but its
    item vectors lie as those of trained ones do, and its queries near items, which is what an index is fast or slow,
    and right or wrong by."""
    config, _ = read_settings("strong", None, {}, {})
    listed = {"item_id": np.arange(1, items + 1), "title": [None] * items, "link": [None] * items}
    kinds = {"item_id": pl.Int64, "title": pl.String, "link": pl.String, "train_events": pl.Int64}
    catalog = Catalog(pl.DataFrame({**listed, "train_events": np.arange(items, 0, -1)}, schema=kinds), items)
    facts = {"session_gap": _RULE[0], "max_session_events": _RULE[1], "validation": {}, "history": []}
    for seed, name in enumerate(names):
        run = folder / f"run-{name}"
        run.mkdir()
        model = build(config, catalog.train_events, seed)
        vectors = vectors_like_learned_ones(folder / "vectors.npy", items, seed)
        with torch.no_grad():
            model.get_parameter("items.weight").copy_(torch.from_numpy(vectors) * _SCALE)
        _teach_last_items(model, items, seed)
        write_run(run, model, config, catalog, {"cache": {"path": "none", "fingerprint": "none"}, **facts})
        export(Run(run), folder / "models" / name)
    return folder / "models"


def _teach_last_items(model: Model, items: int, seed: int) -> None:
    """Let queries be as near to the last item's vector as the head can bring them: by least squares, from made-up
    people."""
    assert isinstance(model, HierTCN)
    random, (people, picks) = np.random.default_rng(seed), _TAUGHT
    events, bounds = people * picks, np.arange(0, people * picks + 1, picks)
    times = np.tile(_NOW + 30 * np.arange(picks), people) * SECOND
    parts = np.full(events, PARTS.index("test"), dtype=np.uint8)
    rows = random.integers(1, items + 1, events).astype(np.int32)
    sessions = Sessions(rows, times, parts, bounds, np.arange(people + 1))
    stream = Stream.of(sessions, np.arange(items + 1), "test", *_RULE)
    batch = whole_batch(stream, Crowd(model.horizons, items))
    hidden: list[torch.Tensor] = []
    model.eval()
    taken = model.head.register_forward_pre_hook(lambda _, given: hidden.append(given[0]))
    with torch.no_grad():
        model.encode(batch, model.zero_state(people))
        taken.remove()
        # The first position of a session has no item before it.
        after = torch.arange(events) % picks > 0
        known = torch.cat([hidden[0], hidden[0].new_ones(events, 1)], dim=1)[after]
        asked = model.get_parameter("items.weight")[torch.from_numpy(stream.items)].roll(1, dims=0)[after]
        found = torch.linalg.lstsq(known, asked).solution
        model.head.weight.copy_(found[:-1].T)
        model.head.bias.copy_(found[-1])
