"""Small training runs: how to stop them at a step, what they left on disk, and how to tamper with it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import Tensor

from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.errors import ArtifactError
from hiertcn.manifest import write_manifest
from hiertcn.models import HierTCNConfig, ModelConfig
from hiertcn.preparation import prepare
from hiertcn.progress import Progress
from hiertcn.settings import TrainConfig
from hiertcn.synth import SimulationConfig, simulate
from hiertcn.training import train

SIMULATION = SimulationConfig(users=30, tastes=3, ring=5, sessions=5, session_length=3, seed=1)
MODEL = HierTCNConfig(dim=6, units=5, channels=(7, 7), kernel=3, dropout=0.3)
# About ten steps an epoch; the same bits are promised on the CPU.
TRAIN: dict[str, Any] = {
    **{"epochs": 2, "rows": 4, "sessions": 4, "chunk": 3, "learning_rate": 0.01, "device": "cpu"},
    **{"decay_epochs": 3, "averaging": 0.5},
}
SAMPLED: dict[str, Any] = {"loss": "sampled_softmax", "uniform_negatives": 5, "popular_negatives": 5}


def small_cache(path: Path, seed: int = 1) -> Cache:
    """Some 30 users of 15 items in several shards."""
    return prepare(simulate(SimulationConfig(**{**vars(SIMULATION), "seed": seed})), path, events_per_shard=150)


def run_of(cache: Cache, out: Path, model: ModelConfig = MODEL, **settings: Any) -> Run:
    """Train `model` as TRAIN says, but for `settings` (those of `train` itself too)."""
    own = {key: settings.pop(key) for key in ("resume", "allow_memory", "progress") if key in settings}
    return train(cache, model, TrainConfig(**{**TRAIN, **settings}), out, **own)


class AtStep(Progress):
    """Calls `act` once, at the `step`-th step of this process."""

    def __init__(self, step: int, act: Any) -> None:
        super().__init__(quiet=True)
        self._left, self._act = step, act

    def step(self, batch: int, batches: int, events: int, loss: Tensor) -> None:
        super().step(batch, batches, events, loss)
        self._left -= 1
        if self._left == 0:
            self._act()


def stop_at(step: int) -> Progress:
    """SIGTERM to this process, at the `step`-th step."""
    return AtStep(step, lambda: os.kill(os.getpid(), signal.SIGTERM))


class Crash(Exception):
    """Raised in the middle of training."""


def crash_at(step: int) -> Progress:
    def fall() -> None:
        raise Crash

    return AtStep(step, fall)


def files_of(folder: Path) -> list[str]:
    """The files of a model directory; tensors are named by their digest, so equal lists mean equal bits."""
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def weights_of(folder: Path, stem: str = "model") -> dict[str, np.ndarray]:
    """The tensors of the one file of `stem`, read without any check."""
    (path,) = folder.glob(f"{stem}-*.safetensors")
    return {name: tensor.numpy() for name, tensor in load_file(path).items()}


def state_of(out: Path) -> dict[str, Any]:
    """Where the last checkpoint stands."""
    facts: dict[str, Any] = json.loads((out / "checkpoint.json").read_text())["facts"]
    return facts


def opened(folder: Path) -> Run:
    """Everything of a run, loaded."""
    run = Run(folder)
    assert run.catalog.size
    assert not run.model.training
    return run


def refused(folder: Path) -> str:
    """What is said when it is not."""
    with pytest.raises(ArtifactError) as caught:
        opened(folder)
    assert caught.value.exit_code == 3
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def restated(folder: Path, **changes: Any) -> None:
    """Change what the manifest says, as somebody would who knows how its digest is made."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, value in changes.items():
        *path, last = name.split("__")
        table = manifest
        for key in path:
            table = table[key]
        if value is None:
            del table[last]
        else:
            table[last] = value
    own = {key: value for key, value in manifest.items() if key != "sha256"}
    write_manifest(folder / "manifest.json", own)


def relisted(folder: Path, listed: str, name: str) -> None:
    """List the file `name` as it is now, with a right digest."""
    data = (folder / name).read_bytes()
    restated(
        folder,
        **{
            f"{listed}__file": name,
            f"{listed}__sha256": hashlib.sha256(data).hexdigest(),
            f"{listed}__bytes": len(data),
        },
    )
