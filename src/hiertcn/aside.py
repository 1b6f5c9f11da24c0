"""What is damaged of users, set aside in their store: they begin anew, and it is kept for whoever mends the store."""

from __future__ import annotations

__all__ = ["aside_of", "forget_aside", "is_aside", "set_aside"]

from collections.abc import Collection

from hiertcn.states import StateStore, Update

_BEFORE = b"damaged/"


def set_aside(store: StateStore, keys: Collection[bytes], value: bytes) -> int:
    """Move `value` aside where it is stored for one of `keys`, those of users; for how many it was."""

    def moved(found: list[bytes | None]) -> Update:
        # Another server of the store may have done it, or written something better.
        return Update([None, value] if found[0] == value else found)

    of = [key for key, stored in zip(keys, store.get(list(keys)), strict=True) if stored == value]
    for key in of:
        store.update([key, _BEFORE + key], moved)
    return len(of)


def aside_of(store: StateStore, key: bytes) -> bytes | None:
    """What was set aside of a user, last."""
    (value,) = store.get([_BEFORE + key])
    return value


def forget_aside(store: StateStore, key: bytes) -> None:
    """Forget what was set aside of a user."""
    if aside_of(store, key) is not None:
        store.forget(_BEFORE + key)


def is_aside(key: bytes) -> bool:
    """Whether it is a key of what was set aside, and not of a user."""
    return key.startswith(_BEFORE)
