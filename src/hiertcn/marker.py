"""That a store of states was begun in a file: a marker beside it, which outlives the file.

A store that was lost would else begin anew, and nobody would hear that everybody is forgotten.
"""

from __future__ import annotations

__all__ = ["MARKER", "check_kept", "mark_kept"]

import getpass
import os
from collections.abc import Callable
from pathlib import Path

from hiertcn.errors import StorageError
from hiertcn.files import write_text

MARKER = ".begun"
"""What its name adds to that of the store."""


def check_kept(state: str, run: Path, anew: bool, say: Callable[[str], None]) -> None:
    """Of the store at the URL `state`, before a server of `run` opens it: that its file is still there, and this
    person's alone. Raises StorageError with the command that helps. anew: let one that is gone begin anew. What is no
    SQLite file has no marker.
    """
    path = _file(state)
    if path is None:
        return
    if not os.path.isfile(path) or not path.stat().st_size:
        if os.path.isfile(_marker(path)) and not anew:
            raise StorageError(
                f"There is no store {path}, but {_marker(path).name} beside it says that one was begun there. If its "
                f"disk is not mounted, mount it. Else put back a copy of it, or make it of a log by `hiertcn replay "
                f"LOG {run} --state {state}`. To begin anew, with everybody forgotten, add --anew."
            )
        say(f"{path} begins: nobody is known yet")
    elif not os.access(path, os.R_OK | os.W_OK):
        who = getpass.getuser()
        raise StorageError(
            f"{path} can't be read and written by {who}, who serves. Run `chown {who} {path}` and `chmod 600 {path}` "
            "as its owner or root."
        )
    elif path.stat().st_mode & 0o077:
        raise StorageError(
            f"{path} can be opened by others, and holds what people did. Run `chmod 600 {path}`, then serve again."
        )


def mark_kept(state: str) -> None:
    """The store at the URL `state` is open: it should be there from now on."""
    path = _file(state)
    if path is not None and not _marker(path).exists():
        write_text(
            _marker(path),
            f"A store of states was begun here: {path.name}. While this file is there, `hiertcn serve` does not begin "
            "another one in its place. Delete both to begin anew.\n",
        )


def _file(state: str) -> Path | None:
    path = state.removeprefix("sqlite:///")
    return Path(path) if path and path != state else None


def _marker(path: Path) -> Path:
    return path.with_name(path.name + MARKER)
