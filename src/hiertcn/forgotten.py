"""Who was forgotten, and until when: told by a store that holds no ids, and left out of a log that does."""

from __future__ import annotations

__all__ = ["forgotten_of", "read_forgotten", "remember", "without_forgotten"]

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from hiertcn.errors import InputError
from hiertcn.events import Events
from hiertcn.quarantine import shown
from hiertcn.sessions import SECOND
from hiertcn.states import StateStore, Update, UserState
from hiertcn.states.state import USER, forgotten_in, key_of_user

_TOGETHER = 1_000


def forgotten_of(states: StateStore) -> Iterator[tuple[str, float]]:
    """Of each user who is to be forgotten the digest, in hexadecimal, and the last moment, seconds since 1970, of what
    is; in no order. All of the store is read."""
    for key, value in states.scan():
        if len(key) == USER and (until := forgotten_in(value)) is not None:
            yield key.hex(), until / SECOND


def read_forgotten(path: str | Path) -> dict[bytes, int]:
    """By digest, microseconds: of a file of what `GET /v1/forgotten` answers. Raises InputError for any other."""
    try:
        stated = json.loads(Path(path).read_text(encoding="utf-8"))["forgotten"]
        found = {bytes.fromhex(one["digest"]): round(float(one["until"]) * SECOND) for one in stated}
    except OSError as error:
        raise InputError(
            f"{shown(str(path))} can't be read: {error.strerror}. Give what GET /v1/forgotten answers."
        ) from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        found = {b"": 0}
    if any(len(digest) != USER or not 0 <= until < 1 << 63 for digest, until in found.items()):
        raise InputError(
            f'{shown(str(path))} is no list of who is forgotten; expected {{"forgotten": [{{"digest", "until"}}, …]}}. '
            "Give what GET /v1/forgotten answers."
        )
    return found


def remember(states: StateStore, forgotten: Mapping[bytes, int], digest: bytes) -> None:
    """Let a store know who is forgotten, beside what it knew. digest: of its model. Raises ArtifactError for a damaged
    state of one of them; others may be marked then."""
    keys = list(forgotten)
    for begin in range(0, len(keys), _TOGETHER):
        some = keys[begin : begin + _TOGETHER]

        def marked(found: list[bytes | None], some: list[bytes] = some) -> Update:
            return Update([_marked(value, forgotten[key], digest) for key, value in zip(some, found, strict=True)])

        states.update(some, marked)


def _marked(value: bytes | None, until: int, digest: bytes) -> bytes:
    state = UserState() if value is None else UserState.from_bytes(value, digest)
    if state.forgotten is None or state.forgotten < until:
        kept = [at for at, time in enumerate(state.times) if time > until]
        state = UserState(
            [state.items[at] for at in kept],
            [state.times[at] for at in kept],
            [state.marks[at] for at in kept],
            unread=len(kept),
            forgotten=until,
        )
    return state.to_bytes(digest)


def without_forgotten(events: Events, forgotten: Mapping[bytes, int]) -> Events:
    """Those later than what their users are forgotten until."""
    users = events.user_ids.cast(pl.String).to_list()
    until = np.array([forgotten.get(key_of_user(user), 0) for user in users], dtype=np.int64)
    later = events.frame["time"].to_numpy() > until[events.frame["user"].to_numpy()]
    return replace(events, frame=events.frame.filter(pl.Series(later)))
