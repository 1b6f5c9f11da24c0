"""States in one SQLite file, owned by one process at a time."""

from __future__ import annotations

__all__ = ["SQLiteStates"]

import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from threading import Event, Lock, Thread

from hiertcn.errors import ArtifactError, StorageError
from hiertcn.states.protocol import (
    Durability,
    StateStore,
    Update,
    changed,
    checked_keys,
    checked_name,
    checked_position,
)
from hiertcn.states.schema import APPLICATION, FORMAT, TABLES, WAY_OUT, refuse_foreign

WAIT = 1.0
PART = 1 << 20
WAL = 16 << 20
"""The write-ahead log is cut to so many bytes after each checkpoint; between two it grows by one to
five megabytes, and by the largest transaction."""
# Pages of the log until a checkpoint, for which everybody waits: 10 ms with a thousand, 4 ms with a quarter. Where
# nothing else is synced, that costs half of what can be done, and a thousand are better.
CHECKPOINT = {"fsync": 250, "os": 1000}
CHECKED = 256 << 20
"""A file of up to so many bytes is read whole, and checked, when it is opened."""
PAGE = 256
_SET = "INSERT INTO states VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
_SHARE = (
    "INSERT INTO shared VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
    "version = excluded.version, parts = excluded.parts"
)
_ORPHAN = "SELECT rowid FROM parts WHERE version NOT IN (SELECT version FROM shared) LIMIT 1"
_SCAN = "SELECT rowid, key, value FROM states WHERE rowid > ? ORDER BY rowid LIMIT ?"
# Keys of one query: the library keeps so many queries compiled.
_READ = 64
# Files that stores of this process have open, by device and inode.
_open: set[tuple[int, int]] = set()
_opening = Lock()


