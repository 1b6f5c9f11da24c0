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
from hiertcn.exporting import export
from hiertcn.models import build
from hiertcn.settings import read_settings

# The server on one core, who asks on another.
_CORES = (0, 1)
# Norms of trained vectors are some 1.2; those of the benchmark of indexes some 3.
_SCALE = 0.4


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
    item vectors lie as those of trained ones do, which is what an index is fast or slow by."""
    config, _ = read_settings("strong", None, {}, {})
    listed = {"item_id": np.arange(1, items + 1), "title": [None] * items, "link": [None] * items}
    kinds = {"item_id": pl.Int64, "title": pl.String, "link": pl.String, "train_events": pl.Int64}
    catalog = Catalog(pl.DataFrame({**listed, "train_events": np.arange(items, 0, -1)}, schema=kinds), items)
    facts = {"session_gap": 1800.0, "max_session_events": 200, "validation": {}, "history": []}
    for seed, name in enumerate(names):
        run = folder / f"run-{name}"
        run.mkdir()
        model = build(config, catalog.train_events, seed)
        vectors = vectors_like_learned_ones(folder / "vectors.npy", items, seed)
        with torch.no_grad():
            model.get_parameter("items.weight").copy_(torch.from_numpy(vectors) * _SCALE)
        write_run(run, model, config, catalog, {"cache": {"path": "none", "fingerprint": "none"}, **facts})
        export(Run(run), folder / "models" / name)
    return folder / "models"
