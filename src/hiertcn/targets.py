"""What is known of target events apart from any model, and the segments that they fall into."""

from __future__ import annotations

__all__ = ["SEGMENTS", "Targets"]

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hiertcn.cache import Cache
from hiertcn.sessions import SECOND, Sessions

Ints = npt.NDArray[np.int64]
_GAPS = (0, 6 * 3600, 24 * 3600, 168 * 3600)
_AGES = (3600, 6 * 3600, 24 * 3600, 168 * 3600)
SEGMENTS = {
    "event of the session": ("first", "2nd", "3–5", "6–10", "11+"),
    "earlier sessions": ("0", "1–4", "5–19", "20+"),
    "item": ("new to the user", "seen before"),
    "train events of the item": ("none", "1–4", "5–49", "50+"),
    "age of the item": ("< 1 h", "1–6 h", "6–24 h", "1–7 d", "≥ 7 d"),
    "gap before the session": ("no earlier session", "< 6 h", "6–24 h", "1–7 d", "≥ 7 d"),
}
"""For each way to divide targets, its segments in a natural order."""


@dataclass(frozen=True)
class Targets:
    """What is known of T target events, apart from any model; each int64 [T] unless said.

    user: place of the user in the cache     step: place in the session, from 1
    earlier_sessions: of the user            seen: bool, whether the user had the item before
    gap: float64, seconds from the user's previous event to the session's first; NaN in the first session
    trained: events of the item in the train part
    age: float64, seconds from the item's first event in the log
    """

    user: Ints
    step: Ints
    earlier_sessions: Ints
    seen: npt.NDArray[np.bool_]
    gap: npt.NDArray[np.float64]
    trained: Ints
    age: npt.NDArray[np.float64]

    @classmethod
    def of(cls, cache: Cache, events: Ints) -> Targets:
        """Of the events at `events` [T], ascending places in the cache."""
        pieces, first_event, first_user = [], 0, 0
        first_seen = np.full(cache.catalog.items.height + 1, np.iinfo(np.int64).max)
        for index in range(len(cache)):
            sessions = cache.shard(index).sessions
            np.minimum.at(first_seen, sessions.items, sessions.times)
        trained = np.zeros(len(first_seen), dtype=np.int64)
        trained[: cache.catalog.size + 1] = cache.catalog.train_events
        for index in range(len(cache)):
            sessions = cache.shard(index).sessions
            mine = events[(events >= first_event) & (events < first_event + len(sessions.items))] - first_event
            items = sessions.items[mine]
            age = (sessions.times[mine] - first_seen[items]) / SECOND
            pieces.append((*_describe(sessions, mine, first_user), trained[items], age))
            first_event += len(sessions.items)
            first_user += len(sessions.user_offsets) - 1
        return cls(*(np.concatenate(columns) for columns in zip(*pieces, strict=True)))

    def segments(self) -> dict[str, npt.NDArray[np.str_]]:
        """For each way to divide targets, the segment [T] of each."""
        places = {
            "event of the session": np.searchsorted([2, 3, 6, 11], self.step, side="right"),
            "earlier sessions": np.searchsorted([1, 5, 20], self.earlier_sessions, side="right"),
            "item": self.seen.astype(np.int64),
            "train events of the item": np.searchsorted([1, 5, 50], self.trained, side="right"),
            "age of the item": np.searchsorted(_AGES, self.age, side="right"),
            "gap before the session": np.searchsorted(_GAPS, np.nan_to_num(self.gap, nan=-1.0), side="right"),
        }
        return {way: np.array(names)[places[way]] for way, names in SEGMENTS.items()}


def _describe(sessions: Sessions, events: Ints, first_user: int) -> tuple[npt.NDArray[Any], ...]:
    session = np.searchsorted(sessions.session_offsets, events, side="right") - 1
    user = np.searchsorted(sessions.user_offsets, session, side="right") - 1
    begin = sessions.session_offsets[session]
    earlier = session - sessions.user_offsets[user]
    gap = np.where(earlier > 0, (sessions.times[begin] - sessions.times[np.maximum(begin - 1, 0)]) / SECOND, np.nan)
    owner = np.repeat(np.arange(len(sessions.user_offsets) - 1), np.diff(sessions.event_offsets))
    pairs = owner * (int(sessions.items.max(initial=0)) + 1) + sessions.items
    _, first, index = np.unique(pairs, return_index=True, return_inverse=True)
    return user + first_user, events - begin + 1, earlier, first[index[events]] < events, gap
