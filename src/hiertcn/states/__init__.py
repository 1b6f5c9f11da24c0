"""Where the states of users live. One protocol (protocol.py): a store keeps bytes and knows not what they mean."""

from __future__ import annotations

__all__ = [
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

from hiertcn.errors import InputError, nearest
from hiertcn.quarantine import shown
from hiertcn.states.memory import MemoryStates
from hiertcn.states.protocol import StateStore, Update
from hiertcn.states.sqlite import SQLiteStates
from hiertcn.states.state import Pick, Status, UserState, mark_of


def open_states(url: str) -> StateStore:
    """The store at `url`: "memory:", or "sqlite:///FILE" (three slashes, then a path; a fourth begins an absolute one).

    Raises InputError for any other, and what SQLiteStates raises.
    """
    if url == "memory:":
        return MemoryStates()
    path = url.removeprefix("sqlite:///")
    if path and path != url:
        return SQLiteStates(path)
    forms = {"memory": "memory:", "sqlite": "sqlite:///FILE"}
    raise InputError(
        f"{shown(url)} is no store of states{nearest(url.partition(':')[0], forms)}; expected "
        f"{' or '.join(forms.values())}. Give one of these."
    )
