"""What a log tells all servers of a store: its last picks, in the order of time, each of them once.

A journal goes on in time, so what is no later than what it or the model's crowd has heard was heard. What is told in
several transactions, and was broken off, goes on where it stopped.

Legend: H events of a user, C picks of the user that may be told.
"""

from __future__ import annotations

__all__ = ["Journal", "Told"]

import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hiertcn.hearing import KEPT
from hiertcn.online import Known
from hiertcn.served import Served
from hiertcn.sessions import SECOND, begins_session
from hiertcn.states import StateStore, Update, UserState
from hiertcn.streams import Ints
from hiertcn.trends import PERIOD

TOGETHER = 10_000
"""Entries of a transaction."""


class Told(NamedTuple):
    """A pick for the journal; what is told comes in this order.

    time: microseconds; rank: of the item among all ids; place: in the log; before: picked before in the session
    """

    time: int
    rank: int
    place: int
    item: str
    before: str

    @property
    def entry(self) -> bytes:
        """As of `Hearing.told`."""
        return json.dumps([self.time, self.item, self.before]).encode()


class Journal:
    """Of `store`, as it stands now. times: int64 [N] of the log that is to be told, microseconds."""

    def __init__(self, store: StateStore, model: Served, times: Ints) -> None:
        self._store, self._gap, self._longest = store, model.session_gap, model.max_session_events
        self._latest, self._known = _latest(store)
        # Earlier ones are not among the last.
        first = int(np.partition(times, -KEPT)[-KEPT]) if len(times) > KEPT else 0
        self._since = max(first, self._latest, _heard_until(model) + 1)
        self._pending: list[Told] = []
        self._end = int(times.max(initial=0))

    def wants(self, times: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """bool [C]: of picks at `times`, which may have to be told."""
        return times >= self._since

    def before(self, items: Known, state: UserState, times: Ints) -> list[str]:
        """[C]: what the user, whose events are those of `state`, picked before `times` in the same session."""
        known, own = np.flatnonzero(items.rows(state.items) > 0), np.array(state.times, dtype=np.int64)
        begins = np.append(True, begins_session(own[:-1], own[1:], self._gap)) if len(own) else np.zeros(0, dtype=bool)
        last = np.searchsorted(own, times) - 1
        start = np.maximum.accumulate(np.where(begins, np.arange(len(own)), 0))
        place = np.searchsorted(known, last, side="right") - 1
        goes_on = (last >= 0) & (place >= 0)
        found = np.where(goes_on, known[place] if len(known) else -1, -1)
        begin = start[last] if len(start) else np.zeros_like(last)
        # Sessions that are too long were cut.
        goes_on &= found >= begin + (last + 1 - begin) // self._longest * self._longest
        goes_on &= ~begins_session(own[last] if len(own) else times, times, self._gap)
        return [state.items[at] if goes else "" for at, goes in zip(found.tolist(), goes_on.tolist(), strict=True)]

    def add(self, told: Sequence[Told]) -> None:
        """These are to be told."""
        self._pending += told

    def tell(self) -> int:
        """Tell all that is to be told, and give how many picks that were."""
        known, pending = Counter(self._known), []
        for one in sorted(self._pending):
            if one.time == self._latest and known[one[3:]]:
                known[one[3:]] -= 1
            else:
                pending.append(one)
        pending = pending[-KEPT:]
        for begin in range(0, len(pending), TOGETHER):
            self._append([one.entry for one in pending[begin : begin + TOGETHER]])
        if not pending and self._end > self._latest:
            # The crowd heard of all this when it was trained. A pick of no item counts for nothing, and tells the time.
            self._append([Told(self._end, 0, 0, "", "").entry])
        return len(pending)

    def _append(self, entries: list[bytes]) -> None:
        self._store.update([], lambda _: Update([], entries))


def _latest(store: StateStore) -> tuple[int, Counter[tuple[str, str]]]:
    """Of the picks that the journal holds: the latest time, 0 without one, and the items picked then, with those
    before."""
    latest, items, position = 0, Counter[tuple[str, str]](), 0
    while entries := store.journal(position):
        position = entries[-1][0]
        for _, entry in entries:
            time, item, before = json.loads(entry)
            if time > latest:
                latest, items = time, Counter()
            if time == latest:
                items[item, before] += 1
    return latest, items


def _heard_until(model: Served) -> int:
    """Microseconds: the end of what the crowd of a model heard in training; 0 for none."""
    if (crowd := model.crowd()) is None:
        return 0
    state = crowd.state()
    # The period that ran at the end is counted as over.
    latest: float = state["times"].max(initial=0.0)
    return max(int(state["begin"]) * round(PERIOD * SECOND) - 1, round(latest * SECOND))