class SQLiteStates(StateStore):
    """Tables in a file. An update that returned survives a kill, and a power cut: with `durability` "fsync" always,
    with "os" if it was a second ago.

    The file is locked for as long as it is open: SQLite up to 3.51.2 can damage a write-ahead log that two connections
    write and checkpoint at once, so this is the only connection.

    Raises ArtifactError for a file that is not such a store, or a damaged one, and StorageError where the file can't be
    opened or written, or is open already.
    """

    def __init__(self, path: str | Path, durability: Durability = "fsync") -> None:
        self.path, self.durability = Path(path), durability
        self._lock, self._putting = Lock(), Lock()
        self._closed, self._unsynced = Event(), Event()
        self._failed: OSError | None = None
        with _opening, self._faults():
            # To open and close a file that a store of this process has open would end the system's lock on it.
            if self.path.is_file() and _identity(self.path) in _open:
                raise sqlite3.OperationalError("database is locked by this process")
            refuse_foreign(self.path)
            # Personal data, so the owner's only.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(
                self.path, timeout=WAIT, isolation_level=None, check_same_thread=False, cached_statements=128
            )
            try:
                self._set_up()
            except BaseException:
                self._connection.close()
                raise
            self._identity = _identity(self.path)
            _open.add(self._identity)
        self._syncing = Thread(target=self._sync, name="hiertcn-sync", daemon=True)
        if durability == "os":
            self._syncing.start()

    def _set_up(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        # What is overwritten or deleted is personal: no copy of it stays in free pages.
        execute("PRAGMA secure_delete = ON")
        execute("PRAGMA cache_size = -16384")
        with self._connection:
            execute("BEGIN EXCLUSIVE")
            # The file says whose it is before it leaves its first transaction.
            execute(f"PRAGMA application_id = {APPLICATION}")
            execute(f"PRAGMA user_version = {FORMAT}")
            for table in TABLES:
                execute(table)
        if execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise sqlite3.OperationalError("this file system can't hold a write-ahead log")
        execute(f"PRAGMA journal_size_limit = {WAL}")
        execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT[self.durability]}")
        execute(f"PRAGMA synchronous = {'FULL' if self.durability == 'fsync' else 'NORMAL'}")
        # On a Mac, fsync alone leaves the data in the drive's memory.
        execute("PRAGMA fullfsync = ON")
        # Of a process killed between forgetting and this, what was forgotten still stands in the log.
        self._checkpoint()
        if self.path.stat().st_size <= CHECKED:
            self._check()
        self._sweep()

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            raise StorageError(
                f"{self.path} can't be used as a store of states: {error}. Expected a file to read and write, on a "
                "disk with free space, that no other store has open. Make room, close the other, choose another file, "
                "or let several servers share a Redis."
            ) from error
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.DatabaseError as error:
            raise ArtifactError(f"{self.path} is damaged: {error}. {WAY_OUT}") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # SQLite has rolled back some faults itself.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._unsynced.set()

    def _sync(self) -> None:
        """Once a second, what was committed is synced."""
        while not self._closed.wait(1.0):
            if self._unsynced.is_set():
                self._unsynced.clear()
                try:
                    handle = os.open(f"{self.path}-wal", os.O_RDWR)
                    try:
                        os.fsync(handle)
                    finally:
                        os.close(handle)
                except OSError as error:
                    self._failed = error

    def _read(self, keys: list[bytes]) -> list[bytes | None]:
        found: dict[bytes, bytes] = {}
        for begin in range(0, len(keys), _READ):
            some = keys[begin : begin + _READ]
            query = f"SELECT key, value FROM states WHERE key IN ({','.join('?' * len(some))})"
            found.update(self._connection.execute(query, some))
        return [found.get(key) for key in keys]

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        keys = checked_keys(keys)
        with self._lock, self._faults():
            return self._read(keys)

    def update(self, keys: Sequence[bytes], fn: Callable[[list[bytes | None]], Update]) -> None:
        keys = checked_keys(keys, distinct=True)
        with self._lock:
            with self._faults():
                found = self._read(keys)
            values, journal = changed(keys, found, fn)
            with self._faults():
                if self._failed is not None:
                    failed, self._failed = self._failed, None
                    raise failed
                with self._transaction():
                    pairs = list(zip(keys, values, strict=True))
                    many = self._connection.executemany
                    many("DELETE FROM states WHERE key = ?", [(key,) for key, value in pairs if value is None])
                    many(_SET, [pair for pair in pairs if pair[1] is not None])
                    many("INSERT INTO journal (entry) VALUES (?)", [(entry,) for entry in journal])

    def forget(self, key: bytes, instead: bytes | None = None) -> None:
        self.update([key], lambda _: Update([instead]))
        # Older values may still stand in the write-ahead log.
        with self._lock, self._faults():
            self._checkpoint()

    def _checkpoint(self) -> None:
        if self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise sqlite3.OperationalError("the write-ahead log is in use")

    def journal(self, after: int, most: int = 10_000) -> list[tuple[int, bytes]]:
        query = "SELECT position, entry FROM journal WHERE position > ? ORDER BY position LIMIT ?"
        with self._lock, self._faults():
            return self._connection.execute(query, (checked_position(after), most)).fetchall()

    def trim(self, upto: int) -> None:
        with self._lock, self._faults(), self._transaction():
            self._connection.execute("DELETE FROM journal WHERE position <= ?", (checked_position(upto),))

    def put(self, name: str, value: bytes) -> None:
        # In parts, each a transaction, so that updates come between and the write-ahead log stays short. They belong to
        # a version that nobody reads before its last part is there.
        name, version, view = checked_name(name), secrets.randbits(62), memoryview(value)
        with self._putting:
            self._sweep()
            parts = [view[at : at + PART] for at in range(0, len(view), PART)]
            for number, part in enumerate(parts):
                with self._lock, self._faults(), self._transaction():
                    self._connection.execute("INSERT INTO parts VALUES (?, ?, ?)", (version, number, part))
            with self._lock, self._faults(), self._transaction():
                self._connection.execute(_SHARE, (name, version, len(parts)))
            self._sweep()

    def _sweep(self) -> None:
        """Remove parts of values that were replaced, or never finished."""
        while True:
            with self._lock, self._faults():
                row = self._connection.execute(_ORPHAN).fetchone()
                if row is None:
                    return
                with self._transaction():
                    self._connection.execute("DELETE FROM parts WHERE rowid = ?", row)

    def value(self, name: str) -> bytes | None:
        name = checked_name(name)
        while True:
            with self._lock, self._faults():
                row = self._connection.execute("SELECT version, parts FROM shared WHERE name = ?", (name,)).fetchone()
            if row is None:
                return None
            parts = list(chain.from_iterable(self._part(row[0], number) for number in range(row[1])))
            # Fewer if it was replaced in the meantime.
            if len(parts) == row[1]:
                return b"".join(parts)

    def _part(self, version: int, number: int) -> list[bytes]:
        query = "SELECT part FROM parts WHERE version = ? AND number = ?"
        with self._lock, self._faults():
            return [part for (part,) in self._connection.execute(query, (version, number))]

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        last = 0
        while True:
            with self._lock, self._faults():
                rows = self._connection.execute(_SCAN, (last, PAGE)).fetchall()
            if not rows:
                return
            yield from ((key, value) for _, key, value in rows)
            last = rows[-1][0]

    def check(self) -> None:
        """Read the whole file. Raises ArtifactError if its structure is damaged; a value's bytes are its reader's."""
        with self._lock, self._faults():
            self._check()

    def _check(self) -> None:
        found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise ArtifactError(f"{self.path} is damaged: {' '.join(found.split())}. {WAY_OUT}")

    def facts(self) -> dict[str, str]:
        lost = {"fsync": "nothing", "os": "at most the last second"}[self.durability]
        with self._lock, self._faults():
            asked = {
                name: str(self._connection.execute(f"PRAGMA {name}").fetchone()[0])
                for name in ("journal_mode", "synchronous", "locking_mode", "secure_delete", "page_size", "page_count")
            }
            keys = self._connection.execute("SELECT count(*) FROM states").fetchone()[0]
        wal = Path(f"{self.path}-wal")
        size = wal.stat().st_size if wal.exists() else 0
        return {
            "kind": "SQLite",
            "file": str(self.path),
            "durability": f"{self.durability}: a kill loses nothing acknowledged, a power cut {lost}",
            "SQLite": sqlite3.sqlite_version,
            **asked,
            "keys": f"{keys:,}",
            "write-ahead log": f"{size:,} bytes, cut to {WAL:,} after a checkpoint",
        }

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        if self._syncing.is_alive():
            self._syncing.join()
        with _opening, self._lock, self._faults():
            self._connection.close()
            _open.discard(self._identity)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
