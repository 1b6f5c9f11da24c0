"""Where training stands, on disk: one trainer to a directory, and a checkpoint that is whole or the one before."""

from __future__ import annotations

__all__ = ["begin", "exists", "load", "locked", "save"]

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from torch import Tensor

from hiertcn.artifact import FORMAT, read_manifest, read_tensors, write_tensors
from hiertcn.errors import InputError
from hiertcn.files import sweep, write_text

_NAME = "checkpoint.json"
_LOCK = "train.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the lock of a process that is gone is taken over, and what it left aside removed.

    Raises InputError while another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / _LOCK
    mine = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()})
    while True:
        try:
            with lock.open("x", encoding="utf-8") as file:
                file.write(mine)
            break
        except FileExistsError:
            _refuse_if_held(lock)
            lock.unlink(missing_ok=True)
    try:
        sweep(folder)
        yield
    finally:
        lock.unlink(missing_ok=True)


def _refuse_if_held(lock: Path) -> None:
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
        pid, host, started = holder["pid"], holder["host"], holder["started"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if host == socket.gethostname():
        try:
            if abs(psutil.Process(pid).create_time() - started) > 1:
                return
        except psutil.NoSuchProcess:
            return
    raise InputError(
        f"{lock.parent} is being trained in by process {pid} on {host}. Wait for it, choose another directory, "
        f"or, if that machine is gone, remove {lock}."
    )


def exists(folder: Path) -> bool:
    return (folder / _NAME).exists()


def begin(folder: Path, identity: dict[str, Any], resume: bool) -> bool:
    """Whether to load a checkpoint of `folder`. Raises InputError if it holds a run and `resume` is off, if it holds none and
    `resume` is on, or if the run's `identity` (data, model, settings, versions) is another one; the differences are named.
    """
    if not exists(folder):
        if resume:
            raise InputError(
                f"{folder} holds no checkpoint to resume from. Leave --resume out to start a new run there."
            )
        return False
    if not resume:
        raise InputError(f"{folder} already holds a run. Go on with it by --resume, or choose another --out.")
    stored = read_manifest(folder / _NAME)["identity"]
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
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def save(folder: Path, tensors: dict[str, Tensor], identity: dict[str, Any], facts: dict[str, Any]) -> None:
    """Replace the checkpoint of `folder`. Raises StorageError when the disk refuses; the one before is then intact."""
    listed = write_tensors(folder, "checkpoint", tensors)
    write_text(
        folder / _NAME,
        json.dumps({"format": FORMAT, "identity": identity, "facts": facts, "tensors": listed}, indent=1),
    )
    for stale in folder.glob("checkpoint-*.safetensors"):
        if stale.name != listed["file"]:
            stale.unlink()


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, facts) of the checkpoint. Raises ArtifactError if it is damaged."""
    stored = read_manifest(folder / _NAME)
    return read_tensors(folder, stored["tensors"]), stored["facts"]
