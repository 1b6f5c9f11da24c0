"""All that a store holds of one user, in full, as a person may ask for it."""

from __future__ import annotations

__all__ = ["StoredEvent", "UserData", "stored_of"]

from msgspec import Struct

from hiertcn.door import Id, key_of
from hiertcn.sessions import SECOND
from hiertcn.states import StateStore, UserState
from hiertcn.states.state import digest_in


class StoredEvent(Struct):
    """time: seconds since 1970 UTC; event_mark: 64 bits that are made of the event's id, in hexadecimal, null without
    one; read: whether the long-term vector has read it; shown: what was shown beside it, kept until it is read."""

    item_id: str
    time: float
    event_mark: str | None
    read: bool
    shown: list[str]


class UserData(Struct):
    """events: in the order of time; long_term: what the model `model` made of them, null where none has read any;
    read_until: when the latest session ended that it has read; forgotten_until: events up to then were to be
    forgotten, and are not taken in again; times are seconds since 1970 UTC; bytes: of all this as it is stored."""

    user_id: str | int
    events: list[StoredEvent]
    long_term: list[float] | None
    model: str | None
    read_until: float | None
    forgotten_until: float | None
    bytes: int


def stored_of(states: StateStore, user: Id) -> UserData | None:
    """None for a user of whom nothing is stored. Raises ArtifactError for a damaged state."""
    (value,) = states.get([key_of(user)])
    if value is None:
        return None
    owner = digest_in(value)
    state = UserState.from_bytes(value, owner)
    shown: list[tuple[str, ...]] = [()] * state.read + (state.shown or [()] * state.unread)
    read = [True] * state.read + [False] * state.unread
    return UserData(
        user,
        [
            StoredEvent(item, time / SECOND, f"{mark:016x}" if mark else None, is_read, list(beside))
            for item, time, mark, is_read, beside in zip(
                state.items, state.times, state.marks, read, shown, strict=True
            )
        ],
        None if state.long_term is None else state.long_term.tolist(),
        None if state.long_term is None else owner.hex(),
        _seconds(state.previous_end),
        _seconds(state.forgotten),
        len(value),
    )


def _seconds(time: int | None) -> float | None:
    return None if time is None else time / SECOND
