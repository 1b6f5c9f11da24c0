"""Jobs in processes of their own (jobs.py), as the process that starts them sees them."""

from __future__ import annotations

__all__ = ["ENDED", "Workshop", "read_result"]

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import IO, Any

import torch
from pydantic import BaseModel

from hiertcn.errors import ArtifactError, Stopped
from hiertcn.files import refusals
from hiertcn.manifest import read_manifest, write_manifest

# Elsewhere frameworks of the system forbid a process that has loaded them to fork, as drivers of GPUs do everywhere.
_FORKS = sys.platform == "linux"
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_TO_LEAVE = 10.0
ENDED = "\x1e"
"""Begins the line that says with which code a job's process ended."""


class _Spent(BaseModel, strict=True):
    seconds: float
    memory: int
    resting_memory: int


class _Result(BaseModel, strict=True):
    failed: str | None = None
    code: int = 0
    spent: _Spent | None = None


def read_result(path: Path) -> dict[str, Any] | None:
    """What a job left at `path`; None if there is nothing. Raises ArtifactError if it is damaged."""
    if not path.exists():
        return None
    try:
        return read_manifest(path, _Result)
    except ArtifactError as error:
        raise ArtifactError(f"{path} is damaged. Remove it: what it said is then computed again.") from error


class Workshop:
    """A process that has loaded what jobs need, and forks for each job; it begins with the first. Where there can be no
    forks, it is another one for each job.

    say:     is told each line that a job prints
    stopped: when it is set, the job at work is told to stop
    """

    def __init__(self, say: Callable[[str], None], stopped: threading.Event) -> None:
        self._say, self._stopped = say, stopped
        self._forks = _FORKS and not torch.cuda.is_available()
        self._process: subprocess.Popen[str] | None = None
        self._lines: SimpleQueue[str | None] = SimpleQueue()

    def __enter__(self) -> Workshop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def do(self, job: dict[str, Any], result: Path) -> dict[str, Any]:
        """Do `job`, JSON with the name of a task in jobs.TASKS, and the `facts` to state in its result; what it left at
        `result`, where it says why if it `failed`.

        Raises Stopped if it was told to stop and did.
        """
        log = result.with_suffix(".log")
        with refusals(result):
            result.parent.mkdir(parents=True, exist_ok=True)
            log.unlink(missing_ok=True)
        job = {**job, "threads": torch.get_num_threads(), "result": str(result), "log": str(log)}
        if self._process is not None and self._process.poll() is not None:
            self._leave()
        process = self._process or self._begin(log)
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        code = self._follow(process)
        if code is None or not self._forks:
            left = self._leave()
            code = left if code is None else code
        if not result.exists():
            if self._stopped.is_set():
                raise Stopped(f"Stopped; what was done is saved in {result.parent}. Go on with the same command.")
            write_manifest(result, {**job["facts"], "failed": _why(code, log), "code": 1})
        elif log.exists() and not log.stat().st_size:
            log.unlink()
        found = read_result(result)
        assert found is not None
        return found

    def _begin(self, log: Path) -> subprocess.Popen[str]:
        # -P: not this folder on the path. A session of its own, so that it is told of Ctrl-C by this process only.
        with log.open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-X", "utf8", "-m", "hiertcn.jobs", "many" if self._forks else "one"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self._lines = SimpleQueue()
        threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()
        return self._process

    def _follow(self, process: subprocess.Popen[str]) -> int | None:
        """The code that the job's process ended with; None where the workshop itself ended."""
        told = False
        while True:
            try:
                line = self._lines.get(timeout=_SECONDS_BETWEEN_LOOKS)
            except Empty:
                line = ""
            if line is None:
                return None
            if line.startswith(ENDED):
                return int(line.removeprefix(ENDED))
            if line.strip():
                self._say(line.rstrip())
            if self._stopped.is_set() and not told:
                told = True
                process.send_signal(signal.SIGTERM)

    def _leave(self) -> int:
        """End the process; the code it ended with."""
        if (process := self._process) is None:
            return 0
        self._process = None
        assert process.stdin is not None
        # It leaves, and so does a job at work, when nobody holds its input any more.
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            code = process.wait(_SECONDS_TO_LEAVE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        return code


def _read(pipe: IO[str], lines: SimpleQueue[str | None]) -> None:
    with pipe:
        for line in pipe:
            lines.put(line)
    lines.put(None)


def _why(code: int, log: Path) -> str:
    if code == -signal.SIGKILL:
        return "Its process was killed, as the system does when memory runs out."
    by = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"Its process {by}; {log} has what it said last."
