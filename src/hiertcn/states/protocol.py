"""The one protocol of all stores of user states, and what its callers may give."""

from __future__ import annotations

__all__ = ["KEY", "Durability", "StateStore", "Update", "changed", "checked_keys", "checked_name", "checked_position"]

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self

from hiertcn.errors import InputError
from hiertcn.quarantine import shown

KEY = 64
Durability = Literal["fsync", "os"]
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Update(NamedTuple):
    """What is to be stored: a value for each key (None deletes it), and entries for the journal."""

    values: Sequence[bytes | None]
    journal: Sequence[bytes] = ()


class StateStore(Protocol):
    """Bytes by key, a journal, and a few values by name. Safe to use from several threads; a context manager.

    Keys are 1 … 64 bytes; a store never learns of whom. Every method raises InputError for arguments that can't be,
    StorageError where what keeps the bytes refuses or can't be reached, and ArtifactError where it is damaged. After a
    StorageError nothing is acknowledged, and the store works again when the fault is gone.
    """

    @abstractmethod
    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """What is stored for each key, None for an unknown one."""

    @abstractmethod
    def update(self, keys: Sequence[bytes], fn: Callable[[list[bytes | None]], Update]) -> None:
        """Replace what is stored for `keys` (distinct) by `fn` of it, and append to the journal, all or nothing.

        No other update of these keys comes between reading and writing. When it returns, everything is as safe as the
        store can make it, by one sync for all keys; when `fn` raises, nothing has changed. `fn` must not use the store,
        and may be called more than once: only what its last call gave is stored. After a StorageError the update is not
        acknowledged, and was applied as a whole or not at all.
        """

    @abstractmethod
    def forget(self, key: bytes, instead: bytes | None = None) -> None:
        """Delete a key, or put `instead` in its place, and see to it that within 60 s no file of the store holds a byte
        of what was its value."""

    @abstractmethod
    def journal(self, after: int, most: int = 10_000) -> list[tuple[int, bytes]]:
        """The first `most` entries behind the position `after` (0: from the start), each with its position.

        They come in the order of commits; positions increase and are never used twice.
        """

    @abstractmethod
    def trim(self, upto: int) -> None:
        """Remove the journal's entries up to and including the position `upto`."""

    @abstractmethod
    def put(self, name: str, value: bytes) -> None:
        """Store a value under a name (letters, digits, "_", ".", "-"), whole or not at all; hundreds of MB are fine."""

    @abstractmethod
    def value(self, name: str) -> bytes | None:
        """The value last put under a name, None without one."""

    @abstractmethod
    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        """All keys and values, in no order and in bounded memory.

        Other calls may come meanwhile. A key that stays throughout comes at least once (in Redis, while keys are added
        or deleted, perhaps twice), with its value of some moment of the scan.
        """

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """What the store is and what it can promise, for people: kind, durability, versions, limits."""

    @abstractmethod
    def close(self) -> None:
        """Release what the store holds; a second call does nothing."""

    def delete(self, keys: Sequence[bytes]) -> None:
        """Delete keys; an unknown one is no error. What they held may stay in files for a while: see `forget`."""
        self.update(list(dict.fromkeys(checked_keys(keys))), lambda found: Update([None] * len(found)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def checked_keys(keys: Sequence[bytes], *, distinct: bool = False) -> list[bytes]:
    """The keys as a list. Raises InputError for one that can't be a key, and for a repeated one if `distinct`."""
    for key in keys:
        if not isinstance(key, bytes) or not 1 <= len(key) <= KEY:
            raise InputError(f"A key of a store is {shown(key)}; expected 1 to {KEY} bytes. Give a digest of the id.")
    if distinct and len(set(keys)) != len(keys):
        raise InputError(f"There are {len(keys)} keys, {len(set(keys))} of them distinct. Update each key once a call.")
    return list(keys)


def changed(keys: list[bytes], found: list[bytes | None], fn: Callable[[list[bytes | None]], Update]) -> Update:
    """What `fn` makes of the values found. Raises what `fn` raises, and InputError if it gave what can't be stored."""
    values, journal = fn(found)
    if len(values) != len(keys):
        raise InputError(f"An update gave {len(values)} values for {len(keys)} keys. Give one, or None, for each.")
    for value in (*values, *journal):
        if value is not None and not isinstance(value, bytes):
            raise InputError(f"An update gave {shown(value)}; expected bytes. Give values and entries as bytes.")
    if None in journal:
        raise InputError("An update gave None for the journal; expected bytes. Leave it out.")
    return Update(values, journal)


def checked_name(name: str) -> str:
    """The name of a shared value. Raises InputError for one that can't be."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"{shown(name)} can't name a stored value; expected 1 to 64 of A-Z, a-z, 0-9, '_', '.' and '-'. Rename it."
        )
    return name


def checked_position(position: int) -> int:
    """A position in the journal, 0 for its start. Raises InputError for what can't be one."""
    if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position < 2**53:
        raise InputError(f"{shown(position)} is no position in a journal; expected a whole number from 0 to 2^53 - 1.")
    return position
