"""One user's sessions, event by event, with what each model ranked first before it knew the event."""

from __future__ import annotations

__all__ = ["TOP", "Guess", "Item", "ShownEvent", "ShownSession", "Timeline", "busiest", "timeline"]

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np

from hiertcn.cache import Cache
from hiertcn.catalog import Catalog
from hiertcn.errors import InputError
from hiertcn.evaluation import Evaluation
from hiertcn.sessions import PARTS, SECOND, Sessions

TOP = 5
MOST_EVENTS = 30
ENOUGH_SESSIONS = 3
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


@dataclass(frozen=True)
class Item:
    """`title` is empty where there is none; `hit` marks a guess that was right."""

    id: str
    title: str
    hit: bool = False


@dataclass(frozen=True)
class Guess:
    """What a model ranked first, and the rank it gave to the item that came; None for one outside its catalog."""

    model: str
    rank: float | None
    top: Sequence[Item]


@dataclass(frozen=True)
class ShownEvent:
    """`guesses` is empty for an event that is not of the evaluated part."""

    time: str
    part: str
    item: Item
    guesses: Sequence[Guess]


@dataclass(frozen=True)
class ShownSession:
    """`number` counts the user's sessions from 1, `hidden` the events left out before the first that is shown."""

    number: int
    begin: str
    after: str
    hidden: int
    events: Sequence[ShownEvent]


@dataclass(frozen=True)
class Timeline:
    """The last of a user's `total` sessions."""

    user: str
    total: int
    sessions: Sequence[ShownSession]


def busiest(evaluation: Evaluation) -> int:
    """The place in the cache of the user of most targets, among those with at least 3 sessions if there are any."""
    shards = (evaluation.cache.shard(index).sessions for index in range(len(evaluation.cache)))
    sessions = np.concatenate([np.diff(shard.user_offsets) for shard in shards])
    targets = np.bincount(evaluation.targets.user, minlength=len(sessions))
    enough = targets * (sessions >= ENOUGH_SESSIONS)
    return int(np.argmax(enough if enough.any() else targets))


def timeline(evaluations: Sequence[Evaluation], user: int, sessions: int) -> Timeline:
    """The last `sessions` sessions, up to the one of the last target, of the user at a place in the cache.

    Of a session, its last 30 events are shown. Evaluations are of the same targets, each with its first 5 items at
    least. Raises InputError if the user has no target.
    """
    first = evaluations[0]
    cache = first.cache
    targets = {int(first.ranks.events[t]): int(t) for t in np.flatnonzero(first.targets.user == user)}
    if not targets:
        raise InputError(
            f"The user at place {user} of {cache.path} has no event in the {first.part} part, so there is nothing to "
            f"show; places go from 0 to {cache.manifest.users - 1}. Choose another user, or none to have one chosen."
        )
    user_id, theirs, begin = _find(cache, user)
    offsets = theirs.session_offsets
    last = int(np.searchsorted(offsets, max(targets) - begin, side="right"))
    shown = []
    for session in range(max(0, last - sessions), last):
        start, end = int(offsets[session]), int(offsets[session + 1])
        kept = range(max(start, end - MOST_EVENTS), end)
        gap = (theirs.times[start] - theirs.times[start - 1]) // SECOND if session else None
        events = [
            ShownEvent(
                time=_moment(theirs.times[event])[11:],
                part=PARTS[theirs.parts[event]],
                item=_item(cache.catalog, int(theirs.items[event])),
                guesses=_guesses(evaluations, targets[begin + event], int(theirs.items[event]))
                if begin + event in targets
                else [],
            )
            for event in kept
        ]
        shown.append(
            ShownSession(
                number=session + 1,
                begin=_moment(theirs.times[start]),
                after="" if gap is None else _duration(int(gap)),
                hidden=kept.start - start,
                events=events,
            )
        )
    return Timeline(user_id, len(offsets) - 1, shown)


def _find(cache: Cache, user: int) -> tuple[str, Sessions, int]:
    """The id and the sessions of the user at a place in the cache, and the place of their first event."""
    shards = cache.manifest.shards
    users, events = (np.cumsum([0, *(shard[what] for shard in shards)]) for what in ("users", "events"))
    index = int(np.searchsorted(users, user, side="right")) - 1
    shard, place = cache.shard(index), user - int(users[index])
    begin = int(events[index]) + int(shard.sessions.event_offsets[place])
    return str(shard.user_ids[place]), shard.sessions.users(place, place + 1), begin


def _guesses(evaluations: Sequence[Evaluation], target: int, row: int) -> list[Guess]:
    guesses = []
    for evaluation in evaluations:
        truth = str(evaluation.cache.catalog.items["item_id"][row - 1])
        rank = float(evaluation.ranks.ranks[target])
        top = [_item(evaluation.catalog, int(r), truth) for r in evaluation.ranks.top[target, :TOP]]
        guesses.append(Guess(evaluation.name, None if isnan(rank) else rank, top))
    return guesses


def _item(catalog: Catalog, row: int, truth: str | None = None) -> Item:
    item_id = str(catalog.items["item_id"][row - 1])
    return Item(item_id, catalog.title(row) or "", item_id == truth)


def _moment(time: int) -> str:
    return str(np.datetime_as_string(np.datetime64(int(time), "us"), unit="s")).replace("T", " ")


def _duration(seconds: int) -> str:
    """The two largest units of a time span, such as "2 d 3 h"."""
    parts = []
    for name, size in _UNITS:
        count, seconds = divmod(seconds, size)
        parts.append(f"{count} {name}" if count else "")
    begin = next((i for i, part in enumerate(parts) if part), len(parts) - 1)
    return " ".join(part for part in parts[begin : begin + 2] if part) or "0 s"
