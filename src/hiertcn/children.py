"""Jobs in processes of their own (jobs.py), as the process that starts them sees them."""

from __future__ import annotations

__all__ = ["read_result", "run_job"]

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

import torch
from pydantic import BaseModel, Field

from hiertcn.errors import ArtifactError, Stopped
from hiertcn.files import refusals
from hiertcn.manifest import read_manifest, write_manifest

_SECONDS_BETWEEN_LOOKS = 0.2


class _Spent(BaseModel, strict=True):
    seconds: float
    memory: int
    resting_memory: int


class _Result(BaseModel, strict=True):
    failed: str | None = None
    code: int = 0
    spent: _Spent | None = Field(default=None)


def read_result(path: Path) -> dict[str, Any] | None:
    """What a job left at `path`; None if there is nothing. Raises ArtifactError if it is damaged."""
    if not path.exists():
        return None
    try:
        return read_manifest(path, _Result)
    except ArtifactError as error:
        raise ArtifactError(f"{path} is damaged. Remove it: what it said is then computed again.") from error


def run_job(job: dict[str, Any], result: Path, say: Callable[[str], None], stopped: threading.Event) -> dict[str, Any]:
    """Do `job`, JSON with the name of a task in jobs.TASKS, and the `facts` to state in its result; what it left at
    `result`, where it says why if it `failed`. Each line it prints is told to `say`.

    When `stopped` is set the job is told to stop. Raises Stopped if it did so.
    """
    job = {**job, "threads": torch.get_num_threads()}
    # -P: not this folder on the path. A session of its own, so that it is told of Ctrl-C by this process only.
    command = [sys.executable, "-P", "-X", "utf8", "-m", "hiertcn.jobs", json.dumps(job), str(result)]
    with refusals(result):
        result.parent.mkdir(parents=True, exist_ok=True)
        log = result.with_suffix(".log").open("wb")
    with log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    try:
        _follow(process, say, stopped)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
    if not result.exists():
        if stopped.is_set():
            raise Stopped(f"Stopped; what was done is saved in {result.parent}. Go on with the same command.")
        write_manifest(result, {**job["facts"], "failed": _why(process.returncode, log.name), "code": 1})
    elif not (said := Path(log.name)).stat().st_size:
        said.unlink()
    found = read_result(result)
    assert found is not None
    return found


def _follow(process: subprocess.Popen[str], say: Callable[[str], None], stopped: threading.Event) -> None:
    """Until the process has closed its output."""
    assert process.stdout is not None
    lines: SimpleQueue[str | None] = SimpleQueue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    told = False
    while True:
        try:
            line = lines.get(timeout=_SECONDS_BETWEEN_LOOKS)
        except Empty:
            line = ""
        if line is None:
            return
        if line.strip():
            say(line.rstrip())
        if stopped.is_set() and not told:
            told = True
            process.send_signal(signal.SIGTERM)


def _read(pipe: IO[str], lines: SimpleQueue[str | None]) -> None:
    for line in pipe:
        lines.put(line)
    lines.put(None)


def _why(code: int, log: str) -> str:
    if code == -signal.SIGKILL:
        return "Its process was killed, as the system does when memory runs out."
    by = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"Its process {by}; {log} has what it said last."
