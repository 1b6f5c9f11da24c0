"""The one protocol of all stores of user states."""

from __future__ import annotations

__all__ = ["StateStore"]

from abc import abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self


class StateStore(Protocol):
    """Bytes by user. Safe to use from several threads; a context manager that closes it."""

    @abstractmethod
    def get(self, user: str) -> bytes | None:
        """What is stored for a user, None for an unknown one."""

    @abstractmethod
    def update(self, user: str, fn: Callable[[bytes | None], bytes]) -> bytes:
        """Replace what is stored for a user by `fn` of it, and return that.

        No other update comes between reading and writing. When it returns, the value is as safe as the store can make
        it; when `fn` raises, nothing has changed. `fn` must not use the store.
        """

    @abstractmethod
    def delete(self, user: str) -> None:
        """Forget a user; an unknown one is no error."""

    @abstractmethod
    def close(self) -> None:
        """Release what the store holds; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
