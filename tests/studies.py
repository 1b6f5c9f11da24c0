"""A small log, a model of one's own with a space, and what studies of it left, but for what the clock says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, ClassVar

import polars as pl
import torch

from hiertcn.cache import Cache
from hiertcn.children import Workshop
from hiertcn.preparation import prepare
from hiertcn.synth import SimulationConfig, simulate

SIMULATION = SimulationConfig(users=60, tastes=3, ring=5, sessions=6, session_length=3, seed=1)
CONFIG = """
[model]
name = "hiertcn"
dim = 6
units = 5
channels = [7, 7]
kernel = 3

[train]
epochs = 3
rows = 4
sessions = 4
chunk = 3
learning_rate = 0.01
checkpoint_steps = 4
device = "cpu"
"""
SPACE = """
[model]
dropout = { low = 0.0, high = 0.5 }

[train]
learning_rate = { low = 0.001, high = 0.1, log = true }
rows = [4, 8]
"""


class KeptWorkshop(Workshop):
    """Its process stays for the next one: to begin it takes longer than what most tests ask of it."""

    _kept: ClassVar[tuple[Any, Any]] = (None, SimpleQueue())

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        if self._forks:
            self._process, self._lines = KeptWorkshop._kept

    def __exit__(self, *raised: Any) -> None:
        kept = self._forks and raised[0] is None
        if not kept:
            super().__exit__(*raised)
        if self._forks:
            KeptWorkshop._kept = self._process, self._lines

    @classmethod
    def leave(cls) -> None:
        """End the process that was kept."""
        with Workshop(print, Event()) as last:
            last._process, last._lines = cls._kept


def small_log(test_items_permuted: bool = False) -> pl.DataFrame:
    """The last tenth of each user's events, which the split by `last` tests on, may have their items permuted."""
    log = simulate(SIMULATION)
    place = pl.int_range(pl.len()).over("user_id") + 1
    tested = log.select(place > pl.len().over("user_id") * 0.95).to_series() & (len(log) > 0)
    if not test_items_permuted:
        return log
    items = log["item_id"].to_list()
    held = [number for number, one in enumerate(tested) if one]
    for number, other in zip(held, held[1:] + held[:1], strict=True):
        items[number] = log["item_id"][other]
    return log.with_columns(item_id=pl.Series(items))


def small_cache(path: Path, test_items_permuted: bool = False) -> Cache:
    """The log above, prepared."""
    return prepare(small_log(test_items_permuted), path, events_per_shard=400)


def write_own(folder: Path, name: str = "own", config: str = CONFIG, space: str | None = SPACE) -> Path:
    """A TOML file, and its space beside it."""
    (folder / f"{name}.toml").write_text(config)
    if space is not None:
        (folder / f"{name}.space.toml").write_text(space)
    return folder / f"{name}.toml"


def results_of(study: Path) -> list[dict[str, Any]]:
    """The trials of a study, but for time and memory."""
    read = [json.loads(file.read_text()) for file in sorted((study / "trials").glob("*.json"))]
    timed = {"spent", "targets_per_second", "sha256"}
    return [{key: value for key, value in trial.items() if key not in timed} for trial in read]


def weights_of(study: Path) -> list[str]:
    """Names of the tensor files of the best model; they are of their digests."""
    return sorted(path.name for path in (study / "best").glob("*.safetensors"))


def started(*arguments: Any) -> subprocess.Popen[str]:
    """A command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "from hiertcn.cli import main; main()", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "COLUMNS": "300"},
    )


def sent_when(running: subprocess.Popen[str], path: Path, number: signal.Signals) -> tuple[int, str]:
    """Send a signal as soon as there is a file at `path`; how the process ended, and what it said."""
    while running.poll() is None and not path.exists():
        time.sleep(0.005)
    running.send_signal(number)
    _, said = running.communicate(timeout=120)
    return running.returncode, said


@contextmanager
def interrupted_when(path: Path) -> Iterator[None]:
    """Ctrl-C to this process as soon as there is a file at `path`."""
    left = Event()

    def look() -> None:
        while not left.wait(0.005):
            if path.exists():
                os.kill(os.getpid(), signal.SIGINT)
                return

    looking = Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        left.set()
        looking.join()
