"""States in one SQLite file, owned by one process at a time."""

from __future__ import annotations

__all__ = ["SQLiteStates"]

import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from hiertcn.errors import ArtifactError, StorageError
from hiertcn.states.protocol import StateStore

APPLICATION, FORMAT = 0x48544353, 1
WAIT = 1.0
# Where an SQLite file says what it is: its first bytes, then the user's version and the application at 60 and 68.
_HEADER = struct.Struct(">16s44xI4xI")
_MAGIC = b"SQLite format 3\0"
_PUT = "INSERT INTO states VALUES (?, ?) ON CONFLICT (user) DO UPDATE SET value = excluded.value"


class SQLiteStates(StateStore):
    """A table of user and value. An update that returned survives a kill and a power cut.

    The file is locked for as long as it is open: SQLite up to 3.51.2 can damage a write-ahead log that two connections
    write and checkpoint at once, so this is the only connection.

    Raises ArtifactError for a file that is not such a store, or a damaged one, and StorageError where the file can't be
    opened or written, or another process has it open.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = Lock()
        with self._faults():
            self._refuse_foreign()
            self._connection = sqlite3.connect(
                self.path, timeout=WAIT, isolation_level=None, check_same_thread=False, cached_statements=8
            )
            try:
                self._set_up()
            except BaseException:
                self._connection.close()
                raise

    def _refuse_foreign(self) -> None:
        """Told from the file's first bytes, so that a file of somebody else is not even locked."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            found = file.read(_HEADER.size)
        if found and (len(found) < _HEADER.size or _HEADER.unpack(found) != (_MAGIC, FORMAT, APPLICATION)):
            raise ArtifactError(
                f"{self.path} is no store of states of format {FORMAT}, and was left as it is. Give a file that "
                "hiertcn made, or one that does not exist yet."
            )

    def _set_up(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        # What is overwritten or deleted is personal: no copy of it stays in free pages.
        execute("PRAGMA secure_delete = ON")
        with self._connection:
            execute("BEGIN EXCLUSIVE")
            # The file says whose it is before it leaves its first transaction.
            execute(f"PRAGMA application_id = {APPLICATION}")
            execute(f"PRAGMA user_version = {FORMAT}")
            execute("CREATE TABLE IF NOT EXISTS states (user TEXT PRIMARY KEY, value BLOB NOT NULL)")
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            raise StorageError(
                f"{self.path} can't be used as a store of states: {error}. Expected a file to read and write, on a "
                "disk with free space, that no other store has open. Make room, close the other or choose another file."
            ) from error
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.DatabaseError as error:
            raise ArtifactError(
                f"{self.path} is damaged: {error}. Put back a copy of it, or give a file that does not exist yet."
            ) from error

    def _read(self, user: str) -> bytes | None:
        row = self._connection.execute("SELECT value FROM states WHERE user = ?", (user,)).fetchone()
        return None if row is None else bytes(row[0])

    def get(self, user: str) -> bytes | None:
        with self._lock, self._faults():
            return self._read(user)

    def update(self, user: str, fn: Callable[[bytes | None], bytes]) -> bytes:
        with self._lock:
            with self._faults():
                found = self._read(user)
            value = fn(found)
            with self._faults():
                self._connection.execute(_PUT, (user, value))
            return value

    def delete(self, user: str) -> None:
        with self._lock, self._faults():
            self._connection.execute("DELETE FROM states WHERE user = ?", (user,))
            # Older values may still stand in the write-ahead log.
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        with self._lock, self._faults():
            self._connection.close()
