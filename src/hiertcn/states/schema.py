"""What an SQLite file of states holds, and how it is told from other files."""

from __future__ import annotations

__all__ = ["APPLICATION", "FORMAT", "TABLES", "WAY_OUT", "refuse_foreign"]

import struct
from pathlib import Path

from hiertcn.errors import ArtifactError

APPLICATION, FORMAT = 0x48544353, 2
# Where an SQLite file says what it is: its first bytes, then the user's version and the application at 60 and 68.
_HEADER = struct.Struct(">16s44xI4xI")
_MAGIC = b"SQLite format 3\0"
_REPLAY = (
    "give a file that does not exist yet and replay the log into it: `hiertcn replay LOG RUN --state sqlite:///NEW`."
)
WAY_OUT = f"Put back a copy of it, or {_REPLAY}"
TABLES = (
    "CREATE TABLE IF NOT EXISTS states (key BLOB NOT NULL PRIMARY KEY, value BLOB NOT NULL)",
    # AUTOINCREMENT, so that a position is not used again when the journal was trimmed.
    "CREATE TABLE IF NOT EXISTS journal (position INTEGER PRIMARY KEY AUTOINCREMENT, entry BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS shared (name TEXT NOT NULL PRIMARY KEY, version INTEGER NOT NULL, parts INTEGER)",
    "CREATE TABLE IF NOT EXISTS parts (version INTEGER, number INTEGER, part BLOB NOT NULL, UNIQUE (version, number))",
)


def refuse_foreign(path: Path) -> None:
    """Raise ArtifactError if `path` is a file that is no store of states of this format; it is not even locked."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        found = file.read(_HEADER.size)
    if not found:
        return
    magic, form, owner = _HEADER.unpack(found) if len(found) == _HEADER.size else (b"", 0, 0)
    if (magic, owner) != (_MAGIC, APPLICATION) or form > FORMAT:
        raise ArtifactError(
            f"{path} is no store of states of format {FORMAT}, and was left as it is. Give a file that this version of "
            "hiertcn made, or one that does not exist yet."
        )
    if form < FORMAT:
        raise ArtifactError(
            f"{path} is a store of states of format {form}; this version reads format {FORMAT}. It was left as it is; "
            f"{_REPLAY}"
        )
