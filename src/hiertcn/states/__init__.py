"""Where the states of users live. One protocol (protocol.py): a store keeps bytes and knows not what they mean."""

from __future__ import annotations

__all__ = [
    "Durability",
    "MemoryStates",
    "Pick",
    "SQLiteStates",
    "StateStore",
    "Status",
    "Update",
    "UserState",
    "mark_of",
    "open_states",
]

from collections.abc import Callable
from typing import get_args

from hiertcn.errors import InputError, nearest
from hiertcn.quarantine import shown
from hiertcn.states.memory import MemoryStates
from hiertcn.states.protocol import Durability, StateStore, Update
from hiertcn.states.sqlite import SQLiteStates
from hiertcn.states.state import Pick, Status, UserState, mark_of

_FORMS = {"memory": "memory:", "sqlite": "sqlite:///FILE", "redis": "redis://HOST:PORT/DB", "rediss": "rediss://…"}


def open_states(
    url: str, durability: Durability = "fsync", say: Callable[[str], None] = lambda line: None
) -> StateStore:
    """The store at `url`: "memory:", "sqlite:///FILE" (three slashes, then a path; a fourth begins an absolute one), or
    "redis://HOST:PORT/DB", "rediss://…" with TLS, as RedisStates says.

    durability: what an acknowledged update survives: "fsync" a power cut, "os" a kill, and a power cut a second later
    say:        is told warnings, a line each

    Raises InputError for any other, what SQLiteStates and RedisStates raise, and ModuleNotFoundError for a Redis
    without the package `redis`.
    """
    if durability not in get_args(Durability):
        raise InputError(f"The durability is {shown(durability)}; expected 'fsync' or 'os'. Give one of these.")
    if url in ("memory:", "memory"):
        return MemoryStates()
    path = url.removeprefix("sqlite:///")
    if path and path != url:
        return SQLiteStates(path, durability)
    if url.startswith(("redis://", "rediss://")):
        from hiertcn.states.redis import RedisStates

        return RedisStates(url, durability, say)
    raise InputError(
        f"{shown(url)} is no store of states{nearest(url.partition(':')[0], _FORMS)}; expected "
        f"{', '.join(list(_FORMS.values())[:-1])} or {_FORMS['rediss']}. Give one of these."
    )
