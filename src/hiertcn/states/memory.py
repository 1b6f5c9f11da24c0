"""States in the memory of this process, gone when it ends."""

from __future__ import annotations

__all__ = ["MemoryStates"]

from collections.abc import Callable
from threading import Lock

from hiertcn.states.protocol import StateStore


class MemoryStates(StateStore):
    """A dict behind a lock."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._lock = Lock()

    def get(self, user: str) -> bytes | None:
        with self._lock:
            return self._values.get(user)

    def update(self, user: str, fn: Callable[[bytes | None], bytes]) -> bytes:
        with self._lock:
            self._values[user] = value = fn(self._values.get(user))
            return value

    def delete(self, user: str) -> None:
        with self._lock:
            self._values.pop(user, None)

    def close(self) -> None:
        pass
