"""States in the memory of this process, gone when it ends."""

from __future__ import annotations

__all__ = ["MemoryStates"]

from collections.abc import Callable, Iterator, Sequence
from threading import Lock

from hiertcn.states.protocol import StateStore, Update, changed, checked_keys, checked_name, checked_position


class MemoryStates(StateStore):
    """Dicts and a list behind a lock."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._shared: dict[str, bytes] = {}
        # Entry i stands at the position _trimmed + 1 + i.
        self._entries: list[bytes] = []
        self._trimmed = 0
        self._lock = Lock()

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        keys = checked_keys(keys)
        with self._lock:
            return [self._values.get(key) for key in keys]

    def update(self, keys: Sequence[bytes], fn: Callable[[list[bytes | None]], Update]) -> None:
        keys = checked_keys(keys, distinct=True)
        with self._lock:
            values, journal = changed(keys, [self._values.get(key) for key in keys], fn)
            for key, value in zip(keys, values, strict=True):
                if value is None:
                    self._values.pop(key, None)
                else:
                    self._values[key] = value
            self._entries += journal

    def forget(self, key: bytes, instead: bytes | None = None) -> None:
        self.update([key], lambda _: Update([instead]))

    def journal(self, after: int, most: int = 10_000) -> list[tuple[int, bytes]]:
        after = checked_position(after)
        with self._lock:
            at = max(after - self._trimmed, 0)
            return list(enumerate(self._entries[at : at + most], self._trimmed + at + 1))

    def trim(self, upto: int) -> None:
        with self._lock:
            count = min(max(checked_position(upto) - self._trimmed, 0), len(self._entries))
            del self._entries[:count]
            self._trimmed += count

    def put(self, name: str, value: bytes) -> None:
        self._shared[checked_name(name)] = value

    def value(self, name: str) -> bytes | None:
        return self._shared.get(checked_name(name))

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        with self._lock:
            found = list(self._values.items())
        yield from found

    def facts(self) -> dict[str, str]:
        with self._lock:
            keys, entries = len(self._values), len(self._entries)
        return {
            "kind": "memory",
            "durability": "none: everything is gone when this process ends",
            "keys": f"{keys:,}",
            "journal": f"{entries:,} entries",
        }

    def close(self) -> None:
        pass
