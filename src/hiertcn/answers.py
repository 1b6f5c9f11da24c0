"""What a recommender gives."""

from __future__ import annotations

__all__ = ["Chosen", "Followed", "Kept", "Recommendation"]

from typing import NamedTuple

from hiertcn.door import Id
from hiertcn.scoring import Best
from hiertcn.states import Status, UserState


class Recommendation(NamedTuple):
    """An item, by its id in the log. `source` says what `score` is: "model", or "popular", the item's train events."""

    item: Id
    score: float
    title: str | None
    source: str


class Chosen(NamedTuple):
    """What was chosen for who asks, by rows; source: of its scores, as of a Recommendation."""

    best: Best
    source: str


class Kept(NamedTuple):
    """Of a user: the items and times (seconds) of the sessions that are kept, and the bytes of all that is stored."""

    sessions: list[tuple[list[Id], list[float]]]
    size: int


class Followed(NamedTuple):
    """What became of events, and the states of their users then."""

    statuses: list[Status]
    states: dict[bytes, UserState]
