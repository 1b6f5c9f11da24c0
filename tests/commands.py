"""Command lines, run in this process or in one of their own, and what is expected where they are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any, NamedTuple

import pytest

from hiertcn import cli


class Answer(NamedTuple):
    """The exit code and what was written."""

    code: int
    out: str
    err: str


class Ask:
    """Runs a command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, *arguments: Any) -> Answer:
        self._monkeypatch.setattr(sys, "argv", ["hiertcn", *map(str, arguments)])
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return Answer(int(left.value.code or 0), *self._capfd.readouterr())


def asked(*arguments: Any) -> Answer:
    """Runs a command line in this process, for fixtures of a whole module."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["hiertcn", *map(str, arguments)])
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as left:
            cli.main()
    return Answer(int(left.value.code or 0), out.getvalue(), err.getvalue())


def command(*arguments: Any, **environment: str) -> Answer:
    """Runs a command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", "from hiertcn.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def said(answer: Answer, code: int, *parts: str) -> None:
    """The command ended with `code` and an error of one paragraph that says `parts`."""
    assert answer.code == code, answer.err
    assert "Traceback" not in answer.err
    last = answer.err.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    for part in parts:
        assert part in last
    assert len(last) < 700
