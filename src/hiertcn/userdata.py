"""All that a store holds of one user, in full, as a person may ask for it."""

from __future__ import annotations

__all__ = ["StoredEvent", "UserData", "stored_of"]

from collections.abc import Callable

from msgspec import Struct

from hiertcn.aside import aside_of
from hiertcn.door import Id, key_of
from hiertcn.sessions import SECOND
from hiertcn.states import StateStore, UserState
from hiertcn.states.state import DamagedState, digest_in

# The field `bytes` hides the type.
Bytes = bytes


class StoredEvent(Struct):
    """time: seconds since 1970 UTC; event_mark: 64 bits that are made of the event's id, in hexadecimal, null without
    one; read: whether the long-term vector has read it; shown: what was shown beside it, kept until it is read."""

    item_id: str | int
    time: float
    event_mark: str | None
    read: bool
    shown: list[str | int]


class UserData(Struct):
    """events: in the order of time; long_term: what the model `model` made of them, null where none has read any;
    read_until: when the latest session ended that it has read; forgotten_until: events up to then were to be
    forgotten, and are not taken in again; times are seconds since 1970 UTC; bytes: of all this as it is stored;
    damaged: what is stored of the user and can't be read, as it is, in base64."""

    user_id: str | int
    events: list[StoredEvent]
    long_term: list[float] | None
    model: str | None
    read_until: float | None
    forgotten_until: float | None
    bytes: int
    damaged: list[Bytes]


def stored_of(states: StateStore, user: Id, typed: Callable[[str], Id] = str) -> UserData | None:
    """None for a user of whom nothing is stored. typed: the id of an item as the log has it.

    Raises ArtifactError for a state of another format.
    """
    key = key_of(user)
    (value,), aside = states.get([key]), aside_of(states, key)
    if value is None and aside is None:
        return None
    damaged = [] if aside is None else [aside]
    owner, state = b"", UserState()
    if value is not None:
        owner = digest_in(value)
        try:
            state = UserState.from_bytes(value, owner)
        except DamagedState:
            damaged.append(value)
    shown: list[tuple[str, ...]] = [()] * state.read + (state.shown or [()] * state.unread)
    read = [True] * state.read + [False] * state.unread
    return UserData(
        user,
        [
            StoredEvent(typed(item), time / SECOND, f"{mark:016x}" if mark else None, is_read, list(map(typed, beside)))
            for item, time, mark, is_read, beside in zip(
                state.items, state.times, state.marks, read, shown, strict=True
            )
        ],
        None if state.long_term is None else state.long_term.tolist(),
        None if state.long_term is None else owner.hex(),
        _seconds(state.previous_end),
        _seconds(state.forgotten),
        len(value or b"") + len(aside or b""),
        damaged,
    )


def _seconds(time: int | None) -> float | None:
    return None if time is None else time / SECOND
