"""Where training stands: one trainer to a directory, told to stop; a checkpoint that is whole or the one before."""

from __future__ import annotations

__all__ = ["begin", "check_same", "exists", "load", "locked", "save", "stop_signals"]

import fcntl
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field
from torch import Tensor

from hiertcn.errors import InputError
from hiertcn.files import refusals, sweep
from hiertcn.manifest import Listed, read_manifest, write_manifest
from hiertcn.tensors import drop_others, read_tensors, write_tensors

_NAME = "checkpoint.json"
_STEM = "checkpoint"
_LOCK = "train.lock"


class _Batches(BaseModel, strict=True):
    epoch: Annotated[int, Field(ge=0)]
    batch: Annotated[int, Field(ge=0)]


class _Facts(BaseModel, strict=True):
    batches: _Batches
    step: Annotated[int, Field(ge=0)]
    history: list[dict[str, float]]


class _Checkpoint(BaseModel, strict=True):
    identity: dict[str, Any]
    facts: _Facts
    tensors: Listed


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process, until it ends in whatever way, and sweep what a killed one left half written.

    Raises InputError while another trainer holds it, StorageError if it can't be written to.
    """
    lock = folder / _LOCK
    with refusals(lock):
        folder.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"{folder} is being trained in by {file.read(80)}. Wait for it, or choose another --out."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        sweep(folder)
        yield


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that a step is finished and saved; the second signal acts at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def ask(number: int, _: Any) -> None:
        stopped.set()
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exists(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint."""
    return (folder / _NAME).exists()


def begin(folder: Path, identity: dict[str, Any], resume: bool) -> bool:
    """Whether to load a checkpoint of `folder`.

    Raises InputError if it holds a run and `resume` is off, if it holds none and `resume` is on, or if the run's
    `identity` (data, model, settings, versions) is another one; the differences are named.
    """
    if not resume:
        if exists(folder) or (folder / "manifest.json").exists():
            raise InputError(f"{folder} already holds a run. Go on with it by --resume, or choose another --out.")
        return False
    if not exists(folder):
        raise InputError(f"{folder} holds no checkpoint to resume from. Leave --resume out to start a new run.")
    found = read_manifest(folder / _NAME, _Checkpoint)
    check_same(folder, found["identity"], identity)
    drop_others(folder, _STEM, found["tensors"]["file"])
    return True


def check_same(folder: Path, stored: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raises InputError that names every setting in which what `folder` was begun with differs from `identity`."""
    differing = [
        f"{key} was {_short(stored.get(key))}, now {_short(identity.get(key))}"
        for key in sorted(set(stored) | set(identity))
        if stored.get(key) != identity.get(key)
    ]
    if differing:
        raise InputError(
            f"{folder} can't be resumed with other settings: {'; '.join(differing)}. "
            "Use what the run was started with, or start a new one in another --out."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def save(folder: Path, tensors: dict[str, Tensor], identity: dict[str, Any], facts: dict[str, Any]) -> None:
    """Replace the checkpoint of `folder`. Raises StorageError when the disk refuses; the one before is then intact."""
    listed = write_tensors(folder, _STEM, tensors)
    write_manifest(folder / _NAME, {"identity": identity, "facts": facts, "tensors": listed})
    drop_others(folder, _STEM, listed["file"])


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, facts) of the checkpoint. Raises ArtifactError if it is damaged."""
    stored = read_manifest(folder / _NAME, _Checkpoint)
    return read_tensors(folder, stored["tensors"]), stored["facts"]
